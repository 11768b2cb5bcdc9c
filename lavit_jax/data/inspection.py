"""One HTML page about a prepared folder: what will be trained on, as it will be seen.

Pictures are decoded and squashed as training does. Where the folder is tokenized, the
patches that are not kept are dimmed, and lengths and packing come in tokens.
"""

import base64
import html
import io

import numpy as np
from etils import epath
from PIL import Image

from lavit_jax.data import images, pack_plan, records, shards

PAGE = "inspect.html"
SHOWN, EDGE = 48, 168  # pictures of the grid and their edge
SAMPLE = 2000  # records whose texts are measured
BINS = 12
ROWS = 1024  # planned to see how full they get
MIXTURE = {"caption": 0.17, "answer": 0.17, "text_image": 0.16, "text": 0.67}
STYLE = """
body { font: 14px sans-serif; margin: 2em; max-width: 1200px }
.grid { display: flex; flex-wrap: wrap; gap: 12px } .grid div { width: 168px }
.grid p { margin: 2px 0; font-size: 12px; overflow-wrap: anywhere }
td { padding: 1px 10px; text-align: right } .bar { background: #47a; height: 10px }
"""


def write(
  folder: epath.PathLike,
  mixture: dict[str, float] | None = None,
  row_length: int = 2048,
) -> str:
  """Writes FOLDER/inspect.html.

  Args:
    folder: prepared folder, tokenized or not.
    mixture: share of tokens by source; that of the paper if None,
      of what is there.
    row_length: tokens of a row.

  Returns:
    What the page says in numbers, as lines.
  """
  prepared = records.Records(folder)
  sidecar = None
  if (epath.Path(folder) / "codes" / shards.MANIFEST).exists():
    sidecar = records.Sidecar(epath.Path(folder) / "codes")
  facts = [_counts(prepared)]
  tables = [_text_table(prepared)]
  if sidecar is None:
    facts.append("not tokenized yet: lengths in tokens and packing are not known")
  else:
    tables += _token_tables(sidecar.lengths)
    facts += _packing(sidecar.lengths, mixture, row_length)
  parts = [
    f"<title>{html.escape(str(folder))}</title><meta charset=utf-8>",
    f"<style>{STYLE}</style><h1>{html.escape(str(folder))}</h1>",
    *(f"<p>{html.escape(fact)}</p>" for fact in facts),
    *tables,
    '<h2>Pictures</h2><div class="grid">',
    *(_card(prepared, sidecar, i) for i in _spread(np.flatnonzero(prepared.image))),
    "</div><h2>Texts without picture</h2>",
    *(
      f"<p>{_words(prepared[i])}</p>"
      for i in _spread(np.flatnonzero(~prepared.image), 12)
    ),
  ]
  path = epath.Path(folder) / PAGE
  shards.write_bytes(path, "\n".join(parts).encode())
  return "\n".join([*facts, f"page: {path}"])


def _spread(positions: np.ndarray, number: int = SHOWN) -> list[int]:
  """Chooses positions evenly, the same each time."""
  if len(positions) > number:
    positions = positions[np.linspace(0, len(positions) - 1, number).astype(int)]
  return positions.tolist()


def _counts(prepared: records.Records) -> str:
  manifest = prepared.manifest
  entries = ", ".join(f"{n} {task}" for task, n in manifest["entries"].items() if n)
  return (
    f"{manifest['count']} records, {manifest['pictures']} with a picture, entries:"
    f" {entries}, in {len(manifest['shards'])} shards"
  )


def _table(title: str, values: np.ndarray) -> str:
  """Draws a histogram, the last bin open for the longest percent."""
  values = np.asarray(values)
  if not len(values):
    return ""
  top = max(float(np.percentile(values, 99)), 1.0)
  counts, edges = np.histogram(np.minimum(values, top), BINS, (0, top))
  rows = "".join(
    f"<tr><td>{a:.0f} to {b:.0f}<td>{n}<td><div class=bar"
    f' style="width:{400 * n / counts.max():.0f}px"></div>'
    for a, b, n in zip(edges, edges[1:], counts)
  )
  middle = np.percentile(values, [50, 99]).astype(int)
  return (
    f"<h2>{title}</h2><p>mean {values.mean():.1f}, median {middle[0]}, 99 % below"
    f" {middle[1]}, longest {values.max()}</p><table>{rows}</table>"
  )


def _text_table(prepared: records.Records) -> str:
  chosen = [prepared[i] for i in _spread(np.arange(len(prepared)), SAMPLE)]
  entries = [entry for record in chosen for entry in record["texts"]]
  sizes = [sum(len(part) for turn in e["turns"] for part in turn) for e in entries]
  return _table("Characters of an entry (a sample)", np.array(sizes))


def _token_tables(lengths: records.Lengths) -> list[str]:
  kept = lengths.count[lengths.count > 0]
  return [
    _table("Visual tokens of a picture", kept),
    _table("Text tokens of an entry", lengths.text),
  ]


def _packing(
  lengths: records.Lengths, mixture: dict[str, float] | None, row_length: int
) -> list[str]:
  """Plans rows as training does and says how full they are."""
  if mixture is None:
    there = {records.TASKS[i] for i in np.unique(lengths.task)}
    there |= {"text_image"} if "caption" in there else set()
    mixture = {name: share for name, share in MIXTURE.items() if name in there}
  try:
    plan = pack_plan.plan_rows(
      lengths,
      mixture,
      seed=0,
      rows=ROWS,
      row_length=row_length,
      images_per_row=0,
      uncond_fraction=0.1,
      name=str,
    )
  except ValueError as error:
    return [f"no packing of rows of {row_length} tokens: {error}"]
  return [f"packed: {pack_plan.summary(plan)}"]


def _words(record: dict) -> str:
  texts = [
    text for e in record["texts"] for turn in e["turns"] for text in turn if text
  ]
  return html.escape(" / ".join(texts)[:300])


def _card(prepared: records.Records, sidecar: records.Sidecar | None, i: int) -> str:
  """Shows one picture as the encoder sees it, with its texts."""
  record, told = prepared[i], ""
  size = EDGE if sidecar is None else sidecar.manifest["image_size"]
  try:
    pixels = images.decode(record["image"], size)
  except ValueError as error:
    return f"<div><p>{html.escape(str(error))}</p></div>"
  if sidecar is not None:
    side = sidecar[i]
    pixels = _dimmed(pixels, side["keep"])
    told = f"<p>{side['count']} of {len(side['keep'])} patches kept</p>"
  buffer = io.BytesIO()
  Image.fromarray(pixels).resize((EDGE, EDGE)).save(buffer, "JPEG")
  data = base64.b64encode(buffer.getvalue()).decode()
  return (
    f'<div><img src="data:image/jpeg;base64,{data}" width={EDGE}>{told}'
    f"<p>{_words(record)}</p><p>{html.escape(record['id'])}</p></div>"
  )


def _dimmed(pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
  """Dims the patches that are not kept: u8[S, S, 3], bool[P] -> u8[S, S, 3]."""
  side = round(len(keep) ** 0.5)
  edge = -(-len(pixels) // side)
  mask = np.kron(keep.reshape(side, side), np.ones((edge, edge), bool))
  mask = mask[: len(pixels), : len(pixels)]
  return np.where(mask[..., None], pixels, pixels // 4 + 160).astype(np.uint8)
