"""The torture set of pictures: what each becomes, and that no tool would read more."""

import numpy as np
import pytest
import torture_pictures
import web_data

from lavit_jax import prepare
from lavit_jax.data import bad, images, preparation, records
from lavit_jax.data.sources import fields

CASES = torture_pictures.cases()
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")


def test_there_are_many():
  assert len(CASES) >= 70


@pytest.mark.parametrize("name", list(CASES))
def test_a_picture_becomes_what_it_should(name):
  case = CASES[name]
  if case.outcome != torture_pictures.KEPT:
    with pytest.raises(bad.BadRecord) as caught:
      images.check(case.data)
    assert caught.value.reason == case.outcome
    return
  assert images.check(case.data) == case.size == images.upright_size(case.data)
  pixels = images.decode_full(case.data)
  assert pixels.shape == (*case.size[::-1], 3)
  np.testing.assert_array_equal(images.decode(case.data, 16), images.resize(pixels, 16))
  if case.values is not None:
    np.testing.assert_array_equal(pixels[0, ::4, 0], case.values)
  else:
    assert pixels.std() > 10


@pytest.mark.parametrize("name", list(CASES))
def test_a_picture_is_bad_only_where_pillow_fails_too(name):
  case = CASES[name]
  try:
    images.check(case.data)
  except bad.LeftOut:
    return  # sound, but not wanted
  except bad.BadRecord as error:
    # Without a known white, what Pillow makes of it is all black and white.
    clipped = error.reason == "a picture of unknown depth"
    assert torture_pictures.pillow(case.data) != "reads" or clipped


def test_all_of_them_in_one_tar_add_up(tmp_path):
  members = [
    (f"{i:03d}.{field}", data)
    for i, case in enumerate(CASES.values())
    for field, data in (("jpg", case.data), ("txt", b"a caption"))
  ]
  path = web_data.tar(tmp_path / "all.tar", members)
  plan = preparation.plan(
    "webdataset", [str(path)], str(tmp_path / "out"), fields.Fields(), 1
  )
  manifest = prepare.run(plan, max_bad=1.0)
  kept = [case for case in CASES.values() if case.outcome == torture_pictures.KEPT]
  assert manifest["count"] == len(kept)
  prepared = records.Records(tmp_path / "out")
  np.testing.assert_array_equal(prepared.size, [case.size[::-1] for case in kept])
  tally = preparation.tally_of(plan.jobs[0]).as_dict()
  assert tally["good"] + tally["bad"] + tally["left_out"] == len(CASES)
  size = tally["bytes"]
  assert size["kept"] + size["bad"] + size["left_out"] == path.stat().st_size
