"""The documents of a mixture: what each source can give, in endless shuffled epochs."""

import numpy as np

from lavit_jax.data import records

TEXT, IMAGE_TEXT, TEXT_IMAGE, UNCONDITIONAL = range(4)
SOURCES = ("caption", "answer", "text_image", "text")
DOCUMENT = np.dtype(
  [
    ("record", "u4"),
    ("text", "u2"),  # entry of the record
    ("kind", "u1"),
    ("source", "u1"),  # position in SOURCES
    ("start", "u4"),  # first token, above 0 only in a cut text
    ("length", "u4"),  # tokens in the row
  ]
)


def mix64(values: np.ndarray) -> np.ndarray:
  """The splitmix64 finalizer: u64 -> well mixed u64, the same everywhere."""
  values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def drops_prompt(
  seed: int, epoch: int, documents: np.ndarray, fraction: float
) -> np.ndarray:
  """Chooses the drawing documents that lose their text in an epoch.

  Args:
    seed: seed of the plan.
    epoch: epoch of the source.
    documents: DOCUMENT[n].
    fraction: share to choose.

  Returns:
    bool[n], a function of (seed, epoch, record, entry) alone.
  """
  key = mix64(np.array([seed % 2**32 * 2**32 + epoch], np.uint64))
  name = documents["record"].astype(np.uint64) << np.uint64(16)
  value = mix64(key ^ mix64(name | documents["text"].astype(np.uint64)))
  return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction


def list_documents(lengths: records.Lengths, source: str) -> np.ndarray:
  """Lists every document that a source can give, whole.

  Args:
    lengths: lengths of all records.
    source: one of SOURCES.

  Returns:
    DOCUMENT[n] in record order.
  """
  number = np.diff(lengths.offsets)
  record = np.repeat(np.arange(len(number)), number)
  task = "caption" if source == "text_image" else source
  pick = lengths.task == records.TASKS.index(task)
  text = lengths.text.astype(np.int64)
  picture = lengths.count[record].astype(np.int64) + 2
  if source == "text":
    kind, length = TEXT, text + 2
  elif source == "text_image":
    kind, length = TEXT_IMAGE, text + picture
    pick &= lengths.turns == 1
  else:
    kind, length = IMAGE_TEXT, text + picture + lengths.turns
  documents = np.zeros(int(pick.sum()), DOCUMENT)
  documents["record"] = record[pick]
  documents["text"] = (np.arange(len(record)) - lengths.offsets[record])[pick]
  documents["kind"], documents["source"] = kind, SOURCES.index(source)
  documents["length"] = length[pick]
  return documents


class Stream:
  """The documents of one source without end, each exactly once per shuffled epoch.

  Attributes:
    documents: DOCUMENT[n] of one epoch.
    mean: mean length of a document, prompt drop included.
  """

  def __init__(self, documents, unconditional, seed, uncond_fraction):
    self.documents, self.unconditional = documents, unconditional
    self.seed, self.fraction = seed, uncond_fraction
    self.epoch, self.rest = 0, documents[:0]
    lost = documents["length"].astype(np.int64) - unconditional
    lost = lost * (uncond_fraction if self._draws() else 0.0)
    self.mean = float(np.mean(documents["length"] - lost))

  def _draws(self) -> bool:
    return SOURCES[self.documents["source"][0]] == "text_image"

  def _next_epoch(self) -> np.ndarray:
    name = [self.seed, int(self.documents["source"][0]), self.epoch]
    order = np.random.default_rng(name).permutation(len(self.documents))
    documents = self.documents.copy()
    if self._draws():
      drop = drops_prompt(self.seed, self.epoch, documents, self.fraction)
      documents["kind"][drop] = UNCONDITIONAL
      documents["length"][drop] = self.unconditional[drop]
    self.epoch += 1
    return documents[order]

  def take(self, number: int) -> np.ndarray:
    """Returns the next documents."""
    while len(self.rest) < number:
      self.rest = np.concatenate([self.rest, self._next_epoch()])
    taken, self.rest = self.rest[:number], self.rest[number:]
    return taken
