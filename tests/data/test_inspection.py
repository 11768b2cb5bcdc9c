"""`prepare --inspect` and what it says about packing."""

import shutil

import toy_run

from lavit_jax.data import inspection


def test_page_of_prepared_and_of_tokenized_records(tokenized_data, tmp_path):
  folder = tmp_path / "data"
  shutil.copytree(tokenized_data / "train", folder)
  told = inspection.write(folder, row_length=192)
  page = (folder / "inspect.html").read_text()
  assert "64 records" in told and "packed: " in told and "% full" in told
  assert f"of {toy_run.PATCHES} patches kept" in page
  assert "Visual tokens of a picture" in page and page.count("<img ") == 48
  assert "Texts without picture" in page
  shutil.rmtree(folder / "codes")
  told = inspection.write(folder)
  assert "not tokenized yet" in told and "packed" not in told
  assert (folder / "inspect.html").read_text().count("<img ") == 48
