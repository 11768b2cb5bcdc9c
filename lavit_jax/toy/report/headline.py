"""The headline table: every figure beside its chance level and its baselines."""

from collections.abc import Mapping

from lavit_jax.training import page

# What each figure is called, by group. Figures of other names are shown as they are.
TITLES = {
  "Dynamic tokens": {
    "kept_share": "Share of patches kept, training mixture",
    "kept_vs_objects_spearman": "Rank correlation: kept tokens and number of objects",
    "keep_vs_mask_auroc": "AUROC: keep probability against object mask",
    "object_patches_kept": "Share of object patches that are kept",
    "codes_used": "Share of the codebook in use",
    "code_perplexity": "Perplexity of the codes",
  },
  "Reconstructed features": {
    "reconstruction_cosine": "Cosine with the true features, all patches",
    "object_patch_cosine": "Cosine on the patches of objects",
    "reconstructed_cell": "Cell of a single object, read from the reconstruction",
    "reconstructed_feature_color_shape": (
      "Color and shape, read from the reconstruction"
    ),
  },
  "Reading": {
    "caption_color_shape": "Captions name color and shape of a single object",
    "digit_caption_accuracy": "Captions name the handwritten digit",
    "answer_accuracy": "Answers, all five kinds of questions",
    "digit_answers": "Answers: which digit is this?",
  },
  "Drawing": {
    "drawn_feature_color_shape": "Drawn features show the requested color and shape",
    "drawn_feature_cell": "Drawn features show them in the requested cell",
  },
  "Pixels, read by a classifier of their own": {
    "drawn_all_three": "Drawings show color, shape and cell together",
    "drawn_color_shape": "Drawings show the requested color and shape",
    "drawn_cell": "Drawings show them in the requested cell",
    "drawn_digit_accuracy": "Drawn digits are recognized",
    "reconstructed_color_shape": "Reconstructions keep color and shape",
    "reconstructed_pixel_cell": "Reconstructions keep the cell",
  },
  "Color-shape pairs that training never showed": {
    "novel_caption_color_shape": "Captions name color and shape",
    "novel_drawn_feature_color_shape": "Drawn features show color and shape",
    "novel_drawn_feature_cell": "Drawn features show them in the requested cell",
  },
}
EXTRAS = {
  "random_mask": "random mask of equal count",
  "other_picture": "shown another picture",
  "true_features": "read from the true features",
  "true_pictures": "read from true pictures",
  "reconstructed": "read from reconstructions",
  "place_where_named": "place right, where one is named",
  "color": "color",
  "shape": "shape",
  "all_three": "color, shape and cell together",
  "objects_per_drawing": "objects read per drawing (one is right)",
  "scenes": "scenes",
  "digits": "digits",
}


def show(value: float | None) -> str:
  """A number for people: three decimals below ten, none above a hundred."""
  if value is None:
    return "–"
  size = abs(value)
  return (
    f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"
  )


def table(figures: Mapping[str, dict]) -> str:
  """The table of all figures, grouped; of unknown names at the end."""
  rows, known = [], set()
  for group, names in TITLES.items():
    present = [name for name in names if name in figures]
    rows += [[page.text(group)]] if present else []
    rows += [_figure_row(names[name], figures[name]) for name in present]
    known |= set(present)
  rows += [_figure_row(name, figures[name]) for name in figures if name not in known]
  head = ("figure", "value", "chance", "n", "chance is")
  return page.table(head, rows, {1, 2, 3})


def _figure_row(title: str, figure: Mapping) -> list[str]:
  beside = [
    f"{words} {show(figure[name])}"
    for name, words in EXTRAS.items()
    if figure.get(name) is not None
  ]
  below = f'<br><span class="chance">{"; ".join(beside)}</span>' if beside else ""
  return [
    page.text(title) + below,
    f"<b>{show(figure['value'])}</b>",
    show(figure["chance"]),
    f"{figure['n']:,}",
    f'<span class="chance">{page.text(figure["chance_is"])};'
    f" n counts {page.text(figure['of'])}</span>",
  ]
