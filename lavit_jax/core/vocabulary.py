"""The joint vocabulary: text ids, two image marks, visual codes, padding.

0 .. T-1        text        (0 unknown, 1 begin, 2 end, as in LLaMA)
T, T+1          [IMG], [/IMG]
T+2 .. T+1+K    code k at id T + 2 + k
.. padded_size  padding to a multiple of 128, never predicted
"""

import dataclasses

UNKNOWN, BEGIN, END = 0, 1, 2
PADDING_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Id ranges of text and visual codes (reference facts, section 7).

  Attributes:
    text_size: T, number of text ids.
    num_codes: K, number of visual codes.
  """

  text_size: int
  num_codes: int

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
    """Number of real ids."""
    return self.text_size + 2 + self.num_codes

  @property
  def padded_size(self) -> int:
    """Rows of the embedding table: `size` rounded up to a multiple of 128."""
    return -(-self.size // PADDING_MULTIPLE) * PADDING_MULTIPLE

  def is_code(self, ids):
    """True where an id (numpy or jax array) is a visual code."""
    return (ids >= self.code_start) & (ids < self.size)
