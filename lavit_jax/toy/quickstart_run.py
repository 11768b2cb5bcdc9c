"""A small LaVIT from nothing, part by part."""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import ml_collections

from lavit_jax.data import shards
from lavit_jax.inference import sidecars
from lavit_jax.stages import stage_run
from lavit_jax.toy import patch_words, pixel_study, prepared, study
from lavit_jax.toy.report import writer
from lavit_jax.training import metrics
from lavit_jax.weights import model_directory

PARTS = (
  *("prepare", "contrastive", "visual_tokenizer"),
  *("tokenize", "pixel_decoder", "pretrain", "evaluate"),
)
# What a full run's stages reach on held-out pictures at least, unless they went wrong.
LEAST = {
  "contrastive": {
    "retrieval_at_1": 0.8,
    "word_accuracy_color": 0.98,
    "word_accuracy_shape": 0.92,
  },
  "visual_tokenizer": {"cosine": 0.95},
}
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Size:
  """How much work a quickstart does.

  Attributes:
    train: training records.
    test: held-out records, and as many novel ones.
    steps: share of the configs' steps.
    limits: cases per figure, by split.
  """

  train: int
  test: int
  steps: float
  limits: Mapping[str, study.Limits]


MANY_PIXELS = pixel_study.Limits(drawings=500, digits=400, reconstructions=256)
FULL = Size(
  *(20_000, 1_600, 1.0),
  {
    "validation": study.Limits(),
    "test": study.Limits(drawings=500, pixels=MANY_PIXELS),
  },
)
FEW_PIXELS = pixel_study.Limits(8, 10, 8, (1.0, 2.0), 8, reader_steps=20)
FEW = study.Limits(captions=8, questions=24, drawings=8, pixels=FEW_PIXELS)
SMALL = Size(*(256, 96, 0.02), {"validation": FEW, "test": FEW})


def run(workdir: str, size: Size, seed: int = 0, split: str = "validation") -> dict:
  """Runs or continues a quickstart.

  Args:
    workdir: folder for data, run directories and the report.
    size: FULL or SMALL.
    seed: of weights, data order and the selection in training.
    split: "validation" or "test", the pictures behind the figures.

  Returns:
    The contents of report.json.
  """
  folder = pathlib.Path(workdir)
  _claim(folder, size, seed)
  data, clock = folder / "data", _Clock(folder / "seconds.json")
  with clock.part("prepare") as due:
    if due(data / "text_tokenizer"):
      prepared.prepare_toy(str(data), size.train, size.test)
  settings = configs(folder, size, seed)
  for stage in ("contrastive", "visual_tokenizer"):
    _train(stage, settings[stage], folder, clock)
    if size.steps == 1:
      for line in low_figures(stage, metrics.read(str(folder / stage), "eval")[-1]):
        print(line, flush=True)
  model = str(folder / "visual_tokenizer" / "model")
  with clock.part("tokenize") as due:
    for seen in ("train", "validation"):
      if due(data / seen / "codes" / shards.MANIFEST):
        sidecars.run(model, str(data / seen), unroll=4)
  for stage in ("pixel_decoder", "pretrain"):
    _train(stage, settings[stage], folder, clock)
  model = str(folder / "pretrain" / "model")
  with clock.part("evaluate"):
    findings = study.study(model, str(data), split, size.limits[split])
  stages = {name: str(folder / name) for name in settings}
  made = writer.write(folder, findings, stages, clock.seconds, split)
  print(f"report: {folder / 'report.html'}", flush=True)
  return made


def _train(stage: str, config, folder: pathlib.Path, clock: "_Clock") -> None:
  with clock.part(stage) as due:
    if due(folder / stage / "model" / model_directory.MANIFEST):
      stage_run.run(config, str(folder / stage), paint=patch_words.paint)


