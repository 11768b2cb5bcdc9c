"""How questions of each benchmark are asked and scored, over any answering function.

Reference facts, section 10. VQAv2 and OK-VQA compare with ten annotators; GQA compares
exactly with one answer; VizWiz asks first whether a question can be answered.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lavit_jax.evaluate import annotations, vqa

PROTOCOLS = ("vqa", "gqa", "vizwiz")
ANSWERABLE = 'Is the question: "{}" answerable?'

# Answers of pictures (paths) and questions, in order.
Ask = Callable[[Sequence[Any], Sequence[str]], list[str]]


def predict(
  ask: Ask, protocol: str, shown: Sequence[Any], questions: Sequence[str]
) -> list[str]:
  """Asks questions as a protocol does.

  Args:
    ask: the model.
    protocol: one of PROTOCOLS.
    shown: picture of each question.
    questions: as annotated.

  Returns:
    Raw answers; "unanswerable" where VizWiz's first pass says no.
  """
  cleaned = [vqa.clean_question(question) for question in questions]
  found = ask(shown, cleaned)
  if protocol != "vizwiz":
    return found
  # The reference takes any answer that holds "no" for a no.
  first = ask(shown, [ANSWERABLE.format(question) for question in cleaned])
  return [
    vqa.UNANSWERABLE if "no" in verdict else answer
    for verdict, answer in zip(first, found)
  ]


def score(protocol: str, prediction: str, entry: dict[str, Any]) -> float:
  """Credit of one prediction in [0, 1]."""
  given = annotations.answers(entry)
  if protocol != "gqa":
    return vqa.accuracy(prediction, given)
  if len(given) != 1:
    raise ValueError(
      f"expected one answer to question {entry['question_id']} of GQA, got"
      f" {len(given)}; choose another --protocol"
    )
  true = given[0]["answer"] if isinstance(given[0], Mapping) else given[0]
  return float(vqa.normalize(prediction) == true)
