"""The sections of report.html, from the headline table to the configs."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from lavit_jax.toy import findings, world
from lavit_jax.toy.report import drawn, headline, hero, overlays
from lavit_jax.toy.report.patch_grid import patch_grid
from lavit_jax.training import page, plots

# Lines beside the loss, by stage.
BESIDE = {
  "contrastive": ("retrieval_at_1",),
  "visual_tokenizer": ("cosine", "kept_share"),
  "pixel_decoder": (),
  "pretrain": ("accuracy", "fill"),
}


def document(
  findings: findings.Findings, facts: Mapping, records: Mapping[str, Sequence[dict]]
) -> str:
  """The whole page.

  Args:
    findings: figures and examples.
    facts: the contents of report.json.
    records: training records by stage.
  """
  pictures, links = findings.pictures, findings.figures.get("drawn_all_three", {})
  parts = {
    "length": ("Length", _kept_counts(findings) + _kept_maps(pictures)),
    "codes": ("Codes", _codes(pictures)),
    "reading": ("Captions and answers", _texts(findings)),
    "drawing": (
      "Drawings",
      drawn.section(findings.pixels, links.get("links", {})) + _grids(findings),
    ),
    "figures": ("Figures", headline.table(findings.figures) + _disclosure(findings)),
    "training": ("Training", _curves(records, facts["stages"]) + _time(facts)),
    "machine": ("Machine", _machine(facts)),
  }
  sections = [page.section(anchor, *part) for anchor, part in parts.items()]
  nav = page.navigation({anchor: part[0] for anchor, part in parts.items()})
  return page.page("LaVIT quickstart", [_opening(findings, facts), *sections], nav)


def _opening(findings: findings.Findings, facts: Mapping) -> str:
  kept = findings.pictures.keep.sum(1)
  patches = findings.pictures.keep.shape[1]
  seconds, host = facts["seconds"]["total"], facts["machine"]
  return (
    "<h1>A small LaVIT that reads and draws</h1>"
    '<p class="lead">Trained from nothing on drawn scenes and handwritten digits. A'
    f" picture costs <b>{kept.mean():.1f} tokens</b> on average, between {kept.min()}"
    f" and {kept.max()}, where a fixed grid would spend {patches}.</p>"
    + hero.drawings(findings)
    + f'<p class="soft">{seconds / 60:.1f} minutes on {page.text(host["processor"])},'
    f" {host['cores']} cores ({page.text(host['devices'])}), {facts['written'][:10]}."
    f" Every figure is measured on the {facts['split']} split, pictures that training"
    " never saw, with the default, sampled selection of patches.</p>"
  )


def _disclosure(findings: findings.Findings) -> str:
  return (
    '<div class="note"><p><b>Read the figures with this in mind.</b></p>'
    "<p>The small encoder of this quickstart has seen patch labels: beside the"
    " contrastive loss, stage 0 names the color and the shape of the object on each"
    " patch, since a contrastive loss alone does not learn shapes in minutes."
    " “Drawn features show …” and “keep probability against object mask” are easier"
    " with such an encoder than with a purely contrastive one; the same word heads do"
    " the reading.</p>"
    "<p>A fixed whitening buffer stands between this encoder and the visual tokenizer;"
    " without it the position of objects is lost. Published EVA-CLIP weights"
    " need neither.</p>"
    + (drawn.DISCLOSURE if findings.pixels else drawn.NO_PIXELS)
    + "</div>"
  )


def _curves(records: Mapping[str, Sequence[dict]], stages: Mapping[str, dict]) -> str:
  line = lambda rows, name: (
    [r["step"] for r in rows if name in r],
    [r[name] for r in rows if name in r],
  )
  above, below = [], []
  for stage, rows in records.items():
    title, mark = stage.replace("_", " "), stages[stage]["config"].get("phase_a_steps")
    above.append((f"{title}: loss", {"loss": line(rows, "loss")}, mark))
    names = [name for name in BESIDE.get(stage, ()) if any(name in r for r in rows)]
    if names:
      lines = {name: line(rows, name) for name in names}
      words = " and ".join(names).replace("_", " ")
      below.append((f"{title}: {words}", lines, mark))
  return (
    "<p>Loss of every stage, and what moves beside it. At the dashed"
    " line the visual tokenizer's features begin to pass through the codebook.</p>"
    + page.plot(plots.curves(above + below), "loss curves of all stages")
  )


def _kept_maps(pictures: findings.Pictures) -> str:
  order = [*range(world.MAX_OBJECTS + 1), -1]
  chosen = [np.flatnonzero(pictures.count == count)[:1] for count in order]
  figures = []
  for i in np.concatenate(chosen).astype(int):
    image, keep = pictures.image[i], pictures.keep[i]
    name = "digit" if pictures.count[i] < 0 else f"{pictures.count[i]} objects"
    heat = overlays.heat_map(image, pictures.probability[i])
    trio = (image, overlays.kept_map(image, keep), heat)
    content = "".join(page.pixels(each, 108, name) for each in trio)
    caption = f"{name.removesuffix('s') if name[0] == '1' else name}, {keep.sum()} kept"
    figures.append(page.figure(f'<div class="pair">{content}</div>', caption))
  return (
    "<h3>Which patches are kept</h3><p>The picture, the patches that became tokens, and"
    " the probability of keeping each patch (bright is likely).</p>" + page.row(figures)
  )


def _kept_counts(findings: findings.Findings) -> str:
  pictures, figure = findings.pictures, findings.figures["kept_vs_objects_spearman"]
  scene = pictures.count >= 0
  plot = overlays.kept_by_count(pictures.keep[scene].sum(1), pictures.count[scene])
  return (
    "<p>Kept tokens of held-out scenes by number of"
    f" objects; the dot is the mean. Rank correlation {headline.show(figure['value'])},"
    f' chance {headline.show(figure["chance"])}.</p><div style="max-width:720px">'
    + page.plot(plot, "kept tokens by number of objects")
    + "</div>"
    + _lengths(findings.figures["object_patches_kept"]["selections"])
  )


def _lengths(selections: Mapping[str, Mapping]) -> str:
  """The selector beside masks of a fixed number of patches."""
  head = ("selection", "share kept", "object patches kept", "cosine on them")
  head += ("cosine, all patches", "tokens: empty scene", "6 objects")
  tokens = lambda found, count: (
    f"{found['mean']:.1f} ± {found['deviation']:.1f}"
    if (found := found["kept_by_objects"].get(count))
    else "–"
  )
  names = ("kept_share", "object_patches_kept", "object_patch_cosine", "cosine")
  rows = [
    [page.text(name.replace("_", "-")), *(headline.show(found[n]) for n in names)]
    + [tokens(found, count) for count in ("0", str(world.MAX_OBJECTS))]
    for name, found in selections.items()
  ]
  return (
    "<h3>Against masks of a fixed length</h3>"
    "<p>The selector beside masks that keep equally many"
    " patches of every picture, on average as many as it does: random ones, an even"
    " grid, and the N most probable (top-n). All go through the same merger, codebook"
    " and decoder, which learnt with the selector's masks.</p>"
    + page.plot(overlays.lengths(selections), "length against content")
    + page.table(head, rows, set(range(1, len(head))))
  )


def _codes(pictures: findings.Pictures) -> str:
  used = pictures.codes[pictures.keep]
  counts = np.bincount(used, minlength=pictures.num_codes)
  on_objects = np.bincount(
    pictures.codes[pictures.keep & pictures.objects], minlength=pictures.num_codes
  )
  ordered = [int(code) for code in np.argsort(-counts, kind="stable")[:4]]
  by_object = np.argsort(-on_objects, kind="stable")
  ordered += [int(code) for code in by_object if int(code) not in ordered][:16]
  strips = [_strip(pictures, code, counts[code]) for code in ordered if counts[code]]
  return (
    f"<p>{(counts > 0).sum():,} of {pictures.num_codes:,} codes"
    f" occur on the {len(used):,} kept patches of the held-out mixture.</p>"
    + hero.patches(pictures)
    + page.plot(overlays.code_usage(counts), "code usage")
    + "<h3>Patches that share a code</h3><p>Each row: patches of different pictures"
    " that received the same code; first the four most used codes, then those most"
    f' used on objects.</p><div class="strip">{"".join(strips)}</div>'
  )


def _strip(pictures: findings.Pictures, code: int, count: int) -> str:
  cut, _ = hero.of_code(pictures, code, hero.PATCHES)
  shown = "".join(page.pixels(patch, 28) for patch in cut)
  return f"<div><span>{code} · {count}×</span>{shown}</div>"


def _texts(findings: findings.Findings) -> str:
  kinds = findings.figures["answer_accuracy"]["kinds"]
  rows = [
    [
      kind,
      f"<b>{headline.show(k['value'])}</b>",
      headline.show(k["chance"]),
      headline.show(k["other_picture"]),
    ]
    + [f"{k['n']:,}"]
    for kind, k in kinds.items()
  ]
  head = ("kind", "right", "majority answer", "shown another picture", "n")
  cards = lambda examples: f'<div class="cards">{"".join(map(_card, examples))}</div>'
  return (
    "<h3>Captions</h3><p>The model's caption, and the true one. Color marks whether it"
    " names the same objects (or the same digit).</p>"
    + cards(findings.captions)
    + "<h3>Answers</h3>"
    + page.table(head, rows, {1, 2, 3, 4})
    + cards(findings.answers)
  )


def _card(example: findings.TextExample) -> str:
  mark = "right" if example.right else "wrong"
  asked = f'<div class="question">{page.text(example.question)}</div>'
  return (
    f'<div class="card">{page.pixels(example.image, 84, example.truth)}<div>'
    + (asked if example.question else "")
    + f'<div class="{mark}">{page.text(example.text) or "(nothing)"}</div>'
    f'<div class="soft">truth: {page.text(example.truth)}</div></div></div>'
  )


def _grids(findings: findings.Findings) -> str:
  grid = lambda examples: page.row([_grid(example) for example in examples])
  return (
    "<h3>Reconstructed features</h3><p>A held-out picture, and what the word heads read"
    " from the features decoded from its codes: each patch in the color read there,"
    " with the sign of its shape.</p>"
    + grid(findings.reconstructions)
    + "<h3>Drawn features</h3><p>The picture that the prompt asks for (drawn by the toy"
    " world), and the read-out of the features that the model drew.</p>"
    + grid(findings.drawings)
    + "<h3>Color-shape pairs that training never showed</h3>"
    + grid(findings.novel_drawings)
  )


def _grid(example: findings.GridExample) -> str:
  pair = page.pixels(example.image, 112, example.title) + patch_grid(
    example.color, example.shape, 112
  )
  caption = page.text(example.title)
  if example.asked:
    mark = "right" if example.asked == example.read else "wrong"
    caption += f'<br>read: <span class="{mark}">{page.text(example.read)}</span>'
  caption = f'<div style="width:230px">{caption}</div>'
  return page.figure(f'<div class="pair">{pair}</div>', caption)


def _time(facts: Mapping) -> str:
  rows = []
  for part, seconds in facts["seconds"].items():
    stage = facts["stages"].get(part, {})
    size = stage.get("config", {}).get("batch_size")
    held_out = [
      f"{name.replace('_', ' ')} {headline.show(value)}"
      for name, value in stage.get("held_out", {}).items()
      if not name.startswith("word_")
    ]
    rows.append(
      [
        page.text(part.replace("_", " ")),
        f"{seconds:,.0f}",
        f"{stage['steps']:,} × {size}" if stage else "",
        headline.show(stage["examples_per_second"]) if stage else "",
        f'<span class="soft">{page.text("; ".join(held_out))}</span>',
      ]
    )
  head = ("part", "seconds", "steps × batch", "examples / s", "held out, at its end")
  return (
    "<h3>Time</h3><p>Seconds include compilation. An example is a picture in the first"
    " two stages and a packed row of several documents in the last.</p>"
    + page.table(head, rows, {1, 2, 3})
  )


def _machine(facts: Mapping) -> str:
  rows = [[page.text(k), page.text(v)] for k, v in facts["machine"].items()]
  rows += [[page.text(k), page.text(v)] for k, v in facts["versions"].items()]
  configs = [
    f"<details><summary>{page.text(name)}</summary>"
    f"<pre>{page.text(json.dumps(stage['config'], indent=2))}</pre></details>"
    for name, stage in facts["stages"].items()
  ]
  return page.table(("what", "which"), rows, set()) + "".join(configs)
