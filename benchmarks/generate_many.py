"""Whether a request costs more after many others: time per token, first against last.

    python benchmarks/generate_many.py [--requests=400]

One server of 57 M random parameters in float32 answers request after request, each of
another length within a bucket, after one request that compiles. Prints the median time
per token of each quarter, and how many programs were compiled after the first request.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax import sharding
from lavit_jax.generate import engine, logits, prompts, serving
from lavit_jax.layers import linear
from lavit_jax.models import llama
from lavit_jax.vocabulary import END, Vocabulary

WORDS = Vocabulary(text_size=2000, num_codes=16384)
FIELDS = dict(embed_dim=512, num_layers=12, num_heads=8, num_kv_heads=8, head_dim=64)
FIELDS |= dict(mlp_dim=1408, rope_base=10000.0, norm_eps=1e-6, dtype="float32")
SHORTEST, LONGEST, NEW = 49, 56, 16  # one bucket


def make_server() -> serving.Serving:
  """A random model, laid out."""
  model = llama.Llama(vocab_size=WORDS.size, padded_size=WORDS.padded_size, **FIELDS)
  ids = jnp.zeros((1, 4), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  params = linear.split_boxes(jax.jit(init)(jax.random.key(0)))[0]["params"]
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  return serving.prepare(model, params, WORDS, mesh)


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--requests", type=int, default=400)
  number = parser.parse_args().requests
  server, rng = make_server(), np.random.default_rng(0)
  embed = jax.jit(serving.embed, static_argnums=0)
  vectors = lambda batch, members: embed(server.model, server.weights, batch.tokens)
  how = logits.Settings(end=END, allowed="text", max_new=NEW, min_new=NEW - 1)
  compiled, seconds = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **more: compiled.append(event)
  )
  for _ in range(number + 1):
    length = int(rng.integers(SHORTEST, LONGEST + 1))
    ids = rng.integers(3, WORDS.text_size, length).astype(np.int32)
    asked = engine.Request(prompts.Prompt(ids, np.full(length, -1, np.int32)), how)
    started = time.perf_counter()
    engine.generate(server, [asked], vectors, 1)
    seconds.append(time.perf_counter() - started)
    if len(seconds) == 1:
      compiled.clear()
  quarters = np.array_split(np.array(seconds[1:]), 4)
  each = [1e3 * statistics.median(some) / NEW for some in quarters]
  print(
    f"{number} requests of {SHORTEST} to {LONGEST} ids, {NEW} new ones each: ms per"
    f" token by quarters {', '.join(f'{own:.2f}' for own in each)}, last to first"
    f" {each[-1] / each[0]:.2f};"
    f" {sum('backend_compile' in event for event in compiled)} programs compiled after"
    " the first request"
  )


if __name__ == "__main__":
  main()
