"""From one row of somebody's data, a mapping, to a record of ours.

Rows of JSON lines, parquet files and TFDS name the same things differently; the usual
names are known, and two flags name unusual ones.
"""

import codecs
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lavit_jax.data import bad
from lavit_jax.data.sources import conversations, files
from lavit_jax.data.text import QUESTION

IMAGES = (
  *("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img"),
  *("file_name", "image_path", "images"),
)
TEXTS = ("caption", "captions", "text", "TEXT", "txt")
IDS = ("id", "key")
ANSWERS = (*conversations.FIELDS, "question", "answer")
# Columns by which files of addresses tell that they describe pictures.
ADDRESSES = ("url", "URL", "image_url")
MEASURES = (
  *("width", "height", "WIDTH", "HEIGHT", "original_width", "original_height"),
  *("similarity", "image_phash", "clip_b32_similarity_score", "sha256", "exif"),
)
MAX_CAPTION = 10_000  # characters
MAX_TEXT = 20_000_000


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of the fields that are read; "" takes the first usual name present.

  Attributes:
    image: encoded picture, or the path to one.
    text: caption, list of captions, or text.
    image_root: folder that paths of pictures are below, "" for that of the data.
    columns: other fields that are asked for, to filter by.
  """

  image: str = ""
  text: str = ""
  image_root: str = ""
  columns: tuple[str, ...] = ()


def clean(value: Any, limit: int) -> str:
  """Checks a text.

  Args:
    value: str or bytes, in UTF-8 or with a mark of UTF-16.
    limit: most characters.

  Returns:
    The text without blanks around it.

  Raises:
    BadRecord: it is empty, too long, or not UTF-8.
  """
  try:
    if isinstance(value, bytes):
      wide = value.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
      value = value.decode("utf-16" if wide else "utf-8")
    if isinstance(value, str):
      value.encode("utf-8")  # lone surrogates of JSON escapes cannot be stored
  except UnicodeError as error:
    raise bad.BadRecord("a text that is not UTF-8", str(error)[:100]) from error
  if value is None or not isinstance(value, str):
    kind = bad.LeftOut if value is None or value != value else bad.BadRecord  # NaN
    raise kind("a missing text", f"got {type(value).__name__}")
  value = value.removeprefix("\ufeff").strip().strip("\0").strip()
  if not value:
    raise bad.LeftOut("an empty text")
  if len(value) > limit:
    detail = f"{len(value)} characters, {limit} allowed"
    raise bad.LeftOut("a text too long", detail)
  return value


def captions(value: Any) -> list[dict]:
  """Makes caption entries of a caption, a list of them, or TFDS's {"text": [...]}.

  Empty ones among several are passed over; a picture may be left without any.
  """
  if isinstance(value, Mapping):
    value = value.get("text")
  many = list(value) if hasattr(value, "__iter__") and not _is_text(value) else [value]
  found = []
  for one in many:
    one = next((one[n] for n in TEXTS if n in one), None) if _is_map(one) else one
    try:
      found.append({"task": "caption", "turns": [["", clean(one, MAX_CAPTION)]]})
    except bad.LeftOut as error:
      if error.reason == "a text too long" and len(many) == 1:
        raise
  return found


def _is_text(value: Any) -> bool:
  return isinstance(value, (str, bytes))


def _is_map(value: Any) -> bool:
  return isinstance(value, Mapping)


def conversation(turns: Any) -> list[dict]:
  """Makes an answer entry of a conversation; see `conversations`."""
  found = []
  for ask, answer in conversations.pairs(turns):
    try:
      found.append([_question(ask), clean(answer, MAX_CAPTION)])
    except bad.LeftOut as error:
      if error.reason == "a text too long":
        raise
  if not found:
    raise bad.LeftOut("an empty text", "no turn has a question and an answer")
  return [{"task": "answer", "turns": found}]


def answers(pairs: list[tuple[str, str]]) -> list[dict]:
  """Makes an answer entry of questions with their answers."""
  turns = [[_question(ask), clean(answer, MAX_CAPTION)] for ask, answer in pairs]
  return [{"task": "answer", "turns": turns}]


def _question(text: str) -> str:
  return QUESTION.format(clean(text, MAX_CAPTION))


def entries(row: Mapping, fields: Fields) -> list[dict]:
  """Makes the text entries of a row with a picture; none where it holds no text."""
  if fields.text:
    return captions(_value(row, fields.text, (), "text"))
  for name in conversations.FIELDS:
    if row.get(name) is not None and not _is_text(row[name]):
      return conversation(row[name])
  if row.get("question") is not None and row.get("answer") is not None:
    return answers([(row["question"], row["answer"])])
  for name in TEXTS:
    if row.get(name) is not None:
      return captions(row[name])
  return []


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
    {"image", "texts"} of the record schema; no texts for a picture alone.

  Raises:
    BadRecord: a field is missing or cannot be used.
  """
  if fields.image:
    given = _value(row, fields.image, (), "picture")
  else:
    # A null beside a filled column, or beside none, is a picture that never came.
    present = [name for name in IMAGES if name in row]
    filled = [name for name in present if not _is_null(row[name])]
    given = row[filled[0]] if filled else conversations.picture(row)
    if given is None and present:
      raise bad.LeftOut("a row without picture", f"its field {present[0]} is empty")
  if given is not None or fields.image:
    if _is_null(given):
      raise bad.LeftOut("a row without picture", f"its field {fields.image} is empty")
    return {"image": load(given), "texts": entries(row, fields)}
  if any(name in row for name in ADDRESSES) and any(name in row for name in MEASURES):
    raise bad.LeftOut("a row about a picture that is not there", str(list(row))[:100])
  if any(row.get(name) is not None for name in conversations.FIELDS):
    raise bad.LeftOut("a conversation without picture")
  name = fields.text or "text"
  if name not in row:
    _value(row, "", IMAGES, "picture")  # raises: neither a picture nor a text
  text = clean(row[name], MAX_TEXT)
  return {"image": b"", "texts": [{"task": "text", "turns": [["", text]]}]}


def _is_null(value: Any) -> bool:
  if _is_map(value):
    return not any(value.get(name) for name in ("bytes", "path", "url"))
  empty = isinstance(value, (list, tuple, str, bytes)) and not len(value)
  return value is None or isinstance(value, float) and value != value or empty


def encoded(value: Any, root: str = "", below: str = "") -> bytes:
  """Takes the picture from a column: bytes, {"bytes", "path"}, base64 or a path."""
  if isinstance(value, (list, tuple)) and len(value) == 1:
    value = value[0]
  if _is_map(value) and value.get("bytes"):
    value = value["bytes"]
  if isinstance(value, (bytes, bytearray, memoryview)):
    return bytes(value)
  return files.picture(root, below, value)
