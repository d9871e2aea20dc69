"""The torch module of latent attention: what it folds is the formula it replaces."""

import copy

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('sentence_transformers')

from jaxembed.convert import torch_latent_attention as twin  # noqa: E402


@pytest.fixture
def module():
  torch.manual_seed(0)
  made = twin.LatentAttentionPooling(16, num_latents=6, heads=2, head_dim=12, ff_mult=2)
  with torch.no_grad():
    for p in made.parameters():
      p.copy_(torch.randn_like(p) * 0.3)
  return made


def _states(dtype=torch.float32):
  torch.manual_seed(1)
  return {'token_embeddings': torch.randn(3, 5, 16).to(dtype),
          'attention_mask': torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [0, 1, 0, 0, 0]])}


def _by_the_paper(m, states):
  """Queries of tokens, keys and values of latents, in float64 and unfolded."""
  m = copy.deepcopy(m).double()
  x = states['token_embeddings'].double()
  heads = lambda y: y.unflatten(-1, (m.heads, m.head_dim)).transpose(-3, -2)
  context = m.norm_context(m.latents)
  q, k, v = heads(m.q(m.norm(x))), heads(m.k(context)), heads(m.v(context))
  seen = (q @ k.transpose(-1, -2) / m.head_dim**0.5).softmax(-1) @ v
  x = x + m.out(seen.transpose(-3, -2).flatten(-2))
  h = m.mlp_norm(x)
  x = x + m.down(m.up(h) * torch.nn.functional.gelu(m.gate(h)))
  mask = states['attention_mask'].double()[..., None]
  return (x * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize('dtype, bound', [
    (torch.float32, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_folded_is_the_papers_formula(module, dtype, bound):
  module = module.to(dtype)
  states = _states(dtype)
  wanted = _by_the_paper(module, states)
  with torch.no_grad():
    found = module(dict(states))['sentence_embedding']
  assert found.dtype == torch.float32
  assert (found - wanted).abs().max() <= bound * wanted.abs().max()


def test_it_folds_once_and_anew_where_weights_moved(module):
  states, made = _states(), []
  make = module._products
  module._products = lambda: made.append(1) or make()
  with torch.inference_mode():
    first = module(dict(states))['sentence_embedding'].clone()
    module(dict(states))
  assert len(made) == 1
  with torch.no_grad():
    module.v.weight.mul_(2)
    moved = module(dict(states))['sentence_embedding']
  assert len(made) == 2 and (moved - first).abs().max() > 1e-4
  found = module(dict(states))['sentence_embedding']  # gradients reach the latents
  found.sum().backward()
  assert len(made) == 3 and module.latents.grad.abs().max() > 0
