"""Training rows: the documents of a plan become the arrays of one packed sequence.

plan row -> documents (ids, codes, keep, picture) -> tokens i32[L], segment_ids,
positions, loss_mask, target_kind, images u8[M,H,W,3], keep bool[M,P],
feature_index i32[L]
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import documents as planned
from lavit_jax.data import images, pack_plan, pipeline, records, shards

# What tokens[t + 1] is, for the losses by kind.
NO_TARGET, TEXT, CODE_AFTER_TEXT, CODE_OF_INPUT, TEXT_AFTER_IMAGE = range(5)

SEARCHED = 4096  # documents looked through at a time for a replacement


@dataclasses.dataclass(frozen=True)
class Document:
  """One document of a row.

  Attributes:
    kind: kind of `documents`.
    turns: (prompt ids, text ids) of each turn.
    codes: i32[T] codes of the kept patches; empty in a text.
    keep: bool[P] with T true values; unused in a text.
    image: u8[H, W, 3] for image_text, else None.
    start: first token used.
    length: tokens used.
  """

  kind: int
  turns: list[tuple[np.ndarray, np.ndarray]]
  codes: np.ndarray
  keep: np.ndarray
  image: np.ndarray | None
  start: int
  length: int


def spell(
  document: Document, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Writes a whole document as tokens.

  Args:
    document: the document; `start` and `length` are not applied.
    vocabulary: the joint vocabulary.

  Returns:
    tokens i32[n]; role u8[n], the target kind of each token where it is the target;
    patch i32[n], the patch that a position shows, or -1.
  """
  codes = vocabulary.code_start + document.codes
  picture = [[vocabulary.image_start], codes, [vocabulary.image_end]]
  parts, roles = [], []  # of equal length: ids and the role they share

  def add(ids, role):
    parts.append(np.asarray(ids, np.int32))
    roles.append(np.full(len(ids), role, np.uint8))

  if document.kind == planned.TEXT:
    for ids in ([vocabulary.begin], document.turns[0][1], [vocabulary.end]):
      add(ids, TEXT)
  elif document.kind == planned.IMAGE_TEXT:
    for ids in picture:
      add(ids, CODE_OF_INPUT)
    for prompt, text in document.turns:
      add(prompt, NO_TARGET)
      add(text, TEXT_AFTER_IMAGE)
      add([vocabulary.end], TEXT_AFTER_IMAGE)
  else:
    if document.kind == planned.TEXT_IMAGE:
      add(document.turns[0][1], TEXT)
    add(picture[0], TEXT)
    add(picture[1], CODE_AFTER_TEXT)
    add(picture[2], CODE_AFTER_TEXT)
  tokens = np.concatenate(parts)
  patch = np.full(len(tokens), -1, np.int32)
  if document.kind == planned.IMAGE_TEXT:
    patch[1 : 1 + len(codes)] = np.flatnonzero(document.keep)
  return tokens, np.concatenate(roles), patch


def interleave(
  documents: list[Document],
  row_length: int,
  images_per_row: int,
  image_size: int,
  patches: int,
  vocabulary: Vocabulary,
) -> dict[str, np.ndarray]:
  """Lays documents side by side in one row.

  Args:
    documents: documents whose lengths fit the row.
    row_length: L.
    images_per_row: M.
    image_size: edge of a picture.
    patches: P, patches of a picture.
    vocabulary: the joint vocabulary.

  Returns:
    The arrays of the module docstring. Position t predicts tokens[t + 1]: loss_mask and
    target_kind are false and 0 where that is another segment or no target.
  """
  row = {
    "tokens": np.zeros(row_length, np.int32),
    "segment_ids": np.zeros(row_length, np.int32),
    "positions": np.zeros(row_length, np.int32),
    "target_kind": np.zeros(row_length, np.uint8),
    "feature_index": np.full(row_length, -1, np.int32),
    "images": np.zeros((images_per_row, image_size, image_size, 3), np.uint8),
    "keep": np.zeros((images_per_row, patches), bool),
  }
  at = slot = 0
  for segment, document in enumerate(documents, 1):
    used = slice(document.start, document.start + document.length)
    tokens, role, patch = (array[used] for array in spell(document, vocabulary))
    if len(tokens) != document.length:
      raise ValueError(
        f"expected a document of {document.length} tokens, got {len(tokens)}; make the "
        "pack plan again from this sidecar"
      )
    span = slice(at, at + len(tokens))
    row["tokens"][span] = tokens
    row["segment_ids"][span] = segment
    row["positions"][span] = np.arange(len(tokens))
    row["target_kind"][at : at + len(tokens) - 1] = role[1:]
    row["feature_index"][span] = np.where(patch >= 0, slot * patches + patch, -1)
    if document.image is not None:
      row["images"][slot], row["keep"][slot] = document.image, document.keep
      slot += 1
    at += len(tokens)
  row["loss_mask"] = row["target_kind"] > 0
  return row


