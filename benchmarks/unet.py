"""Times the U-Net beside diffusers on torch: a forward pass and a whole sample.

    python benchmarks/unet.py [--repeats=5] [--steps=25] [--side=32]

Both sides hold the same random weights, in float32, with the same threads; runs are
interleaved and medians compared. torch is given its best of two memory layouts. The
sample is DDIM with guidance, so each step is one call on two pictures. Prints one
line of JSON. Needs the `judges` extra.
"""

import argparse
import copy
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from lavit_jax.diffusion import schedule, solver
from lavit_jax.layers import linear
from lavit_jax.models import unet
from lavit_jax.planning import unet_flops
from lavit_jax.weights import rules, stable_diffusion

GUIDANCE = 7.0
TOKENS = 256
# Stable Diffusion 1.5 at 0.3 of its width.
CONFIG = dict(
  block_out_channels=(96, 192, 384, 384),
  cross_attention_dim=768,
  attention_head_dim=8,
)


def make_pair():
  """diffusers' model and ours with the same weights."""
  torch.manual_seed(0)
  peer = UNet2DConditionModel(**CONFIG).eval()
  fields = unet.fields_from_config(dict(peer.config))
  ours = unet.UNet(**fields, dtype="float32", unroll=1)
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  init = lambda *inputs: ours.init(jax.random.key(0), *inputs)
  context = shape(1, TOKENS, fields["context_dim"])
  boxed = jax.eval_shape(init, shape(1, 8, 8, 4), shape(1), context)
  target = linear.split_boxes(boxed)[0]["params"]
  state = {key: value.numpy() for key, value in peer.state_dict().items()}
  table = stable_diffusion.unet_table(fields)
  return peer, ours, rules.import_weights(table, state, target), fields


def our_calls(model, params, num_steps):
  """Compiled forward pass and sample."""
  steps = solver.ddim(schedule.from_config(schedule.STABLE_DIFFUSION), num_steps)

  @jax.jit
  def forward(params, latents, times, context):
    return model.apply({"params": params}, latents, times, context)

  @jax.jit
  def sample(params, noise, context):
    def predict(x, t):
      out = model.apply(
        {"params": params}, jnp.concatenate([x, x]), jnp.full(2, t), context
      )
      return out[:1] + GUIDANCE * (out[1:] - out[:1])

    return solver.solve(steps, predict, noise)

  wait = lambda call: lambda *inputs: np.asarray(call(params, *inputs))
  return wait(forward), wait(sample)


def peer_calls(model, num_steps, layout):
  """The same two calls on torch, in one memory layout."""
  model = copy.deepcopy(model).to(memory_format=layout)
  scheduler = DDIMScheduler.from_config(schedule.STABLE_DIFFUSION)

  def forward(latents, times, context):
    with torch.inference_mode():
      return model(latents.to(memory_format=layout), times, context).sample

  def sample(noise, context):
    scheduler.set_timesteps(num_steps)
    x = noise
    for t in scheduler.timesteps:
      out = forward(torch.cat([x, x]), t, context)
      out = out[:1] + GUIDANCE * (out[1:] - out[:1])
      x = scheduler.step(out, t, x).prev_sample
    return x

  return forward, sample


def timed(call, *inputs):
  """Seconds of one call, and its result."""
  start = time.perf_counter()
  result = call(*inputs)
  return time.perf_counter() - start, result


def interleaved(calls, repeats):
  """Median seconds by name of calls without arguments, taken in turn."""
  seconds = {name: [] for name in calls}
  for call in calls.values():
    call()  # compile and warm up
  for _ in range(repeats):
    for name, call in calls.items():
      seconds[name].append(timed(call)[0])
  return {name: statistics.median(times) for name, times in seconds.items()}


def main():
  """Runs both sides and prints the ratios."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--sample_repeats", type=int, default=3)
  parser.add_argument("--steps", type=int, default=25)
  parser.add_argument("--side", type=int, default=32)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  peer, ours, params, fields = make_pair()
  forward, sample = our_calls(ours, params, args.steps)
  rng = np.random.default_rng(0)
  normal = lambda *sizes: rng.normal(size=sizes).astype(np.float32)
  latents, context = normal(2, args.side, args.side, 4), normal(2, TOKENS, 768)
  times = np.full(2, 501, np.int32)
  moved = torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()
  held = torch.from_numpy(times), torch.from_numpy(context)
  calls, samples = {}, {}
  for name, layout in (
    ("torch", torch.contiguous_format),
    ("torch_channels_last", torch.channels_last),
  ):
    peer_forward, peer_sample = peer_calls(peer, args.steps, layout)
    calls[name] = lambda f=peer_forward: f(moved, *held)
    samples[name] = lambda f=peer_sample: f(moved[:1], held[1])
  calls["ours"] = lambda: forward(latents, times, context)
  samples["ours"] = lambda: sample(latents[:1], context)
  difference = np.abs(calls["ours"]() - calls["torch"]().permute(0, 2, 3, 1).numpy())
  found = interleaved(calls, args.repeats)
  best = min(found, key=lambda name: (name == "ours", found[name]))
  whole = interleaved({k: samples[k] for k in ("ours", best)}, args.sample_repeats)
  flops = 2 * unet_flops.forward(fields, args.side, args.side, TOKENS)
  round_all = lambda seconds: {name: round(s, 3) for name, s in seconds.items()}
  report = {
    "latents": [2, args.side, args.side, 4],
    "threads": args.threads,
    "largest_difference": float(difference.max()),
    "forward_s": round_all(found),
    "forward_gflops_per_s": {n: round(flops / s / 1e9) for n, s in found.items()},
    "sample_s": round_all(whole),
    "forward_ratio": round(found[best] / found["ours"], 2),
    "sample_ratio": round(whole[best] / whole["ours"], 2),
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
