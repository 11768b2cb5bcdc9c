"""Compiles the full-size pixel decoders for a TPU pod that is not there.

    python benchmarks/unet_pod.py sample --topology=v5e:2x2
    python benchmarks/unet_pod.py train --topology=v5e:8x8

`sample` is the whole loop of the SDXL type: DDIM with guidance, 1024 px, one picture
per chip, weights in bfloat16 on every chip. `train` is a step of Stable Diffusion 1.5
at 512 px: bfloat16 compute, float32 AdamW and EMA, everything split over all chips.
Needs the `tpu` extra, no TPU. Prints lines of JSON: the memory of one
chip, and the FLOPs of its products beside the analytic count (with --decode the VAE's
come on top).
"""

import argparse
import json
import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from lavit_jax import sharding
from lavit_jax.diffusion import schedule
from lavit_jax.generate import pixels
from lavit_jax.layers import linear
from lavit_jax.models import unet, vae
from lavit_jax.planning import cost, unet_flops

TOKENS = 256  # of a condition


def abstract(shape, layout, dtype=jnp.float32):
  """An array that is only a shape and a sharding."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)


def placed(tree, layouts, dtype=None):
  """A tree of shapes with its shardings, cast where asked."""
  one = lambda leaf, layout: abstract(leaf.shape, layout, dtype or leaf.dtype)
  return jax.tree.map(one, tree, layouts)


def parameters(module, *inputs, method=None, **named):
  """Abstract parameters and their axis names."""

  def init(inputs, named):
    return module.init(jax.random.key(0), *inputs, method=method, **named)

  return linear.split_boxes(jax.eval_shape(init, inputs, named)["params"])


def unet_inputs(fields, batch, side, layout):
  """Latents, time and conditions of one call, as shapes."""
  inputs = dict(
    latents=abstract((batch, side, side, 4), layout),
    timesteps=abstract((batch,), layout, jnp.int32),
    context=abstract((batch, TOKENS, fields["context_dim"]), layout),
    context_mask=abstract((batch, TOKENS), layout, jnp.bool_),
  )
  if fields["pooled_dim"]:
    del inputs["context_mask"]
    inputs["pooled"] = abstract((batch, fields["pooled_dim"]), layout)
    inputs["time_ids"] = abstract((batch, unet.NUM_TIME_IDS), layout)
  return inputs


def sampling(mesh, num_steps, decode):
  """The guided loop of the SDXL type, lowered, one picture per device."""
  fields = unet.VARIANTS["sdxl"]
  model, coder = unet.UNet(**fields), vae.AutoencoderKL(**vae.VARIANTS["sdxl"])
  whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  noises = schedule.from_config(schedule.STABLE_DIFFUSION)
  settings = pixels.Settings(steps=num_steps)

  def draw(weights, condition, noise):
    latents = pixels.sample(
      model, weights["unet"], noises, condition, None, noise, settings
    )
    return pixels.decode(coder, weights["vae"], latents) if decode else latents

  inputs = unet_inputs(fields, mesh.size, 128, rows)
  noise = inputs["latents"]
  params, _ = parameters(model, **inputs)
  weights = {"unet": placed(params, jax.tree.map(lambda _: whole, params), "bfloat16")}
  if decode:
    params, _ = parameters(coder, noise, method="decode")
    weights["vae"] = placed(params, jax.tree.map(lambda _: whole, params))
  names = ("pooled", "time_ids")
  condition = pixels.Condition(inputs["context"], None, *(inputs[k] for k in names))
  with jax.set_mesh(mesh):
    return jax.jit(draw).lower(weights, condition, noise)


def training(mesh, batch):
  """A step of Stable Diffusion 1.5 on stored latents and conditions, lowered."""
  fields = unet.VARIANTS["sd15"]
  model = unet.UNet(**fields, remat="full")
  noises = schedule.from_config(schedule.STABLE_DIFFUSION)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))

  def loss(params, batch, noise):
    noisy = schedule.add_noise(noises, batch["latents"], noise, batch["timesteps"])
    target = schedule.target(noises, batch["latents"], noise, batch["timesteps"])
    out = model.apply({"params": params}, **(batch | {"latents": noisy}))
    return jnp.square(out - target).mean()

  def step(state, batch, noise):
    params, moments, average = state
    value, grads = jax.value_and_grad(loss)(params, batch, noise)
    updates, moments = tx.update(grads, moments, params)
    params = optax.apply_updates(params, updates)
    average = optax.incremental_update(params, average, 1e-4)
    return (params, moments, average), value

  inputs = unet_inputs(fields, batch, 64, sharding.batch_sharding(mesh))
  params, axes = parameters(model, **inputs)
  layouts = sharding.parameter_shardings(params, axes, mesh)
  moments = jax.eval_shape(tx.init, params)
  spread = sharding.optimizer_shardings(moments, params, layouts)
  weights = placed(params, layouts)
  state = weights, placed(moments, spread), weights
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  with jax.set_mesh(mesh):
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return compiled.lower(state, inputs, inputs["latents"])


def main():
  """Compiles what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("what", choices=["sample", "train"])
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--num_steps", type=int, default=25)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--decode", action="store_true", help="end with the VAE")
  parser.add_argument("--text", help="where to write the program")
  args = parser.parse_args()
  pod = topologies.get_topology_desc(platform="tpu", topology_name=args.topology)
  mesh = sharding.make_mesh({"fsdp": -1}, pod.devices)
  start = time.time()
  if args.what == "sample":
    lowered = sampling(mesh, args.num_steps, args.decode)
    passes = 2 * args.num_steps  # guided: every step sees each picture twice
    fields, side = unet.VARIANTS["sdxl"], 128
  else:
    lowered = training(mesh, args.batch)
    passes = 4 * args.batch / mesh.size  # forward, again in remat, backward twice
    fields, side = unet.VARIANTS["sd15"], 64
  middle = time.time()
  compiled = lowered.compile()
  seconds = {
    "lower": round(middle - start, 1),
    "compile": round(time.time() - middle, 1),
  }
  print(json.dumps({"what": args.what, "seconds": seconds, **memory_of(compiled)}))
  text = compiled.as_text()
  if args.text:
    with open(args.text, "w") as stream:
      stream.write(text)
  counted = cost.count(text, mesh.size).flops
  analytic = passes * unet_flops.forward(fields, side, side, TOKENS)
  print(
    json.dumps(
      {
        "topology": args.topology,
        "chips": mesh.size,
        "teraflops_per_chip": round(counted / 1e12, 2),
        "counted_over_analytic": round(counted / analytic, 4),
      }
    )
  )


def memory_of(compiled):
  """Gigabytes on one chip."""
  memory = compiled.memory_analysis()
  sizes = {
    "arguments": memory.argument_size_in_bytes,
    "new_outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
  }
  found = {name: round(size / 1e9, 3) for name, size in sizes.items()}
  return {"gigabytes_per_chip": found | {"total": round(sum(sizes.values()) / 1e9, 3)}}


if __name__ == "__main__":
  main()
