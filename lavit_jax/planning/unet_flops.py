"""Analytic FLOPs of a U-Net's forward pass: its matrix products and convolutions.

A multiply and an add are two FLOPs; norms, activations and softmax are not counted.
"""

from collections.abc import Mapping
from typing import Any


def forward(
  fields: Mapping[str, Any], height: int, width: int, num_tokens: int
) -> float:
  """FLOPs of one picture.

  Args:
    fields: of `models.unet.UNet`.
    height: of the latents.
    width: of the latents.
    num_tokens: S, slots of the condition.
  """
  widths = fields["level_channels"]
  num_layers, context_dim = fields["num_layers"], fields["context_dim"]
  time_dim = 4 * widths[0]
  area = height * width  # of the level that the walk stands on

  def block(inputs, outputs, depth, area):
    total = _resnet(inputs, outputs, time_dim, area)
    return total + _transformer(outputs, depth, area, num_tokens, context_dim)

  total = _conv(fields["channels"] + fields.get("grid_dim", 0), widths[0], area)
  total += _embeddings(fields, time_dim)
  kept, channels = [widths[0]], widths[0]
  last = len(widths) - 1
  for i, (outputs, depth) in enumerate(zip(widths, fields["depths"])):
    for _ in range(num_layers):
      total += block(channels, outputs, depth, area)
      channels = outputs
      kept.append(channels)
    if i < last:
      area //= 4
      total += _conv(channels, channels, area)
      kept.append(channels)
  total += block(channels, channels, fields["middle_depth"], area)
  total += _resnet(channels, channels, time_dim, area)
  for i, (outputs, depth) in enumerate(zip(widths[::-1], fields["depths"][::-1])):
    for _ in range(num_layers + 1):
      total += block(channels + kept.pop(), outputs, depth, area)
      channels = outputs
    if i < last:
      area *= 4
      total += _conv(channels, channels, area)
  return total + _conv(channels, fields["channels"], area)


def _conv(inputs: int, outputs: int, area: int, size: int = 3) -> float:
  return 2.0 * size * size * inputs * outputs * area


def _resnet(inputs: int, outputs: int, time_dim: int, area: int) -> float:
  total = _conv(inputs, outputs, area) + _conv(outputs, outputs, area)
  total += 2.0 * time_dim * outputs
  return total + (_conv(inputs, outputs, area, size=1) if inputs != outputs else 0.0)


def _transformer(dim, depth, area, num_tokens, context_dim) -> float:
  """Maps in and out, and per block: self-attention, cross-attention, gated MLP."""
  if not depth:
    return 0.0
  square = 2.0 * dim * dim * area
  own = 4 * square + 4.0 * area * area * dim
  cross = 2 * square + 4.0 * context_dim * dim * num_tokens
  cross += 4.0 * area * num_tokens * dim
  return 2 * square + depth * (own + cross + 12 * square)


def _embeddings(fields: Mapping[str, Any], time_dim: int) -> float:
  total = 2.0 * time_dim * (fields["level_channels"][0] + time_dim)
  if fields["pooled_dim"]:
    inputs = fields["pooled_dim"] + 6 * fields["time_id_dim"]
    total += 2.0 * time_dim * (inputs + time_dim)
  return total
