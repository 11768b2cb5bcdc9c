"""What a run's data are, whatever their paths: fingerprints of their manifests."""

import hashlib
import json

import ml_collections
from etils import epath

from lavit_jax.data import shards, text

PATHS = ("data.train", "data.eval", "data.text_tokenizer", "data.old.train")
CODED = ("pixel_decoder", "pretrain", "finetune")  # stages that read codes, too


def of(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Fingerprints by field of the config, of those that name a folder.

  Records have one of all their bytes in their manifest; of codes the manifest says
  which tokenizers made them and how many there are.
  """
  found = {}
  for field in PATHS:
    place = config
    for key in field.split("."):
      place = place.get(key) if place is not None else None
    if not place:
      continue
    if field == "data.text_tokenizer":
      found[field] = text.load_text_tokenizer(place).checksum[:16]
    else:
      found[field] = _records(epath.Path(place), config.stage in CODED)
  return found


def _records(folder: epath.Path, coded: bool) -> str:
  """The fingerprint of prepared records, with their codes where they are read."""
  names = [shards.read_json(folder / shards.MANIFEST)["fingerprint"]]
  if coded:
    made = shards.read_json(folder / "codes" / shards.MANIFEST)
    made = {name: made[name] for name in sorted(made) if name != "shards"}
    names.append(json.dumps(made))
  return hashlib.sha256("".join(names).encode()).hexdigest()[:16]
