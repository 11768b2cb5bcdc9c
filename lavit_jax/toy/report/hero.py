"""What a reader sees first: prompts, their codes and pictures; patches to click on."""

import numpy as np

from lavit_jax.toy import findings
from lavit_jax.toy.report import overlays
from lavit_jax.toy.report.patch_grid import patch_grid
from lavit_jax.training import page

SHOWN = 6
CLICKABLE = 3  # pictures whose patches lead to others of their code
PATCHES = 12  # of one code
WIDTH = 118  # px of a picture in the first row


def drawings(found: findings.Findings) -> str:
  """Prompt, codes and picture of drawings; read-outs where there are no pixels."""
  cards = []
  for i, own in enumerate(found.drawings[:SHOWN]):
    drawn = patch_grid(own.color, own.shape, WIDTH)
    right = own.asked == own.read
    if found.pixels and i < len(found.pixels.drawings):
      pixels = found.pixels.drawings[i]
      drawn, right = page.pixels(pixels.drawn, WIDTH, pixels.title), pixels.right
    codes = " ".join(map(str, own.codes))
    mark = "right" if right else "wrong"
    cards.append(
      f"<figure><figcaption>“{page.text(own.title)}”</figcaption>"
      f'<div class="pair">{drawn}{page.pixels(own.image, WIDTH, "what it asks for")}'
      f'</div><p class="codes"><span class="{mark}">●</span>'
      f" {len(own.codes)} codes: {codes}</p></figure>"
    )
  return (
    f'<div class="hero">{"".join(cards)}</div><p class="soft">Prompt, the model\'s'
    " drawing beside a true picture, and the codes that the language model wrote. The"
    " dot is green where the drawing is read as what was asked for. These are the first"
    " prompts of the list, not the best.</p>"
  )


def patches(pictures: findings.Pictures) -> str:
  """Pictures whose kept patches lead to other patches of the same code."""
  many = np.argsort(-pictures.count, kind="stable")[:: max(len(pictures.count) // 5, 1)]
  shown, codes = [], []
  for i in many[:CLICKABLE]:
    own = pictures.codes[i][pictures.keep[i]].tolist()
    codes += own
    shown.append(page.figure(_linked(pictures, int(i)), f"{len(own)} codes"))
  rows = [_others(pictures, code) for code in dict.fromkeys(codes)]
  return (
    "<p>Click a patch: it shows its code, and patches of other pictures that have the"
    f" same one. Pale patches were not kept.</p>{page.row(shown)}"
    f'<div class="strip peeks">{"".join(rows)}</div>'
  )


def _linked(pictures: findings.Pictures, row: int) -> str:
  """A picture with a link on each kept patch."""
  keep, side = pictures.keep[row], round(pictures.keep.shape[1] ** 0.5)
  share, links = 100 / side, []
  for patch in np.flatnonzero(keep):
    y, x = divmod(int(patch), side)
    code = int(pictures.codes[row, patch])
    where = f"left:{share * x:g}%;top:{share * y:g}%;width:{share:g}%;height:{share:g}%"
    links.append(f'<a href="#code-{code}" title="code {code}" style="{where}"></a>')
  image = page.pixels(overlays.kept_map(pictures.image[row], keep), 224, "kept patches")
  return f'<div class="patches">{image}{"".join(links)}</div>'


def _others(pictures: findings.Pictures, code: int) -> str:
  """Patches of different pictures that have a code; seen when it was clicked."""
  cut, count = of_code(pictures, code, PATCHES)
  shown = "".join(page.pixels(patch, 28) for patch in cut)
  return (
    f'<div id="code-{code}" class="peek"><span>{code} · {count}×</span>{shown}</div>'
  )


def of_code(
  pictures: findings.Pictures, code: int, most: int
) -> tuple[list[np.ndarray], int]:
  """Patches u8[p, p, 3] of `most` pictures with a code, and how often it occurs."""
  rows, places = np.nonzero(pictures.keep & (pictures.codes == code))
  _, first = np.unique(rows, return_index=True)  # one patch of each picture
  total = pictures.keep.shape[1]
  cut = [
    overlays.patches_of(pictures.image[rows[i]], total)[places[i]] for i in first[:most]
  ]
  return cut, len(rows)
