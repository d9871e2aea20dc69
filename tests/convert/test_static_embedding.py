"""StaticEmbedding and model2vec against sentence-transformers' own vectors."""

import json

import jax
import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.convert import exporters
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.convert.tensor_files import BadCheckpoint
from jaxembed.embedder import Embedder
from tests.helpers.folders import TEXTS, words
from tests.helpers.tiers import thorough

st = pytest.importorskip('sentence_transformers')
torch = pytest.importorskip('torch')
safe = pytest.importorskip('safetensors.numpy')

_WIDTH = 12


def _folder(tmp_path, change=None, truncation=None, more=()):
  """A saved model; `change` of its tensors, by name."""
  from sentence_transformers.sentence_transformer.modules import StaticEmbedding

  fast = words('<s> $A </s>')._tokenizer
  if truncation:
    fast.enable_truncation(**truncation)
  torch.manual_seed(0)
  module = StaticEmbedding(fast, embedding_dim=_WIDTH)
  st.SentenceTransformer(modules=[module, *more], device='cpu').save(
      str(tmp_path / 'model'))
  if change:
    file = next(f for f in (tmp_path / 'model').glob('**/model.safetensors')
                if 'embedding.weight' in safe.load_file(f))
    safe.save_file(change(safe.load_file(file)['embedding.weight']), file)
  return tmp_path / 'model'


def _agree(folder, **options):
  want = st.SentenceTransformer(str(folder), device='cpu').encode(TEXTS, **options)
  got = Embedder.load(folder).encode(TEXTS, **options)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-6)


def _model2vec(table):
  """A vocabulary of fewer rows than tokens, and a weight for each token."""
  rng = np.random.default_rng(0)
  return {'embeddings': table[:40], 'weights': rng.random(len(table)),
          'mapping': rng.integers(0, 40, len(table))}


@pytest.mark.parametrize('change', [
    _model2vec, thorough(None), thorough(lambda table: {'embeddings': table}),
    thorough(lambda table: {'embeddings': table,
                            'weights': np.ones(len(table), 'f4') * 0.5})])
def test_vectors_are_those_of_sentence_transformers(tmp_path, change):
  from sentence_transformers.base.modules import Dense, Normalize

  folder = _folder(tmp_path, change, more=(Dense(_WIDTH, 6), Normalize()))
  _agree(folder)
  _agree(folder, prompt='search: ')
  exporters.export(bundle.open(folder), tmp_path / 'out')
  _agree(tmp_path / 'out')


def test_texts_are_cut_where_the_tokenizer_cuts_them(tmp_path):
  folder = _folder(tmp_path, truncation={'max_length': 4, 'direction': 'left'})
  _agree(folder)
  assert bundle.open(folder).cfg.max_length == 4


def test_a_text_without_tokens_has_the_zero_vector(tmp_path):
  folder = _folder(tmp_path)
  assert not Embedder.load(folder).encode(['', 'a'])[0].any()


def test_its_table_is_trained_like_any_parameter(tmp_path):
  from jaxembed.models import encoder

  model = bundle.open(_folder(tmp_path))
  tokenizer = model.load_tokenizer()
  tokens = tokenizer.pad(tokenizer.encode(['the cat'], max_length=8), 8)
  grad = jax.grad(lambda p: encoder.encode(p, model.cfg, tokens).sum())(model.params)
  rows = np.asarray(grad['backbone']['embed']['token']).any(1)
  assert set(np.flatnonzero(rows)) == set(tokens.ids[tokens.mask])


@pytest.mark.parametrize(('change', 'message'), [
    (lambda t: {'weight': t}, 'no matrix .* called embedding.weight or embeddings'),
    (lambda t: {'embedding.weight': t[0]}, 'no matrix'),
    (lambda t: {'embedding.weight': t, 'more': t}, r'left over \(1\): more'),
    (lambda t: {'embeddings': t.astype('i1')}, 'no matrix of floating-point numbers'),
    (lambda t: _model2vec(t) | {'mapping': np.full(len(t), 40)}, 'mapping does not'),
    (lambda t: _model2vec(t) | {'weights': t[:3, 0].copy()}, r'weights has the shape'),
    (lambda t: {'embedding.weight': t * np.inf}, 'NaN or Inf')])
def test_tables_that_do_not_fit_are_refused(tmp_path, change, message):
  folder = _folder(tmp_path, change)
  with pytest.raises(BadCheckpoint, match=message):
    bundle.open(folder)


def test_no_pooling_stands_behind_it(tmp_path):
  folder = _folder(tmp_path)
  entries = json.loads((folder / 'modules.json').read_text())
  entries.append({'idx': 1, 'name': '1', 'path': '1_Pooling',
                  'type': 'sentence_transformers.models.Pooling'})
  (folder / 'modules.json').write_text(json.dumps(entries))
  with pytest.raises(UnsupportedModel, match='StaticEmbedding has pooled already'):
    bundle.open(folder, weights=False)
