"""Layer-attention pooling for sentence-transformers, in PyTorch.

This file is written by jaxembed next to a model's weights and needs nothing but
torch and sentence-transformers (5.x or newer). Trained latents attend to the tokens
of a text, or to one vector of every layer, pass a gated feed-forward layer, and are
averaged (Tang and Yang 2024, "Pooling And Attention").
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


class LayerAttentionPooling(Module):
  """Token embeddings (of every layer) and their mask -> one vector per text."""

  config_keys: ClassVar[list[str]] = [
      'embedding_dimension', 'reads', 'num_latents', 'heads', 'head_dim', 'ff_mult',
      'num_layers', 'include_prompt']

  def __init__(self, embedding_dimension: int, reads: str, num_latents: int,
               heads: int, head_dim: int, ff_mult: int, num_layers: int = 0,
               include_prompt: bool = False):
    super().__init__()
    self.embedding_dimension = embedding_dimension
    self.reads = reads  # last_token | tokens | layers_last | layers_mean
    self.num_latents = num_latents
    self.heads = heads
    self.head_dim = head_dim
    self.ff_mult = ff_mult
    self.num_layers = num_layers
    self.include_prompt = include_prompt
    dim, inner, hidden = (
        embedding_dimension, heads * head_dim, embedding_dimension * ff_mult)
    if reads.startswith('layers_'):
      self.layer = nn.Parameter(torch.zeros(num_layers, dim))
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

  def forward(self, features: dict, **kwargs) -> dict:
    """`features` with 'sentence_embedding' [B,D] added."""
    del kwargs
    tokens = features['token_embeddings']
    mask = features.get('attention_mask')
    if mask is None or mask.shape != tokens.shape[:2]:
      raise ValueError(
          'layer-attention pooling needs padded inputs with an attention_mask of '
          f'shape {tuple(tokens.shape[:2])}; load the model with '
          'attn_implementation="sdpa" or without unpad_inputs')
    mask = mask.bool()
    if not self.include_prompt and 'prompt_length' in features:
      mask = _without_prompt(mask, features['prompt_length'])
    x, keys = self._read(features, mask)
    x = self.norm(x.to(self.latents.dtype))
    q = self._split(self.q(self.norm_context(self.latents))[None])  # [1,N,R,H]
    k, v = self._split(self.k(x)), self._split(self.v(x))  # [B,N,S,H]
    scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
    scores = scores.masked_fill(~keys[:, None, None], -1e30)
    found = scores.softmax(-1) @ v
    y = self.out(found.transpose(1, 2).flatten(2)) + self.latents
    h = self.mlp_norm(y)
    y = y + self.down(self.up(h) * F.gelu(self.gate(h)))
    features['sentence_embedding'] = y.mean(1)
    return features

  def _read(self, features, mask):
    """What the latents attend to [B,S,D], and where there is something [B,S]."""
    if self.reads == 'tokens':
      return features['token_embeddings'], mask
    if self.reads == 'last_token':
      x = _last(features['token_embeddings'], mask)[:, None]
    else:
      if 'all_layer_embeddings' not in features:
        raise ValueError('layer-attention pooling reads every layer: config.json needs '
                         '"output_hidden_states": true')
      pool = _last if self.reads == 'layers_last' else _mean
      layers = features['all_layer_embeddings'][1:]  # the first are embeddings
      x = torch.stack([pool(states, mask) for states in layers], 1) + self.layer
    return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

  def _split(self, x):
    """[B,T,N*H] -> [B,N,T,H]."""
    return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

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
    target = Path(output_path).parent / 'layer_attention_pooling.py'
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


def _mean(states, mask):
  """Average of the counting tokens.  [B,T,D], [B,T] -> [B,D] float32."""
  weight = mask.unsqueeze(-1).float()
  return (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def _last(states, mask):
  """State of the last counting token.  [B,T,D], [B,T] -> [B,D] float32."""
  rank = mask.int().cumsum(1)
  last = mask & (rank == mask.int().sum(1, keepdim=True))
  return (states.float() * last.unsqueeze(-1)).sum(1)


def _without_prompt(mask, prompt_length):
  """The mask [B,T] less the prompt, on whichever side the padding stands."""
  if isinstance(prompt_length, torch.Tensor):  # one number for all rows
    prompt_length = int(prompt_length.flatten()[0])
  padding = mask.int().argmax(1, keepdim=True)
  position = torch.arange(mask.shape[1], device=mask.device)[None]
  return mask & (position >= padding + prompt_length)
