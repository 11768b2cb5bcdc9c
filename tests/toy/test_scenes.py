"""The drawn scenes: determinism, held-out pairs, masks, captions, answers."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from lavit_jax.toy import scene_texts, scenes, world


def test_record_depends_on_seed_split_and_index_only():
  first, again = scenes.Scenes("train", 50, seed=3), scenes.Scenes("train", 90, seed=3)
  assert [first[i] for i in (7, 3)] == [again[7], again[3]]
  assert first[4]["image"] != scenes.Scenes("train", 50, seed=4)[4]["image"]
  assert first[4]["image"] != scenes.Scenes("test", 50, seed=3)[4]["image"]
  assert len({first[i]["id"] for i in range(50)}) == 50


def test_held_out_pairs_occur_in_novel_only():
  for split in world.SPLITS:
    source = scenes.Scenes(split, 400)
    drawn = [source.scene(i).objects for i in range(400)]
    pairs = {(o.color, o.shape) for objects in drawn for o in objects}
    assert pairs == set(world.HELD_OUT if split == "novel" else world.SEEN)


def test_training_texts_never_name_a_held_out_pair():
  source = scenes.Scenes("train", 300)
  texts = [str(source[i]["texts"]) for i in range(300)]
  for color, shape in world.HELD_OUT:
    assert not any(f"{color} {shape}" in text for text in texts)


def test_counts_follow_their_shares():
  source = scenes.Scenes("train", 3000)
  counts = [len(source.scene(i).objects) for i in range(3000)]
  shares = np.bincount(counts, minlength=7) / 3000
  np.testing.assert_allclose(shares, world.COUNT_SHARES, atol=0.03)
  single = scenes.Scenes("test", 20, num_objects=1)
  assert {len(single.scene(i).objects) for i in range(20)} == {1}


@pytest.mark.parametrize("size", [64, 128])
def test_mask_is_where_picture_differs_from_its_background(size):
  source = scenes.Scenes("train", 60, size=size)
  patch = size // scenes.GRID
  for i in range(60):
    scene, picture = source.scene(i), source.picture(i)
    empty = scenes.draw(dataclasses.replace(scene, objects=()), size)
    differs = (picture.image != empty.image).any(axis=-1)
    np.testing.assert_array_equal(picture.pixel_mask, differs)
    blocks = differs.reshape(scenes.GRID, patch, scenes.GRID, patch).any(axis=(1, 3))
    np.testing.assert_array_equal(picture.patch_mask, blocks.reshape(-1))
    assert picture.patch_mask.sum() == 4 * len(scene.objects)


def test_every_shape_touches_its_four_patches_wherever_it_moves():
  for shape in world.SHAPES:
    for dy in (-3, 3):
      for dx in (-3, 3):
        thing = world.SceneObject("cyan", shape, "small", 1, 2, dy, dx)
        pixels = scenes.draw(world.Scene((thing,), "dark")).pixel_mask
        blocks = pixels.reshape(8, 8, 8, 8).any(axis=(1, 3))
        assert blocks[3:5, 6:8].all() and blocks.sum() == 4


def test_labels_name_the_object_of_each_patch():
  objects = (world.SceneObject("blue", "cross", "large", 0, 2),)
  labels = scenes.patch_labels(world.Scene(objects, "dark"))
  color = np.full((8, 8), 8)
  shape = np.full((8, 8), 255)
  color[0:2, 6:8], shape[0:2, 6:8] = 2, 3
  np.testing.assert_array_equal(labels["color"].reshape(8, 8), color)
  np.testing.assert_array_equal(labels["shape"].reshape(8, 8), shape)


def test_record_holds_the_picture_and_plain_truth():
  source = scenes.Scenes("test", 5)
  record = source[2]
  image = np.asarray(Image.open(io.BytesIO(record["image"])))
  np.testing.assert_array_equal(image, source.picture(2).image)
  assert record["truth"] == source.scene(2).truth()
  assert {name: len(ids) for name, ids in record["labels"].items()} == {
    "color": 64,
    "shape": 64,
  }


@pytest.mark.parametrize("num_objects", [None, 1])
def test_captions_parse_back_to_the_scene(num_objects):
  source = scenes.Scenes("train", 300, num_objects=num_objects)
  placed, longest = 0, 0
  for i in range(300):
    scene = source.scene(i)
    for paraphrase in range(3):
      text = scene_texts.caption(scene, np.random.default_rng((i, paraphrase)))
      parsed = scene_texts.parse_caption(text)
      assert [p[:2] for p in parsed] == [(o.color, o.shape) for o in scene.objects]
      if parsed and parsed[0][2] is not None:
        assert [p[2:] for p in parsed] == [(o.row, o.col) for o in scene.objects]
        placed += 1
      assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
      longest = max(longest, len(text.split()))
  assert placed / 900 >= 0.75
  assert longest <= (11 if num_objects == 1 else 56)


def test_parse_caption_reads_positions_by_hand():
  text = "A small red ring at the top, an orange star in the bottom right and a ball"
  assert scene_texts.parse_caption(text) == [
    ("red", "ring", 0, 1),
    ("orange", "star", 2, 2),
  ]
  assert scene_texts.parse_caption("on the left there is a pink cross") == [
    ("pink", "cross", 1, 0)
  ]
  assert scene_texts.parse_caption("an empty scene") == []


def _expected(question: str, objects: list[dict]) -> str:
  """Answers a question from the truth, by its words."""
  words = set(re.findall(r"[a-z]+", question))
  colors, shapes = words & set(world.COLORS), words & set(world.SHAPES)
  shapes |= {s for s in world.SHAPES if {f"{s}s", f"{s}es"} & words}
  where = re.search(r"(?:in|at|on) the ([a-z ]+)\?", question)
  about = [
    o
    for o in objects
    if (not colors or o["color"] in colors)
    and (not shapes or o["shape"] in shapes)
    and (not where or scene_texts.POSITIONS[o["row"]][o["col"]] == where.group(1))
  ]
  if question.startswith("how many"):
    return "zero one two three four five six".split()[len(about)]
  if question.startswith("is there"):
    return "yes" if about else "no"
  assert len(about) == 1, question  # exactly one object can be meant
  if question.startswith("where"):
    return scene_texts.POSITIONS[about[0]["row"]][about[0]["col"]]
  return about[0]["color" if question.startswith("what color") else "shape"]


def test_answers_follow_from_the_truth():
  source = scenes.Scenes("train", 400)
  kinds, yes_no = set(), []
  for i in range(400):
    record = source[i]
    objects = record["truth"]["objects"]
    entries = [e for e in record["texts"] if e["task"] == "answer"]
    prompts = [prompt for e in entries for prompt, _ in e["turns"]]
    assert 1 <= len(entries) <= 2 and len(prompts) == len(set(prompts))
    for entry in entries:
      assert len(entry["turns"]) == len(entry["kinds"]) == len(set(entry["kinds"]))
      kinds |= set(entry["kinds"])
      for prompt, answer in entry["turns"]:
        question = re.fullmatch(r"Question: (.*) Answer:", prompt).group(1)
        assert _expected(question, objects) == answer
        yes_no += [answer] if answer in ("yes", "no") else []
  assert kinds == set(scene_texts.KINDS)
  assert 0.4 < yes_no.count("yes") / len(yes_no) < 0.6


def test_questions_cover_distinct_kinds():
  source = scenes.Scenes("train", 30, num_objects=4)
  for i in range(30):
    asked = scene_texts.questions(source.scene(i), np.random.default_rng(i))
    kinds = [kind for kind, _, _ in asked]
    assert len(kinds) == len(set(kinds)) >= 4


def test_wrong_arguments_end_in_one_sentence():
  with pytest.raises(ValueError, match="train, validation, novel, test, not 'valid'"):
    scenes.Scenes("valid", 3)
  with pytest.raises(ValueError, match="picture size 60"):
    scenes.Scenes("train", 3, size=60)
  with pytest.raises(ValueError, match="0 to 6 objects, not 7"):
    scenes.Scenes("train", 3, num_objects=7)
  with pytest.raises(IndexError):
    scenes.Scenes("train", 3)[3]
