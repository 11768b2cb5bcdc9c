"""Runs side by side, as one page: `python -m lavit_jax.compare RUN RUN...`.

    python -m lavit_jax.compare runs/a runs/b --target=comparison.html

RUN is the --workdir of train or quickstart. The page needs no network and holds the
newest pictures of each stage, figures with how far the runs lie apart, training curves,
and the fields in which the configs differ.
"""

import pathlib

from absl import app, flags

from lavit_jax.core import command_line
from lavit_jax.training import comparison


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  command_line.define_path("target", "comparison.html", "Page to write.")


def main(argv: list[str]) -> None:
  """Command line entry."""
  with command_line.in_sentences():
    runs = comparison.read([pathlib.Path(run).expanduser() for run in argv[1:]])
    target = pathlib.Path(flags.FLAGS.target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(comparison.document(runs), encoding="utf-8")
  print(f"wrote {target}: {', '.join(run.name for run in runs)}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
