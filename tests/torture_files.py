"""Every kind of JSON file and tar that people have, with what becomes of each.

python tests/torture_files.py      the outcomes, and those of webdataset, as a table
"""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import sys
import tarfile
import tempfile
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import web_data  # noqa: E402  (the folder of tests must be known first)

PICTURE = "a.jpg"
ROW = {"image": PICTURE, "caption": "a caption"}
TEXT = {"text": "a document"}


@dataclasses.dataclass(frozen=True)
class Case:
  """One file.

  Attributes:
    name: of the file.
    data: its bytes.
    kept: records it gives.
    others: counts of what it does not keep, by reason.
    texts: entries of the first record, or None for anything.
  """

  name: str
  data: bytes
  kept: int = 1
  others: dict = dataclasses.field(default_factory=dict)
  texts: int | None = None


def line(row) -> bytes:
  return row if isinstance(row, bytes) else json.dumps(row).encode()


def one(row, kept: int = 1, texts: int | None = None, **others) -> Case:
  """A file of one line beside a sound one."""
  named = {reason.replace("_", " "): count for reason, count in others.items()}
  return Case("a.jsonl", b"\n".join([line(row), line(TEXT)]), kept + 1, named, texts)


def turns(*said: tuple[str, str]) -> list[dict]:
  return [{"from": who, "value": words} for who, words in said]


def chat(*said: tuple[str, object]) -> list[dict]:
  return [{"role": who, "content": content} for who, content in said]


ASKED = turns(("human", "<image>\nwhat?"), ("gpt", "a cat"))
SHOWN = [{"type": "image_url", "image_url": {"url": PICTURE}}]


