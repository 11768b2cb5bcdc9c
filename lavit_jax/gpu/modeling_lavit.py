"""LaVIT in PyTorch: pictures in, texts and visual codes out.

    [IMG] vectors [/IMG] text -> LLaMA -> text;   text [IMG] -> LLaMA -> codes [/IMG]

The language model is transformers' own; tensors below `visual.` are the rest.
"""

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from .configuration_lavit import LavitConfig
from .visual_lavit import Visual


class LavitForConditionalGeneration(LlamaForCausalLM):
  """LLaMA that reads pictures as vectors and draws them as codes."""

  config_class = LavitConfig
  _keep_in_fp32_modules_strict = ["token_predictor", "quantize"]

  def __init__(self, config):
    super().__init__(config)
    self.visual = Visual(config.vision, config.hidden_size)
    self.post_init()

  @classmethod
  def from_pretrained(cls, *args, **kwargs):
    """As transformers does it, but nothing may be missing or left over."""
    asked = kwargs.pop("output_loading_info", False)
    model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
    wrong = {name: sorted(map(str, found)) for name, found in info.items() if found}
    if wrong:
      raise ValueError(
        f"expected every tensor of the model and no other, got {wrong}; copy the folder"
        " again"
      )
    return (model, info) if asked else model

  def _look(self, pixel_values, noise):
    if noise is None:
      shape = (len(pixel_values), self.config.vision["num_patches"], 2)
      noise = gumbel(torch.zeros(shape))
    return self.visual.look(pixel_values.to(self.device), noise.to(self.device))

  @torch.no_grad()
  def tokenize(self, pixel_values, selection_noise=None):
    """Codes int[T] and kept patches bool[P] of each picture [B, 3, H, W]."""
    seen, keep = self._look(pixel_values, selection_noise)
    found = self.visual.codes(seen, keep)
    return [row[kept] for row, kept in zip(found, keep)], keep

  @torch.no_grad()
  def picture_vectors(self, pixel_values, selection_noise=None):
    """What the language model reads of each picture: a list of [T, D]."""
    seen, keep = self._look(pixel_values, selection_noise)
    return [row[own] for row, own in zip(self.visual.vectors(seen, keep), keep)]

  @torch.no_grad()
  def embed_prompts(
    self, input_ids, attention_mask=None, pixel_values=None, selection_noise=None
  ):
    """Left-padded vectors and mask of prompts, with a picture behind each [IMG] [/IMG].

    Rows may hold no picture or several; `pixel_values` has them in order of the rows.
    """
    shown = []
    if pixel_values is not None:
      shown = self.picture_vectors(pixel_values, selection_noise)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    start, rows, used = self.config.text_size, [], 0
    for ids, own in zip(input_ids, mask.bool()):
      ids = ids[own].to(self.device)
      embedded, pieces, at = self.model.embed_tokens(ids), [], 0
      marks = (ids[:-1] == start) & (ids[1:] == start + 1)
      for place in marks.nonzero()[:, 0].tolist():
        pieces += [embedded[at : place + 1], *shown[used : used + 1]]
        at, used = place + 1, used + 1
      rows.append(torch.cat([*pieces, embedded[at:]]))
    if used != len(shown):
      raise ValueError(
        f"expected {used} pictures, one for each [IMG] [/IMG], got {len(shown)}"
      )
    length, end = max(map(len, rows)), self.model.embed_tokens.weight[2]
    out = end.repeat(len(rows), length, 1)
    mask = torch.zeros(out.shape[:2], dtype=torch.long, device=out.device)
    for i, row in enumerate(rows):
      out[i, length - len(row) :], mask[i, length - len(row) :] = row, 1
    return out, mask

  def generate(self, input_ids=None, pixel_values=None, selection_noise=None, **kwargs):
    """transformers' own `generate`; with pictures it returns the new ids alone."""
    if pixel_values is not None:
      mask = kwargs.pop("attention_mask", None)
      row = self.embed_prompts(input_ids, mask, pixel_values, selection_noise)
      return super().generate(inputs_embeds=row[0], attention_mask=row[1], **kwargs)
    return super().generate(input_ids, **kwargs)

  def write(self, task, inputs, given):
    """New ids of a "caption" or an "answer", by the model's decoding defaults."""
    own = self.config.decoding[task] | (given or {})
    return self.generate(
      **inputs,
      do_sample=False,
      num_beams=own["beams"],
      max_new_tokens=own["max_new"],
      min_new_tokens=own["min_new"],
      length_penalty=own["length_penalty"],
      repetition_penalty=own["repetition_penalty"],
      early_stopping=task == "answer",
      suppress_tokens=list(range(self.config.text_size, self.config.vocab_size)),
      pad_token_id=self.config.eos_token_id,
      eos_token_id=self.config.eos_token_id,
    )

  def caption(self, how=None, **inputs):
    """New ids that describe pictures; `how` has numbers other than the model's own."""
    return self.write("caption", inputs, how)

  def answer(self, how=None, **inputs):
    """New ids that answer questions about pictures."""
    return self.write("answer", inputs, how)

  @torch.no_grad()
  def draw_codes(self, input_ids, attention_mask=None, noise=None, **given):
    """Codes of prompts that end with [IMG], guided away from the bare [IMG].

    input_ids int[B, T] are left padded; noise is Gumbel noise float[B, max_new, C] of
    the C likeliest ids at each step; given are numbers instead of the model's own:
    max_new, min_new, guidance, temperature (0 takes the likeliest), top_k, top_p.
    """
    how, start = self.config.decoding["draw"] | given, self.config.text_size
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ids, count, guided = input_ids.to(self.device), len(input_ids), how["guidance"] != 1
    mask = mask.to(self.device)
    if guided:
      bare = F.pad(torch.zeros_like(mask[:, 1:]), (0, 1), value=1)
      ids = torch.cat([ids, torch.where(bare == 1, start, 2)])
      mask = torch.cat([mask, bare])
    cache, chosen = None, []
    ended = torch.zeros(count, dtype=torch.bool, device=self.device)
    for step in range(how["max_new"]):
      place = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
      row = dict(attention_mask=mask, position_ids=place, past_key_values=cache)
      out = self(ids, use_cache=True, logits_to_keep=1, **row)
      cache, scores = out.past_key_values, out.logits[:, -1].float()
      if guided:
        prompted, free = scores.log_softmax(-1).chunk(2)
        scores = free + how["guidance"] * (prompted - free)
      scores[:, : start + 1] = -torch.inf
      if step < how["min_new"]:
        scores[:, start + 1] = -torch.inf
      own = None if noise is None else noise[:, step].to(scores)
      new = torch.where(ended, 2, choose(scores, how, own))
      ended, chosen = ended | (new == start + 1), [*chosen, new]
      if ended.all():
        break
      ids = (torch.cat([new, new]) if guided else new)[:, None]
      mask = F.pad(mask, (0, 1), value=1)
    found = torch.stack(chosen, 1)
    return [row[row > start + 1] - start - 2 for row in found]


def choose(scores, how, noise):
  """Ids of scores float32[B, V]: temperature, top-k, top-p, then the Gumbel sample."""
  if not how["temperature"]:
    return scores.argmax(-1)
  count = noise.shape[-1] if noise is not None else how["top_k"] or scores.shape[-1]
  ranked, ids = scores.topk(min(count, scores.shape[-1]))
  ranked = ranked / how["temperature"]
  if how["top_k"]:
    lowest = ranked[:, min(how["top_k"], ranked.shape[1]) - 1, None]
    ranked = ranked.masked_fill(ranked < lowest, -torch.inf)
  if how["top_p"] < 1:
    rising = ranked.softmax(-1).flip(-1).cumsum(-1).flip(-1)
    removed = rising <= 1 - how["top_p"]
    removed[:, 0] = False
    ranked = ranked.masked_fill(removed, -torch.inf)
  if noise is None:
    noise = gumbel(ranked)
  return ids.gather(1, (ranked + noise).argmax(-1, keepdim=True))[:, 0]


def gumbel(like):
  """Standard Gumbel noise."""
  uniform = torch.rand_like(like).clamp_min(torch.finfo(torch.float32).tiny)
  return -(-uniform.log()).log()
