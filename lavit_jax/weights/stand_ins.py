"""Files that stand where weights should be: pointers, web pages, error messages."""

import pathlib

# How a file begins, without leading white space and in lower case, and what it is.
_BEGINNINGS = (
  (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull in its folder"),
  (b"# xet version", "a Git Xet pointer; download the file itself"),
  (b"<!doctype", "a web page; download the file itself, logged in where it asks"),
  (b"<html", "a web page; download the file itself, logged in where it asks"),
  (b"<?xml", "a server's error message; download the file again"),
  (b"<error", "a server's error message; download the file again"),
)


def refuse(path: pathlib.Path) -> None:
  """Says what a file is when it is none of weights; others are left to their reader.

  Raises:
    ValueError: it is empty, a pointer to the weights, or a page about them.
  """
  try:
    with path.open("rb") as stream:
      first = stream.read(256)
  except OSError:
    return  # the reader's own complaint names the file
  text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  for beginning, kind in _BEGINNINGS:
    if text.startswith(beginning):
      raise ValueError(f"expected weights in {path}, got {kind}")
