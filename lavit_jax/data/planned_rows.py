"""The pack plan of a tokenized folder, made once and kept beside its codes."""

import os
import pathlib
import tempfile
from typing import Any

from lavit_jax.data import corpora, pack_plan, plan_files, records


def open_coded(
  folder: str, visual_tokenizer: str, text_tokenizer: str
) -> tuple[records.Records, records.Sidecar]:
  """Opens a prepared folder with its sidecar.

  Args:
    folder: prepared shards, with the sidecar below `codes`.
    visual_tokenizer: checksum of the one that must have made the sidecar.
    text_tokenizer: likewise.

  Raises:
    ValueError: another tokenizer made the sidecar.
  """
  prepared = records.Records(folder)
  sidecar = records.Sidecar(f"{folder}/codes")
  records.check_sidecar(sidecar.manifest, visual_tokenizer)
  made_with = sidecar.manifest["text_tokenizer"]
  if made_with != text_tokenizer:
    raise ValueError(
      f"expected a sidecar of the text tokenizer {text_tokenizer[:16]}, got one of"
      f" {made_with[:16]} in {folder}/codes; run python -m lavit_jax.tokenize again"
    )
  return prepared, sidecar


def open_all(
  given: str, mixture: dict[str, float], visual_tokenizer: str, text_tokenizer: str
) -> tuple[Any, Any, dict[str, Any]]:
  """Opens one folder or several with their shares.

  Args:
    given: what a config says of `data.train`, see `corpora`.
    mixture: shares of tokens by kind.
    visual_tokenizer: as for `open_coded`, and likewise the next.
    text_tokenizer: of every folder.

  Returns:
    Records and sidecars of all folders, and the settings of their plan that follow.
  """
  several = corpora.parse(given)
  opened = [open_coded(c.folder, visual_tokenizer, text_tokenizer) for c in several]
  prepared, sidecars = (list(parts) for parts in zip(*opened))
  settings = {"weights": corpora.weights(several, mixture, prepared)}
  prepared, sidecar = corpora.chain(prepared), corpora.chain(sidecars)
  if len(several) > 1:
    settings["starts"] = sidecar.starts
  return prepared, sidecar, settings


def find_or_make(
  prepared: records.Records, sidecar: records.Sidecar, settings: dict[str, Any]
) -> pack_plan.PackPlan:
  """The plan of these lengths and settings, from its file where there is one.

  Args:
    prepared: the records, which give names.
    sidecar: their lengths; its folder keeps the plan, where it may be written.
    settings: arguments of `pack_plan.plan_windows`.
  """
  facts, folder = {"settings": settings, "lengths": sidecar.manifest}, sidecar.folder
  if not os.access(folder, os.W_OK):  # a data set that others share read-only
    folder = pathlib.Path(tempfile.gettempdir()) / "lavit_jax_plans"

  def make():
    return pack_plan.plan_windows(
      sidecar.lengths, **settings, name=lambda record: prepared[record]["id"]
    )

  return plan_files.find_or_make(folder, facts, make)
