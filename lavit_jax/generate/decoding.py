"""Decoding: how a model writes and draws when nothing else is asked for.

A stage writes these numbers, the table `decoding` of its config, into the manifest of
its model directory; all that runs the model reads them there.

    caption, answer   beams max_new min_new length_penalty repetition_penalty
    draw              max_new min_new guidance temperature top_k top_p

What a directory does not say is the reference's (reference facts, sections 7 and 8).
Two things differ from it on purpose: drawing may choose codes and [/IMG] only, where
the reference also lets some text ids pass that it drops later; and a drawing of a
prompt with pictures may be as long as any other, where the reference overwrites its
length by that of the prompt.
How pixels are sampled stands with the pixel decoder (`stages.pixel_parts`).
"""

from collections.abc import Mapping
from typing import Any

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings

Numbers = Mapping[str, float]

REFERENCE = {
  "caption": dict(
    beams=2, max_new=36, min_new=8, length_penalty=1.0, repetition_penalty=1.0
  ),
  "answer": dict(
    beams=5, max_new=10, min_new=2, length_penalty=0.0, repetition_penalty=1.0
  ),
  "draw": dict(
    max_new=200, min_new=20, guidance=4.0, temperature=1.0, top_k=50, top_p=1.0
  ),
}
# The toy world has answers of one id and captions of up to 50. Its requests leave
# little open, so the most probable code each time; more guidance adds objects.
TINY = {
  "caption": REFERENCE["caption"] | dict(beams=1, max_new=64, min_new=1),
  "answer": REFERENCE["answer"] | dict(beams=1, max_new=16, min_new=1),
  "draw": REFERENCE["draw"]
  | dict(max_new=64, min_new=1, guidance=2.0, temperature=0.0),
}
VARIANTS = {"tiny": TINY, "7b": REFERENCE}


def complete(stored: Mapping[str, Numbers], patches: int) -> dict[str, dict[str, Any]]:
  """The numbers of every task: those stored, else the reference's.

  Args:
    stored: what a model directory or a config says, by task.
    patches: P of the visual tokenizer; a default drawing has no more codes.

  Raises:
    ValueError: a task or a name that does not exist.
  """
  if unknown := set(stored) - set(REFERENCE):
    raise ValueError(
      f"expected decoding of {', '.join(REFERENCE)}, got {sorted(unknown)}; correct"
      " the manifest of the model directory"
    )
  found = {
    task: _merged(task, own, stored.get(task, {})) for task, own in REFERENCE.items()
  }
  found["draw"] = _within(found["draw"], patches)
  return found


def changed(task: str, numbers: Numbers, given: Mapping[str, Any]) -> dict[str, Any]:
  """The numbers of a task but for what is given; None is not given.

  A least length that was not given gives way to a greatest length that was.

  Raises:
    ValueError: a name that the task does not have, or a number without effect.
  """
  own = {name: value for name, value in given.items() if value is not None}
  merged = _merged(task, numbers, own)
  idle = own.keys() & {"top_k", "top_p"}
  if idle and not merged["temperature"]:
    raise ValueError(
      f"{min(idle)} has no effect at temperature 0, where the most probable code is"
      " taken; give a temperature too, for example 1"
    )
  return merged


def _merged(task: str, numbers: Numbers, own: Numbers) -> dict[str, Any]:
  if unknown := set(own) - set(numbers):
    raise ValueError(
      f"decoding of the task {task} takes {', '.join(numbers)}, got"
      f" {', '.join(sorted(unknown))}; leave it out"
    )
  merged = dict(numbers) | own
  return merged if "min_new" in own else _within(merged, merged["max_new"])


def _within(numbers: dict[str, Any], most: int) -> dict[str, Any]:
  """The same with lengths of at most `most` new ids, the end included."""
  longest = min(numbers["max_new"], most)
  shortest = max(min(numbers["min_new"], longest - 1), 0)
  return numbers | {"max_new": longest, "min_new": shortest}


def text(task: str, numbers: Numbers, words: Vocabulary) -> Settings | Beams:
  """Settings of a caption or an answer.

  Args:
    task: "caption" or "answer", whose search stops as soon as it has enough.
    numbers: all of `REFERENCE[task]`; one beam is greedy.
    words: the joint vocabulary.
  """
  settings = Settings(
    end=words.end,
    allowed="text",
    max_new=numbers["max_new"],
    min_new=numbers["min_new"],
    repetition_penalty=numbers["repetition_penalty"],
  )
  if numbers["beams"] == 1:
    return settings
  early = task == "answer"
  return Beams(settings, numbers["beams"], numbers["length_penalty"], early)


def drawing(
  numbers: Numbers, words: Vocabulary, patches: int, allowed: str = "codes"
) -> Settings:
  """Settings of a drawing's codes.

  Args:
    numbers: all of `REFERENCE["draw"]`: lengths, where the end counts; guidance, weight
      of the prompt, 1 is none; temperature, 0 takes the most probable code; top_k,
      codes to sample from, 0 for all; top_p, their probability.
    words: the joint vocabulary.
    patches: P of the visual tokenizer.
    allowed: "codes", or "reference", which also lets ids pass that it drops later.
  """
  if numbers["max_new"] > patches:
    raise ValueError(
      f"max_new must be at most {patches}, the patches of a picture, got"
      f" {numbers['max_new']}"
    )
  return Settings(end=words.image_end, allowed=allowed, **numbers)


def settings(
  task: str, numbers: Numbers, words: Vocabulary, patches: int
) -> Settings | Beams:
  """Settings of any task; arguments as for `text` and `drawing`."""
  if task == "draw":
    return drawing(numbers, words, patches)
  return text(task, numbers, words)


def check(stored: Mapping[str, Numbers], words: Vocabulary, patches: int) -> None:
  """Refuses a config's numbers that cannot be decoded with."""
  for task, numbers in complete(stored, patches).items():
    try:
      settings(task, numbers, words, patches)
    except ValueError as error:
      raise ValueError(f"config.decoding.{task}: {error}") from error
