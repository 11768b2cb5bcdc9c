"""From one row of somebody's data, a mapping, to a record of ours.

Rows of JSON lines, parquet files and TFDS name the same things differently; the usual
names are known, and two flags name unusual ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lavit_jax.data import bad
from lavit_jax.data.text import QUESTION

IMAGES = (
  *("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img"),
  *("file_name", "image_path"),
)
TEXTS = ("caption", "captions", "text", "TEXT", "txt")
IDS = ("id", "key")
MAX_CAPTION = 10_000  # characters
MAX_TEXT = 20_000_000


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of the fields that are read; "" takes the first usual name present.

  Attributes:
    image: encoded picture, or the path to one.
    text: caption, list of captions, or text.
  """

  image: str = ""
  text: str = ""


def clean(value: Any, limit: int) -> str:
  """Checks a text.

  Args:
    value: str or UTF-8 bytes.
    limit: most characters.

  Returns:
    The text without blanks around it.

  Raises:
    BadRecord: it is empty, too long, or not UTF-8.
  """
  try:
    if isinstance(value, bytes):
      value = value.decode("utf-8")
    if isinstance(value, str):
      value.encode("utf-8")  # lone surrogates of JSON escapes cannot be stored
  except UnicodeError as error:
    raise bad.BadRecord("a text that is not UTF-8", str(error)[:100]) from error
  if value is None or not isinstance(value, str):
    raise bad.BadRecord("a missing text", f"got {type(value).__name__}")
  value = value.removeprefix("\ufeff").strip().strip("\0")
  if not value:
    raise bad.BadRecord("an empty text")
  if len(value) > limit:
    raise bad.BadRecord("a text too long", f"{len(value)} characters, {limit} allowed")
  return value


def captions(value: Any) -> list[dict]:
  """Makes caption entries of a caption, a list of them, or TFDS's {"text": [...]}."""
  if isinstance(value, Mapping):
    value = value.get("text")
  many = list(value) if hasattr(value, "__iter__") and not _is_text(value) else [value]
  if not many:
    raise bad.BadRecord("an empty text")
  many = [one.get("text") if isinstance(one, Mapping) else one for one in many]
  return [{"task": "caption", "turns": [["", clean(one, MAX_CAPTION)]]} for one in many]


def _is_text(value: Any) -> bool:
  return isinstance(value, (str, bytes))


def conversation(turns: Any) -> list[dict]:
  """Makes an answer entry of LLaVA's [{"from": "human", "value"}, {"from": "gpt"}]."""
  try:
    said = [(turn["from"], turn["value"]) for turn in turns]
  except (TypeError, KeyError) as error:
    raise bad.BadRecord("a broken conversation", repr(error)) from error
  asks, answers = said[0::2], said[1::2]
  if not said or len(asks) != len(answers) or {who for who, _ in asks} != {"human"}:
    raise bad.BadRecord("a broken conversation", str([who for who, _ in said])[:100])
  pairs = []
  for (_, ask), (_, answer) in zip(asks, answers):
    ask = clean(ask, MAX_CAPTION).replace("<image>", "").strip()
    pairs.append([_question(ask), clean(answer, MAX_CAPTION)])
  return [{"task": "answer", "turns": pairs}]


def _question(text: str) -> str:
  return QUESTION.format(clean(text, MAX_CAPTION))


def entries(row: Mapping, fields: Fields) -> list[dict]:
  """Makes the text entries of a row with a picture."""
  if not fields.text and row.get("conversations") is not None:
    return conversation(row["conversations"])
  if not fields.text and {"question", "answer"} <= row.keys():
    answer = clean(row["answer"], MAX_CAPTION)
    return [{"task": "answer", "turns": [[_question(row["question"]), answer]]}]
  return captions(_value(row, fields.text, TEXTS, "text"))


def _value(row: Mapping, name: str, usual: tuple[str, ...], what: str) -> Any:
  for known in (name,) if name else usual:
    if known in row:
      return row[known]
  wanted = repr(name) if name else f"one of {', '.join(usual)}"
  found = ", ".join(map(str, row))[:100]
  raise bad.BadRecord(f"a row without {what}", f"expected {wanted}, got {found}")


def key_of(row: Mapping, otherwise: str) -> str:
  """Names a row by its own id where it has one."""
  for name in IDS:
    value = row.get(name)
    if isinstance(value, bytes):
      value = value.decode("utf-8", "replace")
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
      return str(value)
  return otherwise


def record(row: Mapping, fields: Fields, load: Callable[[Any], bytes]) -> dict:
  """Makes a record of a row.

  Args:
    row: field names and values.
    fields: which fields to read.
    load: from the value of the picture's field to the encoded picture.

  Returns:
    {"image", "texts"} of the record schema.

  Raises:
    BadRecord: a field is missing or cannot be used.
  """
  pictured = fields.image or any(name in row for name in IMAGES)
  if pictured:
    found = _value(row, fields.image, IMAGES, "picture")
    return {"image": load(found), "texts": entries(row, fields)}
  name = fields.text or "text"
  if name not in row:
    _value(row, "", IMAGES, "picture")  # raises: neither a picture nor a text
  text = clean(row[name], MAX_TEXT)
  return {"image": b"", "texts": [{"task": "text", "turns": [["", text]]}]}


def encoded(value: Any) -> bytes:
  """Takes the bytes of a picture from a column: binary, or {"bytes", "path"}."""
  if isinstance(value, Mapping):
    value = value.get("bytes")
  if isinstance(value, (bytes, bytearray, memoryview)):
    return bytes(value)
  raise bad.BadRecord("a row without picture", f"got {type(value).__name__}")
