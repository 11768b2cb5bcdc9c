"""Sizes of a LaVIT: those of LLaMA, and of the vision side in front of it."""

from transformers import LlamaConfig


class LavitConfig(LlamaConfig):
  """A LLaMA over text, the marks [IMG] and [/IMG], and visual codes.

  Attributes:
    text_size: number of text ids; [IMG], [/IMG] and the codes follow.
    vision: sizes of encoder, selector, mergers and codebook; `whitening` and
      `selector_input` say what selector and mergers see.
    decoding: numbers of the tasks "caption", "answer" and "draw".
  """

  model_type = "lavit"
  text_size: int = 32000
  vision: dict | None = None
  decoding: dict | None = None
