"""JinaBERT, which transformers lacks, against a loop over texts in torch.

The loop is written from the published layout (jinaai/jina-bert-implementation and
jina-bert-v2-qk-post-norm): every text alone, without padding.
"""

import json
import math

import jax
import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.convert import exporters, from_hf, parity_families, tables
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.models import encoder

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.filterwarnings('ignore:.*no modules.json')

_DIM, _FF, _LAYERS, _HEADS = 24, 40, 2, 6  # heads that are no power of two
_CONFIG = {
    'model_type': 'bert', 'architectures': ['JinaBertForMaskedLM'], 'vocab_size': 99,
    'hidden_size': _DIM, 'intermediate_size': _FF, 'num_hidden_layers': _LAYERS,
    'num_attention_heads': _HEADS, 'max_position_embeddings': 64, 'type_vocab_size': 2,
    'layer_norm_eps': 1e-12, 'position_embedding_type': 'alibi', 'hidden_act': 'gelu',
    'feed_forward_type': 'geglu', 'emb_pooler': 'mean', 'pad_token_id': 0}
_PLAIN = 'jinaai/jina-bert-implementation--modeling_bert.JinaBertModel'
_NORMED = 'jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel'


def _tensors(normed):
  """Random tensors by the names of a checkpoint of JinaBertForMaskedLM."""
  torch.manual_seed(0)
  shapes = {'embeddings.word_embeddings': (99, _DIM),
            'embeddings.token_type_embeddings': (2, _DIM)}
  norms = ['embeddings.LayerNorm']
  for i in range(_LAYERS):
    at = f'encoder.layer.{i}.'
    for name in ('self.query', 'self.key', 'self.value', 'output.dense'):
      shapes[f'{at}attention.{name}'] = (_DIM, _DIM)
    norms.append(f'{at}attention.output.LayerNorm')
    up, down = ('up_gated_layer', 'down_layer') if normed else ('gated_layers', 'wo')
    shapes |= {f'{at}mlp.{up}': (2 * _FF, _DIM), f'{at}mlp.{down}': (_DIM, _FF)}
    norms += [f'{at}{n}' for n in (
        ('attention.self.layer_norm_q', 'attention.self.layer_norm_k', 'layer_norm_1',
         'layer_norm_2') if normed else ('mlp.layernorm',))]
  tensors = {}
  for name, shape in shapes.items():
    tensors[f'{name}.weight'] = torch.randn(shape) * 0.3
    if name.startswith('encoder') and 'gated' not in name:
      tensors[f'{name}.bias'] = torch.randn(shape[0]) * 0.1
  for name in norms:
    tensors[f'{name}.weight'] = 1 + torch.randn(_DIM) * 0.1
    tensors[f'{name}.bias'] = torch.randn(_DIM) * 0.1
  return tensors


def _slopes(heads):
  """As the authors of ALiBi wrote them."""
  def power_of_two(n):
    start = 2 ** -(2 ** -(math.log2(n) - 3))
    return [start * start**i for i in range(n)]

  if math.log2(heads).is_integer():
    return power_of_two(heads)
  near = 2 ** math.floor(math.log2(heads))
  return power_of_two(near) + _slopes(2 * near)[0::2][:heads - near]


def _states(t, ids, normed):
  """One text.  ids [T] -> [T,D]."""
  def linear(x, name):
    return torch.nn.functional.linear(x, t[f'{name}.weight'], t.get(f'{name}.bias'))

  def norm(x, name):
    return torch.nn.functional.layer_norm(
        x, (_DIM,), t[f'{name}.weight'], t[f'{name}.bias'], 1e-12)

  def heads(x):
    return x.view(len(ids), _HEADS, -1).transpose(0, 1)

  place = torch.arange(len(ids))
  bias = -torch.tensor(_slopes(_HEADS))[:, None, None] * (
      place[None] - place[:, None]).abs()
  x = norm(t['embeddings.word_embeddings.weight'][ids]
           + t['embeddings.token_type_embeddings.weight'][0], 'embeddings.LayerNorm')
  for i in range(_LAYERS):
    at = f'encoder.layer.{i}.'
    q, k, v = (linear(x, f'{at}attention.self.{n}') for n in ('query', 'key', 'value'))
    if normed:
      q = norm(q, f'{at}attention.self.layer_norm_q')
      k = norm(k, f'{at}attention.self.layer_norm_k')
    scores = heads(q) @ heads(k).transpose(1, 2) / math.sqrt(_DIM / _HEADS) + bias
    seen = (scores.softmax(-1) @ heads(v)).transpose(0, 1).reshape(len(ids), _DIM)
    h = norm(linear(seen, f'{at}attention.output.dense') + x,
             f'{at}attention.output.LayerNorm')
    if normed:
      h = norm(x + h, f'{at}layer_norm_1')
      up, gate = linear(h, f'{at}mlp.up_gated_layer').split(_FF, -1)
      out = linear(up * torch.nn.functional.gelu(gate), f'{at}mlp.down_layer')
      x = norm(h + out, f'{at}layer_norm_2')
    else:
      gate, up = linear(h, f'{at}mlp.gated_layers').split(_FF, -1)
      out = linear(torch.nn.functional.gelu(gate) * up, f'{at}mlp.wo')
      x = norm(out + h, f'{at}mlp.layernorm')
  return x


def _write(folder, normed, **fields):
  import safetensors.torch

  tensors = _tensors(normed)
  safetensors.torch.save_file(
      {f'bert.{k}': v for k, v in tensors.items()}, folder / 'model.safetensors')
  code = {'AutoModel': _NORMED if normed else _PLAIN}
  (folder / 'config.json').write_text(json.dumps(_CONFIG | {'auto_map': code} | fields))
  return tensors


@pytest.mark.filterwarnings('ignore:.*published code is computed here')
@pytest.mark.parametrize('normed', [False, True])
def test_states_are_those_of_a_loop_over_texts(tmp_path, normed):
  tensors = _write(tmp_path, normed)
  loaded = from_hf.load(tmp_path)
  run = jax.jit(encoder.hidden_states, static_argnums=1)
  for side in ('right', 'left'):
    tokens = parity_families.ragged(99, side)
    got = np.asarray(run(loaded.params, loaded.cfg, tokens))
    for row, mask, states in zip(tokens.ids, tokens.mask, got):
      want = _states(tensors, torch.from_numpy(row[mask]).long(), normed).numpy()
      assert np.abs(states[mask] - want).max() <= 1e-5 * np.abs(want).max()
  again = tables.to_hf(loaded.params, loaded.cfg)
  assert {k: v.tobytes() for k, v in again.items()} == {
      k: v.numpy().tobytes() for k, v in tensors.items()}
  hf = tables.config_to_hf(loaded.cfg.backbone)
  assert tables.config_from_hf(hf) == loaded.cfg.backbone


@pytest.mark.filterwarnings('ignore:.*published code is computed here')
def test_what_nobody_could_check_is_no_export(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  _write(source, False)
  with pytest.raises(ValueError, match='transformers has no jina_bert'):
    exporters.export(bundle.open(source), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_feed_forward_that_is_not_gated_is_refused(tmp_path):
  _write(tmp_path, False, feed_forward_type='original')
  with pytest.raises(UnsupportedModel, match="feed_forward_type='original'"):
    from_hf.load(tmp_path, weights=False)
