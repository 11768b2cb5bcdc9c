import collections
import dataclasses

import numpy as np
import pytest

from lavit_jax.data import documents as planned
from lavit_jax.data import mixture, pack_plan, packing, plan_files, records

MIXTURE = {"caption": 0.35, "answer": 0.28, "text_image": 0.32, "text": 0.05}


def make_lengths(count, entries):
  """entries: per record a list of (task, turns, text ids)."""
  flat = np.array([entry for one in entries for entry in one]).reshape(-1, 3)
  return records.Lengths(
    np.array(count, np.uint16),
    np.concatenate([[0], np.cumsum([len(one) for one in entries])]).astype(np.int64),
    flat[:, 0].astype(np.uint8),
    flat[:, 1].astype(np.uint16),
    flat[:, 2].astype(np.uint32),
  )


def toy_lengths(number, rng):
  count, entries = [], []
  for i in range(number):
    if i % 10 == 9:
      count.append(0)
      entries.append([(2, 1, int(rng.integers(8, 25)))])
    else:
      count.append(int(np.clip(rng.normal(20, 8), 1, 64)))
      caption = (0, 1, int(rng.integers(6, 18)))
      entries.append([caption, (1, 3, int(rng.integers(15, 30)))])
  return make_lengths(count, entries)


def paper_lengths(number, rng, texts=0):
  count = (
    np.clip(rng.normal(94, 30, number), 16, 256).astype(int).tolist() + [0] * texts
  )
  entries = [[(0, 1, int(rng.integers(8, 60)))] for _ in range(number)]
  entries += [[(2, 1, int(rng.lognormal(6.3, 1)))] for _ in range(texts)]
  return make_lengths(count, entries)


def check_rows(plan):
  for r in range(len(plan)):
    row = plan.row(r)
    assert row["length"].sum() <= plan.row_length
    assert (row["kind"] == planned.IMAGE_TEXT).sum() <= plan.images_per_row


def test_list_documents_by_hand():
  lengths = make_lengths([5, 0], [[(0, 1, 3), (1, 2, 7), (0, 2, 4)], [(2, 1, 6)]])
  caption = planned.list_documents(lengths, "caption")
  assert caption["length"].tolist() == [5 + 2 + 3 + 1, 5 + 2 + 4 + 2]
  assert caption["text"].tolist() == [0, 2]
  assert planned.list_documents(lengths, "answer")["length"].tolist() == [5 + 2 + 7 + 2]
  assert planned.list_documents(lengths, "text_image")["length"].tolist() == [5 + 2 + 3]
  text = planned.list_documents(lengths, "text")
  assert (text["length"].tolist(), text["record"].tolist()) == ([8], [1])


def test_deal_longest_to_emptiest():
  space, slots = np.array([10, 10]), np.array([2, 2])
  length = np.array([3, 6, 2, 5, 1])
  row_of = packing.deal(length, space, slots)
  assert row_of.tolist() == [1, 0, 0, 1, -1]
  assert (space.tolist(), slots.tolist()) == ([2, 2], [0, 0])


@pytest.mark.parametrize(
  "lengths, space, number, expected",
  [
    ([4, 4, 7], 11, 3, (4, 7)),
    ([4, 4, 7], 8, 3, (4, 4)),
    ([4, 7], 8, 3, (7,)),  # the single 4 cannot be taken twice
    ([4, 7], 11, 1, (7,)),
    ([4, 7], 3, 3, ()),
  ],
)
def test_best_fit(lengths, space, number, expected):
  assert packing.best_fit(np.bincount(lengths), space, number) == expected


def test_long_texts_are_cut_without_loss():
  lengths = make_lengths([0] * 3, [[(2, 1, n)] for n in (100, 333, 57)])
  plan = pack_plan.plan_rows(lengths, {"text": 1.0}, 0, 30, 64)
  check_rows(plan)
  assert plan.figures()["tokens"] == 1.0
  pieces = collections.defaultdict(list)
  for piece in plan.documents.tolist():
    pieces[piece[0]].append((piece[4], piece[5]))
  total = {0: 102, 1: 335, 2: 59}
  for name, parts in pieces.items():
    at = 0
    for start, length in parts:  # in order, end to start, then from the beginning again
      assert start == at
      at = (start + length) % total[name]


def test_each_document_once_per_epoch():
  lengths = toy_lengths(400, np.random.default_rng(0))
  entries = planned.entries_of(lengths, "caption")
  stream = planned.Stream(lengths, "caption", entries, 0, 0.1)
  epochs = [stream.take(360)["record"] for _ in range(2)]
  for epoch in epochs:
    assert sorted(epoch.tolist()) == [i for i in range(400) if i % 10 != 9]
  assert epochs[0].tolist() != epochs[1].tolist()


