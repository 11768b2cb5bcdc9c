"""Whether a request costs more after many others: time per token, first against last.

    python -m benchmarks.generate_many [--requests=400]

One server of 57 M random parameters in float32 answers request after request, each of
another length within a bucket, after one request that compiles. Prints the median time
per token of each quarter, and how many programs were compiled after the first request.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from benchmarks import generate
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import logits, serving
from lavit_jax.layers import linear

SHORTEST, LONGEST, NEW = 49, 56, 16  # one bucket


def make_server() -> serving.Serving:
  """A random model, laid out."""
  model, init = generate.make_model(generate.SIZES["58m"])
  params = linear.split_boxes(jax.jit(init)(jax.random.key(0)))[0]["params"]
  return generate.served(model, params)


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--requests", type=int, default=400)
  number = parser.parse_args().requests
  server, rng = make_server(), np.random.default_rng(0)
  how = logits.Settings(
    end=Vocabulary.end, allowed="text", max_new=NEW, min_new=NEW - 1
  )
  compiled, seconds = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **more: compiled.append(event)
  )
  for _ in range(number + 1):
    length = int(rng.integers(SHORTEST, LONGEST + 1))
    ids = rng.integers(3, generate.WORDS.text_size, (1, length)).astype(np.int32)
    started = time.perf_counter()
    generate.generate(server, ids, how)
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
