"""The FLOP counter against the compiler's own count, on a program without loops.

  python -m benchmarks.plan_counter

Two unrolled layers of LLaMA-7B with loss, gradient and optimizer. The compiler counts
elementwise operations as well; products dominate.
"""

import jax
import jax.numpy as jnp
import optax

from lavit_jax.core import losses, sequence, sharding
from lavit_jax.models import llama
from lavit_jax.planning import cost, programs, topology
from lavit_jax.training import base

WORDS, PADDED, LENGTH, LAYERS = 48_386, 48_512, 2048, 2


def main() -> None:
  """Prints the pair and the ratio."""
  topology.without_chips()
  mesh = sharding.make_mesh({"fsdp": -1}, topology.devices(topology.parse("v5e:2x2")))
  sizes = llama.VARIANTS["7b"] | {"num_layers": LAYERS}
  model = llama.Llama(WORDS, PADDED, **sizes, unroll=LAYERS)
  ids = jnp.zeros((1, 8), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  abstract, shardings, _ = base.born_sharded(init, optax.sgd(1e-3), mesh)

  def hidden_of(module, tokens, place, segments):
    return module(module.embed(tokens), place, segments)

  def loss(params, tokens, place, segments):
    arguments = ({"params": params}, tokens, place, segments)
    hidden = model.apply(*arguments, method=hidden_of)
    targets, head = sequence.next_tokens(tokens), params["head"]["kernel"]
    found = losses.next_token(hidden, head, targets, segments > 0, WORDS)
    return found.losses.sum()

  params = programs.placed(abstract.params, shardings.params)
  spread = sharding.batch_sharding(mesh)
  rows = jax.ShapeDtypeStruct((mesh.size, LENGTH), jnp.int32, sharding=spread)
  with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(loss), out_shardings=shardings.params)
    compiled = step.lower(params, rows, rows, rows).compile()
  counted = cost.count(compiled.as_text(), mesh.size)
  own = compiled.cost_analysis()["flops"]
  print(
    f"counted {counted.flops / 1e12:.3f} T, the compiler {own / 1e12:.3f} T, ratio"
    f" {counted.flops / own:.4f}; loops {counted.loops}"
  )


if __name__ == "__main__":
  main()