def test_plan_shows_every_document_equally_often():
  lengths = toy_lengths(1000, np.random.default_rng(0))
  plan = pack_plan.plan_rows(lengths, MIXTURE, 0, 2000, 192)
  check_rows(plan)
  for source, share in MIXTURE.items():
    some = plan.documents[plan.documents["source"] == planned.SOURCES.index(source)]
    seen = np.bincount(some["record"], minlength=1000)
    number = len(planned.list_documents(lengths, source))
    seen = np.sort(seen)[-number:]
    # Epochs overlap only by the documents that wait for the next window.
    assert seen.max() - seen.min() <= 3
    assert abs(plan.figures()[source] - share) < 0.01


@pytest.mark.parametrize("weights", [MIXTURE, {"caption": 1.0}, {"text_image": 1.0}])
def test_no_drawn_document_is_lost_or_doubled(monkeypatch, weights):
  lengths = toy_lengths(500, np.random.default_rng(0))
  drawn, take = [], planned.Stream.take

  def recorded(stream, number):
    drawn.extend((taken := take(stream, number)).tolist())
    return taken

  monkeypatch.setattr(planned.Stream, "take", recorded)
  streams, _ = mixture.streams(lengths, weights, 192, 0, 0.1, "refuse", str)
  planner = pack_plan.Planner(streams, weights, 192, 4, {})
  placed = collections.Counter()
  for size in (200, 200, 37):
    before = len(drawn)
    documents, counts = planner.window(size)
    assert len(documents) == counts.sum() and len(counts) == size
    placed.update(documents.tolist())
    left = collections.Counter(planner.left.tolist())
    assert placed + left == collections.Counter(drawn)
    if size == 200:  # the last window has less room than documents wait
      assert not left - collections.Counter(drawn[before:])  # nothing waits twice


def test_same_seed_same_plan_and_saved_plan(tmp_path):
  lengths = toy_lengths(300, np.random.default_rng(0))
  plans = [pack_plan.plan_rows(lengths, MIXTURE, s, 200, 160) for s in (1, 1, 2)]
  np.testing.assert_array_equal(plans[0].documents, plans[1].documents)
  assert plans[0].documents.tolist() != plans[2].documents.tolist()


@pytest.mark.parametrize("row_length", [160, 192, 256])
def test_fill_of_short_rows(row_length):
  lengths = toy_lengths(3000, np.random.default_rng(0))
  plan = pack_plan.plan_rows(lengths, MIXTURE, 0, 1500, row_length)
  check_rows(plan)
  assert plan.figures()["tokens"] >= 0.97
  assert "tokens 99" in pack_plan.summary(plan)


@pytest.mark.parametrize(
  "weights, slots",
  [
    ({"caption": 1, "text_image": 1}, 8),
    ({"caption": 1, "text_image": 1, "text": 4}, 3),
    ({"caption": 1}, 0),
  ],
)
def test_fill_of_paper_rows(weights, slots):
  lengths = paper_lengths(6000, np.random.default_rng(0), texts=2000)
  plan = pack_plan.plan_rows(lengths, weights, 0, 700, 2048)
  check_rows(plan)
  assert plan.figures()["tokens"] >= 0.99
  for name, weight in weights.items():
    share = weight / sum(weights.values())
    assert abs(plan.figures()[name] - share) < 0.02
  if slots:
    assert plan.images_per_row == slots


def test_too_few_slots_are_all_used():
  lengths = paper_lengths(3000, np.random.default_rng(0))
  for weights in ({"caption": 1.0}, {"caption": 0.5, "text_image": 0.5}):
    plan = pack_plan.plan_rows(lengths, weights, 0, 1500, 2048, images_per_row=4)
    check_rows(plan)
    assert plan.figures()["image_slots"] > 0.99


