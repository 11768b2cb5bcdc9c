"""The section of report.html that shows pixels: drawings, reconstructions, guidance."""

from collections.abc import Mapping, Sequence

from lavit_jax.toy.pixel_figures import PixelExample, PixelFindings
from lavit_jax.toy.report import headline
from lavit_jax.training import page

NO_PIXELS = (
  "<p>This model has no pixel decoder: drawing ends at reconstructed features. The"
  " grids below show what the word heads read from each patch, not pixels.</p>"
)
DISCLOSURE = (
  "<p>The pixel decoder draws latents of a fixed transform (the lowest frequencies of"
  " 8 x 8 pixel patches) in place of a trained autoencoder, which would take minutes of"
  " its own. Beside attention it is given the features as a grid, patch on patch, since"
  " attention alone does not learn within minutes which slot belongs to which place."
  " Pixels are read by a classifier that was trained on true pictures only and"
  " knows nothing of the model. The colored grids show what the word heads read from"
  " features, not pixels.</p>"
)


def section(
  pixels: PixelFindings | None, links: Mapping[str, Mapping[str, float]]
) -> str:
  """Pictures as HTML; nothing without a pixel decoder.

  Args:
    pixels: examples.
    links: what is read right, by what the pixels were drawn from.
  """
  if pixels is None:
    return ""
  return (
    "<p>A true picture of what the prompt asks for, and the picture"
    " that the model drew. Color marks whether an independent classifier reads what was"
    " asked for.</p>"
    + _row(pixels.drawings)
    + "<h3>Handwritten digits</h3><p>A real digit, and the one that the model drew.</p>"
    + _row(pixels.digits)
    + _links(links)
    + "<h3>Reconstructions</h3><p>A held-out picture, and what was drawn from its"
    " codes.</p>" + _row(pixels.reconstructions) + _sweep(pixels.sweep)
  )


def _links(links: Mapping[str, Mapping[str, float]]) -> str:
  keys = ("color_shape", "cell", "all_three", "digit")
  rows = [
    [page.text(name), *(headline.show(found[key]) for key in keys)]
    for name, found in links.items()
  ]
  head = ("pixels of", "color and shape", "cell", "all three", "digit")
  return (
    "<h3>Where quality is lost</h3><p>What the classifier reads right after each link:"
    " the pixel decoder draws true features; the visual tokenizer makes codes of them"
    " first; the language model draws the codes. The first row is the classifier's own"
    " limit.</p>" + page.table(head, rows, {1, 2, 3, 4})
  )


def _row(examples: Sequence[PixelExample]) -> str:
  return page.row([_example(example) for example in examples])


def _example(example: PixelExample) -> str:
  pair = page.pixels(example.wanted, 112, example.title)
  pair += page.pixels(example.drawn, 112, f"drawn: {example.title}")
  mark = "right" if example.right else "wrong"
  caption = (
    f'<div style="width:230px">{page.text(example.title)}<br>'
    f'<span class="{mark}">{page.text(example.read)}</span></div>'
  )
  return page.figure(f'<div class="pair">{pair}</div>', caption)


def _sweep(sweep: dict[float, tuple[float, float]]) -> str:
  rows = [
    [f"{guidance:g}", headline.show(both), headline.show(cell)]
    for guidance, (both, cell) in sweep.items()
  ]
  head = ("guidance of the pixels", "color and shape", "cell")
  return (
    "<h3>Guidance</h3><p>Share of reconstructions that are read right, by the weight of"
    " the condition; 1 is no guidance.</p>" + page.table(head, rows, {0, 1, 2})
  )