def rows() -> dict[str, Case]:
  """Single rows of JSON lines."""
  url = (
    "data:image/jpeg;base64,"
    + __import__("base64").b64encode(web_data.jpeg(0)).decode()
  )
  parts = [*SHOWN, {"type": "text", "text": "what?"}]
  inline = [{"type": "image_url", "image_url": {"url": url}}, parts[1]]
  address = {"url": "http://e.com/a.jpg", "text": "x", "width": 9, "similarity": 0.3}
  two = [*SHOWN, *parts]
  return {
    "a caption": one(ROW, texts=1),
    "captions": one({"image": PICTURE, "captions": ["one", "two"]}, texts=2),
    "captions, one empty": one({"image": PICTURE, "captions": ["", "two"]}, texts=1),
    "captions, one null": one({"image": PICTURE, "captions": [None, "x"]}, texts=1),
    "captions, all empty": one({"image": PICTURE, "captions": ["", " "]}, texts=0),
    "an empty caption": one({"image": PICTURE, "caption": ""}, texts=0),
    "a null caption": one({"image": PICTURE, "caption": None}, texts=0),
    "no caption": one({"image": PICTURE}, texts=0),
    "a long caption": one(
      {"image": PICTURE, "caption": "x" * 10_001}, 0, a_text_too_long=1
    ),
    "a caption of captions": one({"image": PICTURE, "captions": [{"caption": "x"}]}),
    "a number as caption": one({"image": PICTURE, "caption": 3}, 0, a_missing_text=1),
    "question and answer": one({"image": PICTURE, "question": "q", "answer": "a"}),
    "LLaVA": one({"image": PICTURE, "conversations": ASKED}, texts=1),
    "LLaVA without picture": one(
      {"conversations": ASKED}, 0, a_conversation_without_picture=1
    ),
    "LLaVA, a question left": one(
      {"image": PICTURE, "conversations": [*ASKED, *turns(("human", "and?"))]}
    ),
    "LLaVA, the model first": one(
      {"image": PICTURE, "conversations": [*turns(("gpt", "hi")), *ASKED]}
    ),
    "LLaVA, a system": one(
      {"image": PICTURE, "conversations": [*turns(("system", "be good")), *ASKED]}
    ),
    "LLaVA, an answer empty": one(
      {"image": PICTURE, "conversations": turns(("human", "q"), ("gpt", ""))},
      *(0,),
      an_empty_text=1,
    ),
    "LLaVA, a stranger": one(
      {"image": PICTURE, "conversations": turns(("cat", "q"), ("gpt", "a"))},
      *(0,),
      a_broken_conversation=1,
    ),
    "LLaVA, no list": one(
      {"image": PICTURE, "conversations": 7}, 0, a_broken_conversation=1
    ),
    "OpenAI": one({"messages": chat(("user", parts), ("assistant", "a cat"))}, texts=1),
    "OpenAI, inline": one({"messages": chat(("user", inline), ("assistant", "a"))}),
    "OpenAI, images beside": one(
      {"images": [PICTURE], "messages": chat(("user", "<image>q"), ("assistant", "a"))}
    ),
    "OpenAI, answer in parts": one(
      {"messages": chat(("user", parts), ("assistant", [parts[1]]))}
    ),
    "OpenAI, two pictures": one(
      {"messages": chat(("user", two), ("assistant", "a"))},
      *(0,),
      a_row_of_several_pictures=1,
    ),
    "OpenAI, text alone": one(
      {"messages": chat(("user", "q"), ("assistant", "a"))},
      *(0,),
      a_conversation_without_picture=1,
    ),
    "a failed download": one(
      {"image": None, "caption": "x"}, 0, a_row_without_picture=1
    ),
    "a path of nothing": one({"image": "", "caption": "x"}, 0, a_row_without_picture=1),
    "an address alone": one(
      {"image": "https://e.com/a.jpg", "caption": "x"},
      *(0,),
      a_picture_by_its_address_only=1,
    ),
    "metadata of pictures": one(address, 0, a_row_about_a_picture_that_is_not_there=1),
    "a picture in base64": one({"image": url.partition(",")[2], "caption": "x"}),
    "a data URL": one({"image": url, "caption": "x"}),
    "a broken data URL": one(
      {"image": "data:image/png;base64,####", "caption": "x"}, 0, a_broken_line=1
    ),
    "a path in a list": one({"image": [PICTURE], "caption": "x"}),
    "a path in an object": one(
      {"image": {"path": PICTURE, "bytes": None}, "text": "x"}
    ),
    "a path that is missing": one({"image": "b.jpg", "text": "x"}, 0, a_missing_file=1),
    "a path that leaves": one(
      {"image": "../a.jpg", "text": "x"}, 0, a_path_outside_its_folder=1
    ),
    "a page of the web": one({"text": "words", "url": "http://e.com", "score": 3}),
    "an empty document": one({"text": " \n"}, 0, an_empty_text=1),
    "a null document": one({"text": None}, 0, a_missing_text=1),
    "a lone surrogate": one(b'{"text": "\\ud800"}', 0, a_text_that_is_not_UTF_8=1),
    "nothing known": one({"label": 3}, 0, a_row_without_picture=1),
    "a scalar": one(b"7", 0, a_broken_line=1),
    "a null": one(b"null", 0, a_broken_line=1),
    "half a line": one(b'{"text": "cut', 0, a_broken_line=1),
    "not a number": one(b'{"text": "x", "score": NaN}'),
    "deep nesting": one(b'{"text": ' * 5000, 0, a_broken_line=1),
  }


def many(number: int) -> list[dict]:
  words = 'brackets ] } [ { and "quotes" \\ in it'
  return [{"id": "same", "text": f"{i} {words}"} for i in range(number)]


def zstd(data: bytes) -> bytes:
  import pyarrow

  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
    stream.write(data)
  return sink.getvalue().to_pybytes()


