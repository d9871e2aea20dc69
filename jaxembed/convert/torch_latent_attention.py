"""Latent-attention pooling for sentence-transformers, in PyTorch.

This file is written by jaxembed next to a model's weights and needs nothing but
torch and sentence-transformers (5.x or newer). Every token looks up a trained
table of latent vectors by cross-attention, passes a gated feed-forward layer,
and the tokens are then averaged (Lee et al., 2024, "NV-Embed").

Keys and values of the latents hang on weights alone. Unless gradients are asked for
they are multiplied into the two projections once, and the inner width of the heads is
never formed: softmax(LN(x) M) U, with M [N,D,R] and U [N,R,D].
"""

from pathlib import Path
import shutil
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

try:
  from sentence_transformers.base.modules.module import Module
except ImportError:  # before 6.0
  from sentence_transformers.models import Module


class LatentAttentionPooling(Module):
  """Token embeddings and their mask -> one vector per text, not normalised."""

  config_keys: ClassVar[list[str]] = [
      'embedding_dimension', 'num_latents', 'heads', 'head_dim', 'ff_mult',
      'include_prompt']

  def __init__(self, embedding_dimension: int, num_latents: int, heads: int,
               head_dim: int, ff_mult: int, include_prompt: bool = False):
    super().__init__()
    self.embedding_dimension = embedding_dimension
    self.num_latents = num_latents
    self.heads = heads
    self.head_dim = head_dim
    self.ff_mult = ff_mult
    self.include_prompt = include_prompt
    dim, inner, hidden = (
        embedding_dimension, heads * head_dim, embedding_dimension * ff_mult)
    self.latents = nn.Parameter(torch.zeros(num_latents, dim))
    self.norm = nn.LayerNorm(dim)
    self.norm_context = nn.LayerNorm(dim)
    self.q = nn.Linear(dim, inner, bias=False)
    self.k = nn.Linear(dim, inner, bias=False)
    self.v = nn.Linear(dim, inner, bias=False)
    self.out = nn.Linear(inner, dim, bias=False)
    self.mlp_norm = nn.LayerNorm(dim)
    self.up = nn.Linear(dim, hidden)
    self.gate = nn.Linear(dim, hidden)
    self.down = nn.Linear(hidden, dim)
    self._folded = None  # (of which weights, M, U)

  def forward(self, features: dict, **kwargs) -> dict:
    """`features` with 'sentence_embedding' [B,D] added."""
    del kwargs
    tokens = features['token_embeddings']
    mask = features.get('attention_mask')
    if mask is None or mask.shape != tokens.shape[:2]:
      raise ValueError(
          'latent-attention pooling needs padded inputs with an attention_mask of '
          f'shape {tuple(tokens.shape[:2])}; load the model with '
          'attn_implementation="sdpa" or without unpad_inputs')
    mask = mask.bool()
    if not self.include_prompt and 'prompt_length' in features:
      mask = _without_prompt(mask, features['prompt_length'])
    tokens = tokens.to(self.latents.dtype)
    x = tokens + self._attend(tokens)
    h = self.mlp_norm(x)
    x = x + self.down(self.up(h) * F.gelu(self.gate(h)))
    weight = mask.unsqueeze(-1).float()
    # Averaged in float32 whatever the model's precision.
    features['sentence_embedding'] = (
        (x.float() * weight).sum(1) / weight.sum(1).clamp(min=1))
    return features

  def _attend(self, tokens):
    """Cross-attention of tokens [B,T,D] to the latents [R,D] -> [B,T,D]."""
    into, out = self._fold()
    x, total = self.norm(tokens), 0
    for m, u in zip(into, out):  # one head's scores [B,T,R] at a time
      weights = (x @ m).softmax(-1, dtype=torch.float32).to(x.dtype)
      total = total + weights @ u
    return total

  def _fold(self):
    """M [N,D,R] and U [N,R,D], made once for weights that stay as they are."""
    used = [self.latents, *self.norm_context.parameters(), self.q.weight,
            self.k.weight, self.v.weight, self.out.weight]
    if torch.is_grad_enabled() and any(p.requires_grad for p in used):
      return self._products()
    mark = [(p.data_ptr(), None if p.is_inference() else p._version, p.dtype)
            for p in used]
    if self._folded is None or self._folded[0] != mark:
      with torch.no_grad():
        self._folded = (mark, *self._products())
    return self._folded[1:]

  def _products(self):
    """M and U in float32, then rounded to the weights' precision."""
    dtype = self.latents.dtype
    context = F.layer_norm(
        self.latents.float(), (self.embedding_dimension,),
        self.norm_context.weight.float(), self.norm_context.bias.float(),
        self.norm_context.eps)
    q, k, v = (self._split(x.weight.float()) for x in (self.q, self.k, self.v))
    out = self.out.weight.float().unflatten(1, (self.heads, self.head_dim))
    keys, values = (torch.einsum('nhc,rc->nrh', x, context) for x in (k, v))
    into = torch.einsum('nhd,nrh->ndr', q, keys) / self.head_dim**0.5
    back = torch.einsum('nrh,dnh->nrd', values, out)
    return into.to(dtype), back.to(dtype)

  def _split(self, weight):
    """[N*H,D] -> [N,H,D]."""
    return weight.unflatten(0, (self.heads, self.head_dim))

  def __getstate__(self):
    """Copies fold anew."""
    return {**self.__dict__, '_folded': None}

  def get_embedding_dimension(self) -> int:
    """Width of a vector, D."""
    return self.embedding_dimension

  # The name before 6.0.
  get_sentence_embedding_dimension = get_embedding_dimension

  def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs):
    """Writes the configuration and the weights into a folder."""
    del args, kwargs
    self.save_config(output_path)
    self.save_torch_weights(output_path, safe_serialization=safe_serialization)
    # Loading looks for this file in the root of the model's folder.
    target = Path(output_path).parent / 'latent_attention_pooling.py'
    if not target.exists():
      shutil.copyfile(__file__, target)

  @classmethod
  def load(cls, model_name_or_path: str, subfolder: str = '', token=None,
           cache_folder=None, revision=None, local_files_only: bool = False,
           **kwargs):
    """Reads what `save` wrote."""
    del kwargs
    where = {'subfolder': subfolder, 'token': token, 'cache_folder': cache_folder,
             'revision': revision, 'local_files_only': local_files_only}
    module = cls(**cls.load_config(model_name_or_path, **where))
    return cls.load_torch_weights(model_name_or_path, model=module, **where)


def _without_prompt(mask, prompt_length):
  """The mask [B,T] less the prompt, on whichever side the padding stands."""
  if isinstance(prompt_length, torch.Tensor):  # one number for all rows
    prompt_length = int(prompt_length.flatten()[0])
  padding = mask.int().argmax(1, keepdim=True)
  position = torch.arange(mask.shape[1], device=mask.device)[None]
  return mask & (position >= padding + prompt_length)
