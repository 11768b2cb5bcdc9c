"""Begin, end, pad and unknown id of a tokenizer.json: what its folder says they are.

A vocabulary with LLaMA's own marks keeps them. Any other takes those that the settings
beside it name, else the first of the usual names that it has; a text without a begin
mark begins with the end mark, as in GPT-2, and one without a pad mark is padded by it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

SPECIALS = ("<unk>", "<s>", "</s>")
SETTINGS, MAP = "tokenizer_config.json", "special_tokens_map.json"
BEGINS = ("<s>", "<|begin_of_text|>")
ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class Marks:
  """Ids that stand for no characters.

  Attributes:
    begin: before a text.
    end: after a text.
    pad: fills up a batch.
    unknown: for what cannot be spelled; None where everything can.
  """

  begin: int
  end: int
  pad: int
  unknown: int | None = None


def settings_of(folder: pathlib.Path) -> dict[str, Any]:
  """What the files beside a tokenizer say; nothing where they are not there."""
  found = {}
  for name in (MAP, SETTINGS):
    try:
      settings = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
      continue
    if isinstance(settings, dict):
      found |= {key: value for key, value in settings.items() if value is not None}
  return found


def find(ids: Mapping[str, int], settings: Mapping[str, Any], folder) -> Marks:
  """The marks of a vocabulary.

  Args:
    ids: every token's id.
    settings: of `settings_of`.
    folder: for messages.

  Raises:
    ValueError: nothing says which id ends a text.
  """
  if all(token in ids for token in SPECIALS):
    unknown, begin, end = (ids[token] for token in SPECIALS)
    return Marks(begin, end, end, unknown)

  def one(mark: str, usual: tuple[str, ...] = ()) -> int | None:
    named = settings.get(f"{mark}_token")
    named = named.get("content") if isinstance(named, dict) else named
    return next((ids[token] for token in (named, *usual) if token in ids), None)

  end = one("eos", ENDS)
  if end is None:
    raise ValueError(
      f"expected a text tokenizer with an end mark, got none in {folder}; name it as"
      f" eos_token in {SETTINGS}"
    )
  begin, pad = one("bos", BEGINS), one("pad")
  return Marks(
    begin=end if begin is None else begin,
    end=end,
    pad=end if pad is None else pad,
    unknown=one("unk", SPECIALS[:1]),
  )