def json_files() -> dict[str, Case]:
  """Whole files of JSON."""
  found = many(30)
  lines = b"\n".join(map(line, found)) + b"\n"
  whole, pretty = json.dumps(found).encode(), json.dumps(found, indent=2).encode()
  mark, wide = b"\xef\xbb\xbf", json.dumps(found, ensure_ascii=False).encode()
  packed = gzip.compress(lines)
  short = {"a list cut short": 1}
  names = {".gz": gzip, ".bz2": bz2, ".xz": lzma}
  return {
    "lines": Case("a.jsonl", lines, 30),
    "lines of Windows": Case("a.jsonl", lines.replace(b"\n", b"\r\n"), 30),
    "lines without a last break": Case("a.jsonl", lines.rstrip(), 30),
    "lines with empty ones": Case("a.jsonl", lines.replace(b"\n", b"\n\n \n"), 30),
    "lines with a byte order mark": Case("a.jsonl", mark + lines, 30),
    "lines in .json": Case("a.json", lines, 30),
    "lines in .ndjson": Case("a.ndjson", lines, 30),
    "a list": Case("a.json", whole, 30),
    "a list, indented": Case("a.json", pretty, 30),
    "a list with a mark": Case("a.json", mark + whole, 30),
    "a list in .jsonl": Case("a.jsonl", whole, 30),
    "a list of wide signs": Case("a.json", wide, 30),
    "a list cut short": Case("a.json", whole[: len(whole) // 2], 15, short),
    "a list without its end": Case("a.json", whole[:-1], 30, short),
    "a list of other things": Case(
      "a.json", b'["x", {"text": "y"}, [1, 2], "z"]', 1, {"a broken line": 3}
    ),
    **{
      f"lines in {end}": Case(f"a.jsonl{end}", library.compress(lines), 30)
      for end, library in names.items()
    },
    "a list in .gz": Case("a.json.gz", gzip.compress(whole), 30),
    "lines in .zst": Case("a.jsonl.zst", zstd(lines), 30),
    "lines in two .gz": Case("a.jsonl.gz", packed + packed, 60),
    "lines in a .gz cut short": Case(
      "a.jsonl.gz", packed[:-6], 30, {"a damaged compressed file": 1}
    ),
    "lines in a .gz that is none": Case(
      "a.jsonl.gz", lines, 0, {"a damaged compressed file": 1}
    ),
  }


def tar(members, change: Callable[[bytes], bytes] = lambda data: data) -> bytes:
  """A tar of (name, bytes) or (TarInfo, bytes)."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, data in members:
      info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return change(buffer.getvalue())


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, to
  return info


def tars() -> dict[str, Case]:
  """Tars: each holds one sound record, 0.jpg with 0.txt, and something else."""
  jpeg, sound = web_data.jpeg(0), [("0.jpg", web_data.jpeg(1)), ("0.txt", b"x")]

  def of(*members, kept=1, texts=None, form=tarfile.PAX_FORMAT, **others) -> Case:
    del form
    named = {reason.replace("_", " "): count for reason, count in others.items()}
    return Case("0.tar", tar([*members, *sound]), kept, named, texts)

  other = {"a file of another kind": 1}
  long = "x" * 300
  plain = tar(web_data.pair(0))
  return {
    "a record": of(("1.jpg", jpeg), ("1.txt", b"one"), kept=2),
    "a picture alone": of(("1.jpg", jpeg), kept=2, texts=0),
    "a text alone": of(("1.txt", b"one"), a_text_without_picture=1),
    "fields before the ending": of(
      ("1.image.jpg", jpeg), ("1.caption.txt", b"one"), kept=2, texts=1
    ),
    "a mask beside the picture": of(
      *(("1.image.jpg", jpeg), ("1.mask.png", jpeg), ("1.txt", b"one")),
      kept=2,
      a_second_picture_of_its_key=1,
    ),
    "dots in keys": of(
      *(("a.b.jpg", jpeg), ("a.b.txt", b"one"), ("a.c.jpg", jpeg), ("a.c.txt", b"2")),
      kept=3,
    ),
    "big letters": of(("1.JPG", jpeg), ("1.TXT", b"one"), kept=2, texts=1),
    "folders": of(("a/1.jpg", jpeg), ("b/1.jpg", jpeg), ("b/1.txt", b"b"), kept=3),
    "a dot before the path": of(("./1.jpg", jpeg), ("./1.txt", b"one"), kept=2),
    "an absolute path": of(("/a/1.jpg", jpeg), ("/a/1.txt", b"one"), kept=2),
    "a caption file": of(("1.jpg", jpeg), ("1.caption", b"one"), kept=2, texts=1),
    "a caption in JSON": of(
      ("1.jpg", jpeg), ("1.json", b'{"caption": "one"}'), kept=2, texts=1
    ),
    "JSON without a caption": of(
      ("1.jpg", jpeg), ("1.json", b'{"width": 40}'), kept=2, texts=0
    ),
    "a text with a mark": of(("1.jpg", jpeg), ("1.txt", b"\xef\xbb\xbfx"), kept=2),
    "a text in UTF-16": of(("1.jpg", jpeg), ("1.txt", "é".encode("utf-16")), kept=2),
    "a text in Latin-1": of(
      ("1.jpg", jpeg), ("1.txt", "é".encode("latin-1")), a_text_that_is_not_UTF_8=1
    ),
    "an empty text": of(("1.jpg", jpeg), ("1.txt", b" \n"), kept=2, texts=0),
    "a Mac's own file": of(("._1.jpg", b"x"), **{"a_file_of_another_kind": 1}),
    "a Mac's own folder": of(("__MACOSX/._1.jpg", b"x"), a_file_of_another_kind=1),
    "a class label": of(("1.jpg", jpeg), ("1.cls", b"7"), kept=2, **_under(other)),
    "features": of(("1.jpg", jpeg), ("1.npy", b"x"), kept=2, **_under(other)),
    "a folder": of((special("a", tarfile.DIRTYPE), b"")),
    "a link": of((special("1.jpg", tarfile.SYMTYPE, "0.jpg"), b""), a_link_in_a_tar=1),
    "a device": of((special("1.jpg", tarfile.CHRTYPE), b""), a_link_in_a_tar=1),
    "a long name": of((f"{long}.jpg", jpeg), (f"{long}.txt", b"x"), kept=2),
    "a name in other letters": of(("é.jpg", jpeg), ("é.txt", b"x"), kept=2),
    "a wrong ending": of(("1.png", jpeg), ("1.txt", b"x"), kept=2),
    "a page instead": of(
      ("1.jpg", b"<html>"), ("1.txt", b"x"), no_known_picture_format=1
    ),
    "no bytes": of(("1.jpg", b""), ("1.txt", b"x"), a_picture_of_zero_bytes=1),
    "a name twice": of(*sound, kept=1, a_duplicate_key=2),
    "broken JSON": of(("1.jpg", jpeg), ("1.json", b"{"), a_broken_line=1),
    "no end mark": Case(
      "0.tar",
      plain[: len(plain.rstrip(b"\0")) // 512 * 512 + 512],
      *(1, {"a tar without end mark": 1}),
    ),
    "cut in a member": Case("0.tar", tar(sound)[:700], 0, {"a tar cut short": 1}),
    "in .gz": Case("0.tar.gz", gzip.compress(plain)),
    "in .tgz": Case("0.tgz", gzip.compress(plain)),
    "in .bz2": Case("0.tar.bz2", bz2.compress(plain)),
    "in .zst": Case("0.tar.zst", zstd(plain)),
    "in a .gz without its end": Case(
      "0.tar.gz",
      gzip.compress(plain)[:-6],
      *(1, {"a compressed file without its end": 1}),
    ),
    "in a .gz cut short": Case(
      "0.tar.gz",
      gzip.compress(tar(sound), 0)[:900],
      *(0, {"a damaged compressed file": 1, "a tar cut short": 1}),
    ),
    "nothing": Case("0.tar", b"", 0, {"no tar file": 1}),
    "other bytes": Case("0.tar", b"hello" * 3000, 0, {"a hole in a tar": 1}),
  }


def _under(named: dict) -> dict:
  return {reason.replace(" ", "_"): count for reason, count in named.items()}


def webdataset(path: pathlib.Path) -> str:
  """What webdataset does with a tar: samples read, or the name of its error."""
  import webdataset as library

  try:
    found = library.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return f"{sum(1 for _ in found)} samples"
  except Exception as error:  # whatever it raises is the answer
    return type(error).__name__


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    for name, case in tars().items():
      path = pathlib.Path(folder) / case.name
      path.write_bytes(case.data)
      print(f"{name:28} kept {case.kept} {case.others} | {webdataset(path)}")


if __name__ == "__main__":
  main()
