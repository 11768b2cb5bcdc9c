"""A small LaVIT from nothing: `python -m lavit_jax.quickstart`.

    toy data -> contrastive -> visual_tokenizer -> tokenize -> pixel_decoder -> pretrain
    -> report.html

No download is needed. The same command continues where it was interrupted; finished
parts are skipped. `--smoke` runs all of it on a fiftieth of the work, in about five
minutes on two cores, most of which compile; the figures then mean nothing. `--seed`
makes another run of the same recipe; `python -m lavit_jax.toy.report.spread RUN RUN`
tells how far such runs lie apart, `python -m lavit_jax.compare RUN RUN` shows them.
Figures are measured on a validation split; `--split=test` measures them once more, with
more cases, on pictures that nothing was chosen by.
"""

from absl import app, flags, logging

from lavit_jax.core import command_line

WORKDIR = command_line.define_path(
  "workdir", "runs/quickstart", "Folder of the whole run.", allow_override=True
)
SMOKE = flags.DEFINE_boolean(
  "smoke", False, "A run through everything, about five minutes."
)
SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of weights, data order and selection.", allow_override=True
)
SPLIT = flags.DEFINE_enum(
  "split",
  "validation",
  ["validation", "test"],
  "Pictures behind the figures: tune on validation, state figures of test.",
)


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  from lavit_jax.toy import quickstart_run  # the product itself runs without the toy

  logging.set_verbosity(logging.WARNING)  # the checkpointer tells too much otherwise
  with command_line.in_sentences():
    size = quickstart_run.SMALL if SMOKE.value else quickstart_run.FULL
    quickstart_run.run(WORKDIR.value, size, SEED.value, SPLIT.value)


if __name__ == "__main__":
  app.run(main)
