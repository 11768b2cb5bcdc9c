"""The widths of a stage's arrays that a mesh axis splits: what fsdp has to divide."""

import ml_collections
from jax.sharding import AbstractMesh, Mesh

from lavit_jax.weights import model_directory


def of(config: ml_collections.ConfigDict, pictures: int) -> list[int]:
  """Widths of everything that a stage holds, trained or frozen.

  Args:
    config: stage config.
    pictures: width of the vision encoder and of the visual tokenizer.
  """
  model = config.model
  if config.stage == "contrastive":
    return [model.vit.embed_dim, model.text.embed_dim]
  if config.stage == "pixel_decoder":
    return [*model.unet.level_channels, pictures]
  if config.stage == "visual_tokenizer":
    return [pictures]
  return [model.embed_dim, pictures]


def of_run(config: ml_collections.ConfigDict) -> list[int]:
  """Those of a run, whose pictures are read as its `init_from` says."""
  if config.stage in ("contrastive", "visual_tokenizer"):
    return of(config, config.model.get("embed_dim", 0))
  sizes = model_directory.part_config(config.init_from, "visual_tokenizer")
  return of(config, sizes["embed_dim"])


def check(mesh: Mesh | AbstractMesh, widths: list[int]) -> None:
  """Refuses a size of fsdp that would leave large arrays whole on every device.

  Raises:
    ValueError: names the width and the mesh to ask for.
  """
  size = mesh.shape["fsdp"]
  wrong = sorted({width for width in widths if width % size})
  if wrong:
    raise ValueError(
      f"mesh axis fsdp = {size} does not divide the widths {wrong} of this model, whose"
      " arrays every device would hold whole; set --config.mesh.fsdp=-1, which takes"
      " the largest size that does and gives the rest to data"
    )
