import itertools

import numpy as np
import pytest
import toy_shards

from lavit_jax.data import pipeline


class Numbers:
  def __init__(self, count, bad=()):
    self.count, self.bad = count, bad

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.bad:
      raise ValueError(f"number {index} is bad")
    return {"x": np.array(index)}


def numbers(feed, batches):
  taken = list(itertools.islice(feed, batches))
  feed.close()
  return np.concatenate([batch["x"] for batch, _ in taken]).tolist()


def test_streams_are_those_of_every_earlier_version():
  feed = pipeline.RowFeed(Numbers(11, bad=(3,)), 4, seed=5, position=3)
  assert numbers(feed, 4) == [8, 1, 0, 6, 5, 7, 2, 4, 7, 6, 10, 5, 9, 0, 4, 4]
  feed = pipeline.RowFeed(Numbers(1000), 4, 5, [1, 3], position=10**9)
  assert numbers(feed, 4) == [88, 165, 478, 3, 399, 441, 105, 19]
  assert feed.position == 10**9 + 16


def test_every_epoch_is_another_permutation():
  stream = numbers(pipeline.RowFeed(Numbers(10), 5, seed=0), 6)
  epochs = [stream[i : i + 10] for i in (0, 10, 20)]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  assert stream == numbers(pipeline.RowFeed(Numbers(10), 5, seed=0), 6)
  assert stream != numbers(pipeline.RowFeed(Numbers(10), 5, seed=1), 6)


def test_resume_anywhere_with_another_batch_size():
  stream = numbers(pipeline.RowFeed(Numbers(7), 4, seed=0), 12)
  for position in range(0, 30):
    again = pipeline.RowFeed(Numbers(7), 3, seed=0, position=position, threads=2)
    assert numbers(again, 4) == stream[position : position + 12]
  feed = pipeline.RowFeed(Numbers(7), 4, seed=0, position=5)
  assert next(feed)[1] == 9 and next(feed)[1] == 13
  feed.close()


def test_two_hosts_together_equal_one():
  whole = pipeline.RowFeed(Numbers(9), 4, seed=0)
  hosts = [pipeline.RowFeed(Numbers(9), 4, 0, rows) for rows in ([0, 1], [2, 3])]
  for _ in range(6):
    expected, position = next(whole)
    parts = [next(host) for host in hosts]
    found = np.concatenate([part["x"] for part, _ in parts])
    np.testing.assert_array_equal(found, expected["x"])
    assert {p for _, p in parts} == {position}
  for feed in (whole, *hosts):
    feed.close()


def test_bad_items_are_replaced_and_counted():
  good = numbers(pipeline.RowFeed(Numbers(8), 8, seed=0), 1)
  feed = pipeline.RowFeed(Numbers(8, bad=(3, 4)), 8, seed=0)
  assert numbers(feed, 1) == [5 if x in (3, 4) else x for x in good]
  assert feed.bad == {"number 3 is bad": 1, "number 4 is bad": 2}
  feed = pipeline.RowFeed(Numbers(2, bad=(0, 1)), 2, seed=0)
  with pytest.raises(ValueError, match="bad ones in a row"):
    next(feed)
  feed.close()


def test_truncated_picture_is_replaced(tmp_path):
  prepared, _ = toy_shards.write(tmp_path, bad=(5,))
  source = pipeline.RecordImages(prepared, toy_shards.SIZE)
  assert len(source) == 12
  feed = pipeline.RowFeed(source, 12, seed=0)
  batch, _ = next(feed)
  feed.close()
  assert batch["image"].shape == (12, 8, 8, 3) and batch["image"].dtype == np.uint8
  found = sorted(batch["image"][:, 0, 0, 0].tolist())
  assert found == [0, 1, 2, 4, 6, 6, 8, 9, 10, 12, 13, 14]
  assert sum(feed.bad.values()) == 1 and "do not decode" in next(iter(feed.bad))


def test_map_draws_by_index_alone(tmp_path):
  prepared, _ = toy_shards.write(tmp_path)

  def read(record, generator):
    entry = pipeline.choose_text(record, "caption", generator)
    return {"turns": np.array(len(entry["turns"])), "draw": generator.random()}

  source = pipeline.Map(pipeline.Pictures(prepared), read, seed=1, visits=2)
  assert len(source) == 24
  assert source[3]["draw"] == source[3]["draw"] != source[15]["draw"]
  with pytest.raises(ValueError, match="r3"):
    pipeline.choose_text(prepared[3], "caption", np.random.default_rng(0))


def test_local_rows_must_lie_in_the_batch():
  with pytest.raises(ValueError, match="local rows"):
    pipeline.RowFeed(Numbers(4), 2, seed=0, local_rows=[2])
