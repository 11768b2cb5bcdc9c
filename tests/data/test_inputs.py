"""Which files of a command line are read, and that every other one is named."""

import os

import pytest
import web_data

from lavit_jax.core import command_line
from lavit_jax.data import bad, preparation
from lavit_jax.data.sources import fields, folder, webdataset


def reasons(listing):
  return {os.path.basename(item.key): item.found.reason for item in listing.unused}


def test_commas_in_braces_do_not_cut():
  assert command_line.split("a/{x,y}.tar, b.tar,") == ["a/{x,y}.tar", "b.tar"]


@pytest.mark.parametrize(
  "pattern,expected",
  [
    ("a", ["a"]),
    ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
    ("{2..0}", ["2", "1", "0"]),
    ("{a,b}/{1,2}", ["a/1", "a/2", "b/1", "b/2"]),
    ("{a,{b,c}}", ["a", "b", "a", "c"]),
    ("{x}", ["{x}"]),
  ],
)
def test_braces_are_a_shell_s(pattern, expected):
  assert sorted(command_line.braces(pattern)) == sorted(expected)


def test_every_tar_of_a_folder_is_read_or_named(tmp_path):
  web_data.tars(tmp_path / "in", 1, 2)
  web_data.tar(tmp_path / "else" / "2.tar", web_data.pair(5))
  (tmp_path / "in" / "2.tar").symlink_to(tmp_path / "else" / "2.tar")
  (tmp_path / "in" / "again.tar").symlink_to(tmp_path / "in" / "00000.tar")
  (tmp_path / "in" / "gone.tar").symlink_to(tmp_path / "nowhere.tar")
  (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
  (tmp_path / "in" / "more").symlink_to(tmp_path / "else")
  for name in ("._00000.tar", "00000_stats.json", "notes.md"):
    (tmp_path / "in" / name).write_bytes(b"x")
  found = webdataset.parts([str(tmp_path / "in")], 1)
  assert [os.path.basename(part.path) for part in found.parts] == [
    *("00000.tar", "2.tar")
  ]
  expected = {
    "again.tar": "a second name of an input",
    "gone.tar": "a missing file",
    "loop": "a folder read already",
    "._00000.tar": bad.OTHER_KIND,
    "00000_stats.json": bad.OTHER_KIND,
    "notes.md": bad.OTHER_KIND,
  }
  named = reasons(found)
  assert named.pop("2.tar") == "a second name of an input"  # by the folder's link
  assert named == expected


def test_compressed_tars_are_read(tmp_path):
  import bz2
  import gzip
  import lzma

  plain = web_data.tar(tmp_path / "0.tar", web_data.pair(0)).read_bytes()
  packed = {".tar.gz": gzip, ".tar.bz2": bz2, ".tar.xz": lzma, ".tgz": gzip}
  for i, (suffix, library) in enumerate(packed.items()):
    (tmp_path / f"packed{i}{suffix}").write_bytes(library.compress(plain))
  listing = webdataset.parts([str(tmp_path)], 1)
  found = [list(webdataset.read(part, fields.Fields())) for part in listing.parts]
  assert len(found) == 5
  assert all([item.key for item in items] == ["00000"] for items in found)
  assert all(items[0].found["image"] == web_data.jpeg(0) for items in found)


def test_a_missing_file_of_a_range_is_an_error(tmp_path):
  web_data.tars(tmp_path, 2, 1)
  pattern = f"{tmp_path}/{{00000..00002}}.tar"
  with pytest.raises(ValueError, match="expected the input .*00002.tar"):
    webdataset.parts([pattern], 1)
  found = webdataset.parts([pattern.replace("2}", "1}")], 1)
  assert len(found.parts) == 2


def test_a_name_with_signs_is_taken_as_it_is(tmp_path):
  web_data.tar(tmp_path / "set[1].tar", web_data.pair(0))
  assert len(webdataset.parts([str(tmp_path / "set[1].tar")], 1).parts) == 1


def test_a_link_to_itself_gives_each_picture_once(tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").write_bytes(web_data.jpeg(0))
  (tmp_path / "photos" / "a.txt").write_text("one")
  (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
  (part,) = folder.parts([str(tmp_path / "photos")], 10).parts
  found = list(folder.read(part, fields.Fields()))
  assert [item.key for item in found] == ["self", "a.jpg"]
  assert found[0].found.reason == "a folder read already"


def test_names_stay_when_inputs_are_added_or_move(tmp_path):
  web_data.tars(tmp_path / "a", 2, 1)
  web_data.tars(tmp_path / "b", 2, 1, start=9)
  target = str(tmp_path / "out")

  def plan(*names):
    given = [str(tmp_path / name) for name in names]
    found = preparation.plan("webdataset", given, target, fields.Fields(), 1)
    preparation.Run(found).close()
    return [job.part.name for job in found.jobs]

  assert plan("a") == ["00000", "00001"]
  assert plan("a", "b") == ["00000", "00001", "b/00000", "b/00001"]
  os.rename(tmp_path / "a", tmp_path / "moved")
  assert plan("moved") == ["00000", "00001"]


def test_a_copy_of_an_input_is_not_taken_twice(tmp_path):
  path = web_data.tar(tmp_path / "a" / "0.tar", web_data.pair(0))
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "0.tar").write_bytes(path.read_bytes())
  target, given = str(tmp_path / "out"), [str(tmp_path / "a")]
  first = preparation.plan("webdataset", given, target, fields.Fields(), 1)
  preparation.Run(first).close()
  given.append(str(tmp_path / "b"))
  again = preparation.plan("webdataset", given, target, fields.Fields(), 1)
  assert [job.part.name for job in again.jobs] == ["0"]
  assert again.unused[0].found.reason == "a copy of another input"


def test_files_that_metadata_does_not_name_are_named(tmp_path):
  for name in ("a.jpg", "b.jpg"):
    (tmp_path / name).write_bytes(web_data.jpeg(0))
  web_data.lines(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "x"}])
  found = folder.parts([str(tmp_path)], 10)
  assert len(found.parts) == 1
  assert reasons(found) == {"b.jpg": "a file that metadata.jsonl does not name"}
