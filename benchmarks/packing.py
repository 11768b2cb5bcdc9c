"""How full planned rows are, how well they keep the mixture, and how fast it goes.

    python benchmarks/packing.py [--documents=1000000]

Rows of 2048 tokens. Lengths as LaVIT's: clip(N(94, 30), 16, 256) visual tokens and
U(8, 59) text tokens, with the marks about four more; texts are log-normal, many longer
than a row. Fill and mixture are those of the first 1,000 rows, planning speed that of a
whole epoch written to disk.
"""

import argparse
import pathlib
import resource
import tempfile
import time

import numpy as np

from lavit_jax.data import documents, pack_plan, plan_files, records

ROW_LENGTH, ROWS = 2048, 1000
MIXTURES = {
  "image pairs only": {"caption": 0.5, "text_image": 0.5},
  "text 2 : 1": {"caption": 0.185, "text_image": 0.148, "text": 0.667},
}


def lengths(pictures: int, texts: int, rng: np.random.Generator) -> records.Lengths:
  """Lengths of pictures with one caption each, then of texts without picture."""
  count = np.clip(rng.normal(94, 30, pictures), 16, 256).astype(np.uint16)
  captions = rng.integers(8, 60, pictures)
  words = np.clip(rng.lognormal(6.3, 1.0, texts), 20, 100_000)
  total = pictures + texts
  return records.Lengths(
    count=np.concatenate([count, np.zeros(texts, np.uint16)]),
    offsets=np.arange(total + 1, dtype=np.int64),
    task=np.repeat(np.uint8([0, 2]), [pictures, texts]),
    turns=np.ones(total, np.uint16),
    text=np.concatenate([captions, words]).astype(np.uint32),
  )


def bytes_held(some: records.Lengths) -> int:
  """Bytes of the arrays that planning reads."""
  return sum(getattr(some, n).nbytes for n in ("count", "offsets", "task", "text")) + (
    some.turns.nbytes
  )


def main() -> None:
  """Prints fill, mixture and speed of both mixtures."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--documents", type=int, default=1_000_000)
  number = parser.parse_args().documents
  rng = np.random.default_rng(0)
  for name, weights in MIXTURES.items():
    texts = number // 10 if "text" in weights else 0
    some = lengths(number - texts, texts, rng)
    plan = pack_plan.plan_rows(some, weights, 0, ROWS, ROW_LENGTH)
    figures = plan.figures()
    print(f"{name}: M = {plan.images_per_row}, {ROWS} rows of {ROW_LENGTH}")
    print(f"  tokens {figures['tokens']:.2%}, image slots {figures['image_slots']:.2%}")
    for source, share in weights.items():
      print(f"  {source}: asked {share:.4f}, got {figures[source]:.4f}")
    with tempfile.TemporaryDirectory() as folder:
      started = time.process_time()  # one thread; others may use the machine
      path = pathlib.Path(folder) / "plan"
      plan_files.write(path, pack_plan.plan_windows(some, weights, 0, 0, ROW_LENGTH))
      seconds = time.process_time() - started
      whole = plan_files.load(path)
      planned = len(whole.documents)
      stored, fill = sum(f.stat().st_size for f in path.iterdir()), whole.figures()
      print(f"  one epoch on disk: {len(whole)} rows, tokens {fill['tokens']:.2%}")
    entries = 4 * sum(len(documents.entries_of(some, s)) for s in weights)
    memory = (bytes_held(some) + entries) / number
    print(
      f"  {planned} documents in {seconds:.1f} s: {planned / seconds:,.0f} documents/s,"
      f" {200e6 / planned * seconds / 60:.0f} minutes for 200 million\n"
      f"  {memory:.0f} bytes of memory per record, {stored / planned:.1f} on disk per"
      " document"
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"peak memory of the process {peak:,.0f} MB")


if __name__ == "__main__":
  main()