def alike(documents: np.ndarray, at: int) -> Iterator[int]:
  """Yields `at`, then what can stand in its place: its kind and length, then shorter.

  Args:
    documents: DOCUMENT[D] of a plan.
    at: position of a whole document.

  Yields:
    Positions, each search from `at` on and round the plan.
  """
  yield at
  wanted, end = documents[at], at + len(documents)
  for fits in (np.equal, np.less):
    for start in range(at + 1, end, SEARCHED):
      ahead = np.arange(start, min(start + SEARCHED, end)) % len(documents)
      found = documents[ahead]
      good = (found["kind"] == wanted["kind"]) & (found["record"] != wanted["record"])
      good &= fits(found["length"], wanted["length"]) & (found["start"] == 0)
      yield from ahead[good].tolist()


class Rows:
  """The rows of a plan, by position: what stage 2 trains on.

  Attributes:
    plan: which documents share a row.
    records: pictures.
    sidecar: ids, codes and keep masks.
  """

  def __init__(
    self,
    plan: pack_plan.PackPlan,
    prepared: records.Records,
    sidecar: records.Sidecar,
    row_length: int,
    images_per_row: int,
    image_size: int,
    vocabulary: Vocabulary,
  ):
    """Joins plan, pictures and codes, which must belong together.

    Args:
      plan: plan made from the sidecar's lengths.
      prepared: prepared records.
      sidecar: their sidecar.
      row_length: L, as planned.
      images_per_row: M, as planned.
      image_size: edge of a picture, as tokenized.
      vocabulary: the joint vocabulary.
    """
    facts = sidecar.manifest
    expected = {
      "row length": (plan.row_length, row_length),
      "image slots": (plan.images_per_row, images_per_row),
      "image size": (facts["image_size"], image_size),
      "number of codes": (facts["num_codes"], vocabulary.num_codes),
      "resize": (facts["resize"], images.RESIZE_VERSION),
      "record ids": (facts["fingerprint"], prepared.manifest["fingerprint"]),
    }
    for fact, (want, got) in expected.items():
      if want != got:
        raise ValueError(
          f"expected the {fact} {want} of plan and sidecar, got {got}; tokenize and "
          "plan again, or set the config to match"
        )
    self.plan, self.records, self.sidecar = plan, prepared, sidecar
    self.image_size, self.vocabulary = image_size, vocabulary

  def __len__(self) -> int:
    return len(self.plan)

  def _held(self, documents: np.ndarray) -> tuple[dict[int, dict], dict[int, dict]]:
    """Sidecars and records of documents, by record: all of them are read at once."""
    own = np.unique(documents["record"]).tolist()
    shown = np.unique(documents["record"][documents["kind"] == planned.IMAGE_TEXT])
    wanted = [(self.sidecar, own), (self.records, shown)]
    sides, pictures = shards.read_together(wanted)
    return dict(zip(own, sides)), dict(zip(shown.tolist(), pictures))

  def document(self, item: np.void, held=None) -> Document:
    """Makes one planned document of what is `_held`, or reads it first."""
    sides, pictures = held or self._held(np.array([item]))
    side = sides[int(item["record"])]
    kind, image = int(item["kind"]), None
    if kind == planned.IMAGE_TEXT:
      try:
        encoded = pictures[int(item["record"])]["image"]
        image = images.decode(encoded, self.image_size)
      except ValueError as error:
        raise ValueError(f"record {side['id']}: {error}") from error
    turns = side["texts"][item["text"]]["turns"]
    keep, length = side["keep"], int(item["length"])
    return Document(kind, turns, side["codes"], keep, image, int(item["start"]), length)

  def _good(self, at: int, held) -> tuple[Document | None, list[str]]:
    """Makes document `at` of the plan, or in its place the next one alike."""
    reasons = []
    for candidate in alike(self.plan.documents, at):
      own = held if candidate == at else None
      try:
        return self.document(self.plan.documents[candidate], own), reasons
      except ValueError as error:
        reasons.append(str(error))
      if len(reasons) == pipeline.MAX_BAD:
        raise ValueError(
          f"expected readable documents, got {len(reasons)} bad ones alike, the last: "
          f"{reasons[-1]}; check the prepared records"
        )
    return None, reasons

  def read(self, index: int) -> pipeline.Reading:
    """Reads a row; in place of a bad document it takes one of its kind and length.

    The choice depends on nothing but the plan. Only where no other document fits does
    the place stay empty. Returns the row and the reasons of the replacements.
    """
    found, reasons = [], []
    try:
      held = self._held(self.plan.row(index))
    except ValueError:  # a damaged shard: each document is read alone, and may be bad
      held = None
    for at in range(*self.plan.row_offsets[index : index + 2].tolist()):
      document, bad = self._good(at, held)
      found += [document] if document else []
      reasons += bad
    row = interleave(
      found,
      self.plan.row_length,
      self.plan.images_per_row,
      self.image_size,
      self.sidecar.manifest["patches"],
      self.vocabulary,
    )
    return row, reasons

  def ids(self, index: int) -> list[str]:
    """Record ids of a row's documents."""
    return [self.sidecar[item["record"]]["id"] for item in self.plan.row(index)]

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self.read(index)[0]
