"""Tokens per second against transformers' generate, on this CPU: the same weights.

    python -m benchmarks.generate --size=58m [--cases=greedy-1,beam-5] [--repeats=5]

Needs torch and transformers. Both sides run in float32 on the same number of threads,
in turns; the median of each is compared. Times include reading the prompt. The peer
gets its own choice of attention and no processor that it does not need; ours keeps
to text or code ids as it always does. `floor` is the time that reading the weights of a
step takes at the bandwidth measured in the same run.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import beam, engine, logits, prompts, serving
from lavit_jax.layers import linear
from lavit_jax.models import llama
from lavit_jax.weights import llama as table
from lavit_jax.weights import rules

WORDS = Vocabulary(text_size=2000, num_codes=16384)
SIZES = {
  "58m": dict(embed_dim=512, num_layers=12, num_heads=8, mlp_dim=1408),
  "250m": dict(embed_dim=1024, num_layers=16, num_heads=16, mlp_dim=2816),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One comparison.

  Attributes:
    batch: prompts.
    prompt: their length.
    new: ids to make of each.
    beams: of a search; 0 without one.
    guidance: of a sampled drawing; 0 for greedy text.
  """

  batch: int
  prompt: int
  new: int
  beams: int = 0
  guidance: float = 0.0


CASES = {
  "greedy-1": Case(1, 100, 64),
  "greedy-16": Case(16, 100, 64),
  "beam-5": Case(1, 100, 36, beams=5),
  "draw-64": Case(1, 24, 64, guidance=4.0),
  "draw-256": Case(1, 24, 256, guidance=4.0),
}


def make_peer(sizes: dict):
  """A random transformers model."""
  import torch
  import transformers

  torch.manual_seed(0)
  torch.set_num_threads(os.cpu_count())
  torch.set_grad_enabled(False)
  config = transformers.LlamaConfig(
    vocab_size=WORDS.size,
    hidden_size=sizes["embed_dim"],
    intermediate_size=sizes["mlp_dim"],
    num_hidden_layers=sizes["num_layers"],
    num_attention_heads=sizes["num_heads"],
    max_position_embeddings=2048,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
  )
  return transformers.LlamaForCausalLM(config).eval()


def make_model(sizes: dict) -> tuple[llama.Llama, Callable]:
  """Our model of these sizes, and the function that makes its parameters, boxed."""
  model = llama.Llama(
    vocab_size=WORDS.size,
    padded_size=WORDS.padded_size,
    **sizes,
    num_kv_heads=sizes["num_heads"],
    head_dim=sizes["embed_dim"] // sizes["num_heads"],
    rope_base=10000.0,
    norm_eps=1e-6,
    dtype="float32",
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  return model, lambda key: model.init(key, ids, ids, ids, method="everything")


def make_ours(sizes: dict, state: dict) -> serving.Serving:
  """The same weights, laid out."""
  model, init = make_model(sizes)
  abstract, _ = linear.abstract_params(init)
  params = rules.import_weights(table.table(WORDS.size), state, abstract)
  return served(model, params)


def served(model: llama.Llama, params) -> serving.Serving:
  """A model on one device."""
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  return serving.prepare(model, params, WORDS, mesh)


def run_peer(peer, case: Case, ids: np.ndarray) -> None:
  """transformers' generate."""
  import torch

  own = dict(max_new_tokens=case.new, do_sample=False, num_beams=max(case.beams, 1))
  if case.guidance:
    free = torch.full((case.batch, 1), WORDS.image_start)
    own |= dict(do_sample=True, top_k=50, guidance_scale=case.guidance)
    own |= dict(negative_prompt_ids=free)
  tokens = torch.from_numpy(ids)
  found = peer.generate(tokens, attention_mask=torch.ones_like(tokens), **own)
  assert found.shape == (case.batch, case.prompt + case.new)


def run_ours(side: serving.Serving, case: Case, ids: np.ndarray) -> None:
  """The engine."""
  own = dict(max_new=case.new, min_new=case.new - 1)
  how = logits.Settings(end=Vocabulary.end, allowed="text", **own)
  if case.guidance:
    how = logits.Settings(
      end=WORDS.image_end,
      allowed="codes",
      temperature=1.0,
      top_k=50,
      guidance=case.guidance,
      **own,
    )
  if case.beams:
    how = beam.Beams(how, case.beams)
  found = generate(side, ids, how)
  assert all(len(replies[0].ids) >= case.new - 1 for replies in found)


def generate(side: serving.Serving, ids: np.ndarray, how) -> list[list[engine.Reply]]:
  """Replies to int[B, T] ids, in one batch."""
  none = np.full(ids.shape[1], -1, np.int32)
  asked = [engine.Request(prompts.Prompt(row, none), how) for row in ids]
  vectors = lambda batch, members: EMBED(side.model, side.weights, batch.tokens)
  return engine.generate(side, asked, vectors, len(ids))


EMBED = jax.jit(serving.embed, static_argnums=0)


def seconds(function, *arguments) -> float:
  """How long one call takes."""
  begin = time.perf_counter()
  function(*arguments)
  return time.perf_counter() - begin


def bandwidth() -> float:
  """Bytes per second of a sum over 400 MB, the best of ten."""
  array = jnp.ones(10**8, jnp.float32)
  total = jax.jit(jnp.sum)
  total(array).block_until_ready()
  run = lambda: total(array).block_until_ready()
  return array.nbytes / min(seconds(run) for _ in range(10))


def compare(name: str, peer, side: serving.Serving, repeats: int) -> None:
  """Prints the pair, the ratio, and how near ours is to the floor."""
  case = CASES[name]
  rng = np.random.default_rng(0)
  ids = rng.integers(3, WORDS.text_size, (case.batch, case.prompt))
  short = dataclasses.replace(case, new=case.new // 2)
  sides = {
    "peer": lambda: run_peer(peer, case, ids),
    "ours": lambda: run_ours(side, case, ids),
    "half": lambda: run_ours(side, short, ids),  # tells a step from the prompt
  }
  for run in sides.values():
    run()
  times = {own: [] for own in sides}
  for _ in range(repeats):
    for own, run in sides.items():
      times[own].append(seconds(run))
  tokens = case.batch * case.new
  peer_time, our_time = (statistics.median(times[own]) for own in ("peer", "ours"))
  steps = case.new - short.new
  step = statistics.median(
    (a - b) / steps for a, b in zip(times["ours"], times["half"])
  )
  read = sum(leaf.nbytes for leaf in jax.tree.leaves(side.weights))
  read -= side.weights.ends["embedding"]["embedding"].nbytes
  floor = read / bandwidth()
  print(
    f"{name}: transformers {tokens / peer_time:.1f} tokens/s, ours"
    f" {tokens / our_time:.1f} tokens/s, ratio {peer_time / our_time:.2f};"
    f" step {1e3 * step:.2f} ms, floor {1e3 * floor:.2f} ms"
    f" ({read / floor / 1e9:.1f} GB/s), {floor / step:.0%} of the floor",
    flush=True,
  )


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", choices=SIZES, default="58m")
  parser.add_argument("--cases", default=",".join(CASES))
  parser.add_argument("--repeats", type=int, default=5)
  given = parser.parse_args()
  peer = make_peer(SIZES[given.size])
  state = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
  side = make_ours(SIZES[given.size], state)
  count = sum(tensor.size for tensor in state.values())
  print(f"{given.size}: {count / 1e6:.1f} M parameters, {os.cpu_count()} threads")
  for name in given.cases.split(","):
    compare(name, peer, side, given.repeats)


if __name__ == "__main__":
  main()
