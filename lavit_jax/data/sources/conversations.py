"""Conversations about one picture, as LLaVA and as OpenAI write them.

[{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]
[{"role": "user", "content": [{"type": "image_url", ...}, {"type": "text", ...}]},
 {"role": "assistant", "content": "..."}]
"""

from collections.abc import Mapping
from typing import Any

from lavit_jax.data import bad

ASKS = ("human", "user", "USER")
ANSWERS = ("gpt", "assistant", "model", "chatgpt", "bot", "ASSISTANT")
ASIDE = ("system", "developer")
MARKS = ("<image>", "<|image|>", "<ImageHere>", "<img>")
FIELDS = ("conversations", "messages")


def pairs(turns: Any) -> list[tuple[str, str]]:
  """Takes questions and answers out of a conversation.

  Instructions of the system, an answer before the first question and a question after
  the last answer are passed over, as LLaVA does; turns of one speaker are joined.

  Raises:
    BadRecord: it is none, or a speaker is unknown.
  """
  try:
    said = [_said(turn) for turn in turns]
  except (TypeError, KeyError, AttributeError) as error:
    raise bad.BadRecord("a broken conversation", repr(error)) from error
  found, open_question = [], None
  for who, words in said:
    if who in ASIDE:
      continue
    if who in ASKS:
      both = [open_question, words] if open_question else [words]
      open_question = "\n".join(filter(None, both))
    elif who in ANSWERS:
      if open_question is None and found:
        found[-1] = (found[-1][0], f"{found[-1][1]}\n{words}")
      elif open_question is not None:
        found.append((open_question, words))
      open_question = None
    else:
      raise bad.BadRecord("a broken conversation", f"an unknown speaker {who!r}"[:100])
  if not found:
    raise bad.BadRecord("a broken conversation", str([who for who, _ in said])[:100])
  return found


def _said(turn: Mapping) -> tuple[str, str]:
  """Who says what in one turn."""
  if "from" in turn:
    return turn["from"], _plain(turn["value"])
  content = turn["content"]
  if not isinstance(content, str) and content is not None:
    content = "\n".join(
      part if isinstance(part, str) else part.get("text") or ""
      for part in content
      if isinstance(part, str) or part.get("text")
    )
  return turn["role"], _plain(content)


def _plain(words: Any) -> str:
  if not isinstance(words, str):
    raise TypeError(f"expected text, got {type(words).__name__}")
  for mark in MARKS:
    words = words.replace(mark, "")
  return words.strip()


def picture(row: Mapping) -> Any:
  """The pictures that messages name, as a list; None without one."""
  found = []
  for turn in row.get("messages") or []:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    for part in content if isinstance(content, (list, tuple)) else []:
      if isinstance(part, Mapping) and str(part.get("type", "")).startswith("image"):
        found.append(part.get("image_url") or part.get("image") or part.get("path"))
  return [one for one in found if one] or None