def test_prompt_drop_is_a_tenth_and_changes_with_the_epoch():
  lengths = paper_lengths(5000, np.random.default_rng(0))
  some = planned.list_documents(lengths, "text_image")
  first, again, second = (planned.drops_prompt(3, e, some, 0.1) for e in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert abs(first.mean() - 0.1) < 0.015 and abs((first & second).mean() - 0.01) < 0.006
  plan = pack_plan.plan_rows(lengths, {"text_image": 1.0}, 3, 300, 2048)
  bare = plan.documents[plan.documents["kind"] == planned.UNCONDITIONAL]
  np.testing.assert_array_equal(bare["length"], lengths.count[bare["record"]] + 2)
  assert abs(len(bare) / len(plan.documents) - 0.1) < 0.02


def test_long_pictures_are_refused_by_name_or_skipped():
  lengths = make_lengths([5, 60], [[(0, 1, 3)], [(0, 1, 9)]])
  with pytest.raises(ValueError, match="record r1"):
    pack_plan.plan_rows(lengths, {"caption": 1}, 0, 4, 64, name=lambda i: f"r{i}")
  plan = pack_plan.plan_rows(lengths, {"caption": 1}, 0, 4, 64, long_pairs="skip")
  assert plan.skipped == 1 and set(plan.documents["record"].tolist()) == {0}


def test_mixture_mistakes_are_explained():
  lengths = make_lengths([5], [[(0, 1, 3)]])
  with pytest.raises(ValueError, match="name only these"):
    pack_plan.plan_rows(lengths, {"captions": 1}, 0, 4, 64)
  with pytest.raises(ValueError, match="'answer'"):
    pack_plan.plan_rows(lengths, {"answer": 1}, 0, 4, 64)


@pytest.mark.parametrize("texts", [(0, 1), (300, 6), (300, 3)])
def test_epochs_show_every_document_exactly(texts):
  number, size = texts
  rng = np.random.default_rng(0)
  lengths = paper_lengths(700, rng)
  if number:
    words = rng.lognormal(size, 0.5, number).astype(int) + 1
    entries = [[(0, 1, 9)]] * 700 + [[(2, 1, n)] for n in words.tolist()]
    lengths = make_lengths([60] * 700 + [0] * number, entries)
  weights = {"caption": 1.0, "text": 0.01} if number else {"caption": 1.0}
  for longest in weights:  # the one that lasts longest is shown exactly three times
    asked = {name: 1.0 if name == longest else 12.0 for name in weights}
    plan = pack_plan.plan_rows(lengths, asked, 5, 0, 1024, epochs=3)
    check_rows(plan)
    some = plan.documents["source"] == planned.SOURCES.index(longest)
    tokens = np.bincount(plan.documents["record"][some], plan.documents["length"][some])
    whole = planned.list_documents(lengths, longest)
    np.testing.assert_array_equal(tokens[whole["record"]], 3 * whole["length"])


def test_permutation_is_one_at_any_size():
  for size in (1, 2, 3, 7, 360, 1000, 65_537):
    orders = [planned.permute(np.arange(size), size, key) for key in (1, 2)]
    for order in orders:
      np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size > 7:
      assert orders[0].tolist() != orders[1].tolist()
  # Looks random: hardly any order is kept, and neighbors are spread evenly.
  order = orders[0].astype(np.int64)
  assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.02
  gaps = np.abs(np.diff(order)) / size
  assert abs(gaps.mean() - 1 / 3) < 0.01
  chi = np.histogram(order[: size // 16], 64, (0, size))[0]
  assert (chi > 30).all()


def test_cut_by_hand():
  space = np.array([5, 0, 4])
  pieces = packing.cut(np.array([3, 10]), space)
  assert pieces.tolist() == [[0, 0, 3, 0], [1, 0, 2, 0], [1, 2, 4, 2]]
  assert space.tolist() == [0, 0, 0]


def test_stored_plan_is_the_plan_and_made_once(tmp_path):
  lengths = toy_lengths(500, np.random.default_rng(0))
  made = []

  def make():
    made.append(1)
    return pack_plan.plan_windows(lengths, MIXTURE, 3, 700, 192)

  expected = pack_plan.plan_rows(lengths, MIXTURE, 3, 700, 192)
  for _ in range(2):
    plan = plan_files.find_or_make(tmp_path, {"seed": 3}, make)
    np.testing.assert_array_equal(plan.documents, expected.documents)
    np.testing.assert_array_equal(plan.row_offsets, expected.row_offsets)
    assert isinstance(plan.documents, np.memmap) and len(made) == 1
    assert plan.figures() == expected.figures() and plan.weights == expected.weights
  plan_files.find_or_make(tmp_path, {"seed": 4}, make)
  assert len(made) == 2


def test_killed_while_planning_leaves_no_plan(tmp_path):
  lengths = toy_lengths(500, np.random.default_rng(0))
  planned_rows = pack_plan.plan_windows(lengths, MIXTURE, 3, 2000, 192)

  def breaks():
    yield next(planned_rows.windows)
    raise KeyboardInterrupt

  broken = dataclasses.replace(planned_rows, windows=breaks())
  with pytest.raises(KeyboardInterrupt):
    plan_files.find_or_make(tmp_path, {}, lambda: broken)
  assert not list(tmp_path.iterdir())
