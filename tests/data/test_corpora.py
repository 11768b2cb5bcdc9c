"""Several folders in one run: shares of tokens by folder and kind, and one plan."""

import itertools

import numpy as np
import pytest
import toy_shards

from lavit_jax.data import corpora, pack_plan, pipeline, planned_rows, records, rows

MIXTURE = {"caption": 0.5, "answer": 0.0, "text_image": 0.2, "text": 0.3}


def folder(path, count):
  """A tokenized folder of the toy shards."""
  toy_shards.write(path, count=count)
  (path / "sidecar").rename(path / "records" / "codes")
  return str(path / "records")


def books(path, count=400):
  """A tokenized folder of texts, every second long beside a row."""
  made = (
    {"id": f"b{i}", "image": b"", "texts": [{"task": "text", "turns": [["", "w"]]}]}
    for i in range(count)
  )
  records.write_shards(made, path, "b", 100)
  prepared = records.Records(path)
  writer = records.SidecarWriter(prepared, path / "codes", toy_shards.FACTS)
  for shard in writer.missing():
    sides = []
    for item in prepared.shard(shard):
      number = int(item["id"][1:])
      ids = np.arange(3, 3 + (4 + number % 6 if number % 2 else 20 + number % 50)) % 40
      turns = [{"task": "text", "turns": [([], ids)]}]
      sides.append(records.pack_sidecar(item["id"], [], None, turns))
    writer.write(shard, sides)
  writer.finish()
  return str(path)


def planned(given, number=3000, mixture=MIXTURE):
  prepared, sidecar, settings = planned_rows.open_all(given, mixture, "abc", "def")
  settings |= dict(seed=0, rows=number, row_length=48)
  return prepared, sidecar, pack_plan.plan_rows(sidecar.lengths, **settings)


def tokens(plan, chained):
  """Share of tokens by folder."""
  folder = np.searchsorted(chained.starts, plan.documents["record"], side="right") - 1
  found = np.bincount(folder, plan.documents["length"].astype(float))
  return found / found.sum()


def test_shares_are_read_and_a_folder_alone_is_taken_as_it_is(tmp_path):
  assert corpora.parse("data/a") == [corpora.Corpus("data/a")]
  (tmp_path / "a=1,b").mkdir()
  alone = str(tmp_path / "a=1,b")
  assert corpora.parse(alone) == [corpora.Corpus(alone)]
  found = corpora.parse("gs://x/a=3, b=caption:2+text:0.5")
  kinds = {"caption": 2.0, "text": 0.5}
  assert found == [corpora.Corpus("gs://x/a", 3.0), corpora.Corpus("b", kinds=kinds)]
  for wrong in ("a=0,b=1", "a,b", "a=1,b=x", "a=1,b=poem:2", "a=1,=2", "a=1,b=text:-1"):
    with pytest.raises(ValueError, match="expected FOLDER=SHARE or FOLDER=KIND"):
      corpora.parse(wrong)


def test_two_folders_three_to_one_in_tokens(tmp_path):
  first, second = folder(tmp_path / "a", 240), folder(tmp_path / "b", 36)
  prepared, sidecar, plan = planned(f"{first}=3,{second}=1")
  assert len(prepared) == len(sidecar) == 276
  np.testing.assert_allclose(tokens(plan, sidecar), [0.75, 0.25], atol=0.002)
  figures = plan.figures()
  for name, share in plan.weights.items():
    assert abs(figures[name] - share) < 0.005
  # Within a folder its kinds have the shares of the mixture.
  assert abs(plan.weights["caption@0"] - 0.75 * 0.5) < 1e-9
  assert prepared[240]["id"] == sidecar[240]["id"] == "r0"
  assert "caption@1" in pack_plan.summary(plan)


def test_a_folder_gives_the_kinds_it_has_or_those_it_is_asked_for(tmp_path):
  pictures, texts = folder(tmp_path / "a", 240), books(tmp_path / "books")
  prepared, sidecar, plan = planned(f"{pictures}=3,{texts}=1")
  assert plan.weights["text@1"] == 0.25 and "caption@1" not in plan.weights
  np.testing.assert_allclose(tokens(plan, sidecar), [0.75, 0.25], atol=0.002)
  _, sidecar, plan = planned(f"{pictures}=text_image:1,{texts}=text:2+answer:0")
  assert set(plan.weights) == {"text_image@0", "text@1"}
  np.testing.assert_allclose(tokens(plan, sidecar), [1 / 3, 2 / 3], atol=0.002)
  with pytest.raises(ValueError, match="expected records of .* name the kinds"):
    planned(f"{pictures}=1,{texts}=1", mixture={"caption": 1.0})


def test_long_texts_of_two_folders_keep_their_shares(tmp_path):
  first, second = books(tmp_path / "a", 500), books(tmp_path / "b", 60)
  _, sidecar, plan = planned(f"{first}=1,{second}=1")
  np.testing.assert_allclose(tokens(plan, sidecar), [0.5, 0.5], atol=0.002)


def test_the_same_rows_on_any_hosts_after_any_resume(tmp_path):
  first, second = folder(tmp_path / "a", 60), folder(tmp_path / "b", 24)
  prepared, sidecar, plan = planned(f"{first}=3,{second}=1", 40)
  words, slots = toy_shards.VOCABULARY, plan.images_per_row
  source = rows.Rows(plan, prepared, sidecar, 48, slots, toy_shards.SIZE, words)

  def stream(local, position, size, number):
    feed = pipeline.RowFeed(source, size, 1, local, position, threads=2)
    batches = [batch for batch, _ in itertools.islice(feed, number)]
    feed.close()
    return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}

  whole = stream(None, 0, 8, 6)
  one = [stream([2 * host, 2 * host + 1], 16, 8, 4) for host in range(4)]
  for name, array in whole.items():
    rest = array[16:].reshape(4, 4, 2, *array.shape[1:])
    for host, found in enumerate(one):
      np.testing.assert_array_equal(
        found[name], rest[:, host].reshape(8, *array.shape[1:])
      )


def test_folders_that_were_tokenized_differently_are_refused(tmp_path, monkeypatch):
  first = folder(tmp_path / "a", 12)
  monkeypatch.setitem(toy_shards.FACTS, "dtype", "bfloat16")
  second = folder(tmp_path / "b", 12)
  with pytest.raises(ValueError, match="expected folders of one dtype, got float32"):
    planned(f"{first}=3,{second}=1")
