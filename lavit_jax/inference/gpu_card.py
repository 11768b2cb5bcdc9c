"""README.md of the GPU folder: what lies there, how to run it, how much it takes."""

import math
import os
import pathlib
from collections.abc import Mapping

from lavit_jax.weights import model_card
from lavit_jax.weights.part import Part, named_tensors

BYTES = {"float32": 4, "bfloat16": 2, "8 bits": 1, "4 bits": 0.5}
GROUPS = {
  "language": ("llama",),
  "vision": ("vit", "visual_tokenizer", "codebook", "understanding", "whitening"),
  "pixels": ("condition", "unet", "vae", "null_condition"),
  "pixels of high resolution": (
    *("highres_condition", "highres_feature_decoder", "highres_unet", "highres_vae"),
  ),
}
LINES = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from diffusers import DiffusionPipeline

processor = AutoProcessor.from_pretrained(DIR, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(DIR, trust_remote_code=True)
inputs = processor(images=picture)
print(processor.texts(model.caption(**inputs)))
codes = model.draw_codes(**processor(text="a red circle", drawing=True))
pixels = DiffusionPipeline.from_pretrained(f"{DIR}/pixels", trust_remote_code=True)
pixels(codes).images[0].save("circle.png")
```
"""


def text(source: str | os.PathLike, parts: Mapping[str, Part]) -> str:
  """The card, with a table of what weights and cache take by dtype, computed."""
  lines = ["# LaVIT for GPUs", "", LINES, "## Memory of the weights, computed", ""]
  lines += [f"| part | parameters | {' | '.join(BYTES)} |"]
  lines += ["|---|---|" + "---|" * len(BYTES)]
  for group, names in GROUPS.items():
    count = sum(
      math.prod(tensor.shape)
      for name in names
      if name in parts
      for _, tensor in named_tensors(parts[name].params)
    )
    if count:
      sizes = " | ".join(f"{count * size / 1e9:.3f} GB" for size in BYTES.values())
      lines.append(f"| {group} | {count:,} | {sizes} |")
  lines += ["", _cache(parts["llama"].config), ""]
  card = model_card.text("lavit", pathlib.Path(source), parts)
  return "\n".join(lines) + "\n" + card.split("\n", 2)[2]


def _cache(sizes: Mapping[str, int]) -> str:
  """What the cache of one position takes."""
  numbers = 2 * sizes["num_layers"] * sizes["num_kv_heads"] * sizes["head_dim"]
  return (
    f"The cache takes {numbers * 2 / 1e6:.3f} MB a position and sequence in bfloat16;"
    " guidance runs two sequences for each drawing. None of this was measured."
  )
