"""The joint vocabulary: text ids, two image marks, visual codes, padding.

0 .. T-1        text, begin, end and pad among it; ids of no text are holes
T, T+1          [IMG], [/IMG]
T+2 .. T+1+K    code k at id T + 2 + k
.. padded_size  padding to a multiple of 128

Holes and padding are never predicted: their logits are -inf before every softmax.
"""

import dataclasses

import numpy as np

PADDING_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Id ranges of text and visual codes (reference facts, section 7).

  The marks' values without a word are LLaMA's, whose padding is the end mark.

  Attributes:
    text_size: T, number of text ids: rows of the embedding that text may use.
    num_codes: K, number of visual codes.
    begin: id before a text.
    end: id after a text.
    pad: id that fills up rows of a batch.
    holes: ranges [first, after) of text ids that no text uses.
  """

  text_size: int
  num_codes: int
  begin: int = 1
  end: int = 2
  pad: int = 2
  holes: tuple[tuple[int, int], ...] = ()

  @property
  def image_start(self) -> int:
    """Id of [IMG]."""
    return self.text_size

  @property
  def image_end(self) -> int:
    """Id of [/IMG]."""
    return self.text_size + 1

  @property
  def code_start(self) -> int:
    """Id of code 0."""
    return self.text_size + 2

  @property
  def size(self) -> int:
    """Number of ids, holes among them."""
    return self.text_size + 2 + self.num_codes

  @property
  def padded_size(self) -> int:
    """Rows of the embedding table: `size` rounded up to a multiple of 128."""
    return -(-self.size // PADDING_MULTIPLE) * PADDING_MULTIPLE

  def is_code(self, ids):
    """True where an id (numpy or jax array) is a visual code."""
    return (ids >= self.code_start) & (ids < self.size)

  def is_text(self, ids):
    """True where an id (numpy or jax array) is one that text uses, marks included."""
    return is_real(ids, self.text_size, self.holes)


def is_real(ids, size: int, holes: tuple[tuple[int, int], ...] = ()):
  """True where an id (numpy or jax array) is below `size` and in no hole."""
  real = ids < size
  for first, after in holes:
    real = real & ((ids < first) | (ids >= after))
  return real


def missing_ranges(ids, size: int) -> tuple[tuple[int, int], ...]:
  """Ranges [first, after) of the numbers below `size` that are not among `ids`."""
  known = np.zeros(size + 2, bool)
  known[[0, -1]] = True
  known[1 + np.fromiter(ids, np.int64)] = True
  (edges,) = np.nonzero(np.diff(known))
  return tuple(zip(edges[::2].tolist(), edges[1::2].tolist()))