def low_figures(stage: str, found: Mapping[str, float]) -> list[str]:
  """Says which held-out figures of a stage are so low that all later ones suffer.

  Args:
    stage: "contrastive" or "visual_tokenizer".
    found: figures of its last evaluation.
  """
  return [
    f"{stage} went wrong: expected {name} of {least} or more, got {found[name]:.3f};"
    " figures of later stages will be low, try another --seed"
    for name, least in LEAST[stage].items()
    if not found[name] >= least
  ]


def _claim(folder: pathlib.Path, size: Size, seed: int) -> None:
  """Refuses a folder that holds a quickstart of another size or seed."""
  path = folder / "quickstart.json"
  mine = {"train": size.train, "test": size.test, "steps": size.steps, "seed": seed}
  if path.exists():
    found = json.loads(path.read_text())
    other = {name: found.get(name, 0) for name in mine}
    if other != mine:
      raise ValueError(
        f"expected a quickstart of {mine} in {folder}, got one of {other}; repeat its"
        " flags --smoke and --seed, or choose a new --workdir"
      )
  folder.mkdir(parents=True, exist_ok=True)
  shards.write_json(path, mine)


class _Clock:
  """Times the parts; an interrupted part goes on counting when it is continued."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._parts = json.loads(path.read_text()) if path.exists() else {}

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds by part, in the order in which they run."""
    return {name: self._parts[name]["seconds"] for name in PARTS if name in self._parts}

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[Callable[[pathlib.Path], bool]]:
    """Times a part and says so; yields a test of whether a result is still due."""
    asked, started = [], time.monotonic()

    def due(result: pathlib.Path) -> bool:
      asked.append(not result.exists())
      return asked[-1]

    before = self._parts.get(name, {"seconds": 0.0, "finished": False})
    finished = False
    try:
      yield due
      finished = True
    finally:
      idle = asked and not any(asked) and before["finished"]
      if not idle:
        earlier = 0.0 if before["finished"] else before["seconds"]
        spent = round(earlier + time.monotonic() - started, 1)
        self._parts[name] = {"seconds": spent, "finished": finished}
        shards.write_json(self._path, self._parts)
    state = "done earlier" if idle else "done"
    print(f"{name:<17}{self.seconds[name]:6.0f} s  {state}", flush=True)


def configs(
  folder: pathlib.Path, size: Size, seed: int
) -> dict[str, ml_collections.ConfigDict]:
  """The tiny configs of the four stages, on this run's folders."""
  if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))  # configs/ lies beside the package
  from configs import contrastive, pixel_decoder, pretrain, visual_tokenizer

  made = {
    "contrastive": contrastive.get_config("tiny"),
    "visual_tokenizer": visual_tokenizer.get_config("tiny"),
    "pixel_decoder": pixel_decoder.get_config("tiny"),
    "pretrain": pretrain.get_config("tiny"),
  }
  data = folder / "data"
  for config in made.values():
    config.data.train, config.data.eval = str(data / "train"), str(data / "validation")
    config.seed = seed
    config.data.shuffle_seed += len(made) * seed  # stages differ in it, too
    config.num_steps = max(round(config.num_steps * size.steps), 8)
  for name in ("contrastive", "pretrain"):
    made[name].data.text_tokenizer = str(data / "text_tokenizer")
  made["visual_tokenizer"].init_from = str(folder / "contrastive" / "model")
  made["pixel_decoder"].init_from = str(folder / "visual_tokenizer" / "model")
  made["pretrain"].init_from = str(folder / "pixel_decoder" / "model")
  if size.steps < 1:
    _shrink(made, size)
  return made


def _shrink(made: dict[str, ml_collections.ConfigDict], size: Size) -> None:
  """Lets everything beside the steps shrink with them."""
  for config in made.values():
    config.update(dict(eval_batches=1, log_every=2))
  pictures = made["contrastive"]
  pictures.whitening_pictures = size.train
  tokens = made["visual_tokenizer"]
  tokens.phase_a_steps = tokens.num_steps // 2
  tokens.update(dict(kmeans_per_code=2, kmeans_iterations=2))
  rows = made["pretrain"]
  rows.data.plan_rows = rows.num_steps * rows.batch_size
  rows.data.eval_rows = rows.batch_size
