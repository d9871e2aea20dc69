"""Towers of a Router: sentence-transformers' own vectors of queries and documents."""

import json
import shutil

import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.convert import exporters
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.embedder import Embedder
from tests.helpers.folders import TEXTS, backbone, words
from tests.helpers.tiers import thorough

st = pytest.importorskip('sentence_transformers')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Static queries and a transformer's documents, scaled to length 1 behind both."""
  from sentence_transformers.sentence_transformer import modules

  place = tmp_path_factory.mktemp('towers')
  tokenizer = words('<s> $A </s>', cls_token='<s>', sep_token='</s>')
  body = modules.Transformer(str(backbone(place / 'bert', 'bert', tokenizer, 0)),
                             max_seq_length=16)
  router = modules.Router.for_query_document(
      [modules.StaticEmbedding(tokenizer._tokenizer, embedding_dim=12)],
      [body, modules.Pooling(32, 'cls'), modules.Dense(32, 12)])
  st.SentenceTransformer(
      modules=[router, modules.Normalize()], device='cpu',
      prompts={'query': 'ask: ', 'document': 'Stocks '}).save(str(place / 'model'))
  return place / 'model'


@pytest.fixture(scope='module')
def library(folder):
  return st.SentenceTransformer(str(folder), device='cpu')


def _older(folder, target):
  """As releases before Router saved it."""
  shutil.copytree(folder, target)
  entry = json.loads((target / 'modules.json').read_text())
  entry[0]['type'] = 'sentence_transformers.models.Asym'
  (target / 'modules.json').write_text(json.dumps(entry))
  home = target / entry[0]['path']
  (home / 'router_config.json').rename(home / 'config.json')
  return target


@pytest.mark.parametrize('older', [False, thorough(True)])
def test_each_tower_is_a_model_of_its_own(folder, library, older, tmp_path):
  place = _older(folder, tmp_path / 'older') if older else folder
  query, document = (Embedder.load(f'{place}#{x}') for x in ('query', 'document'))
  np.testing.assert_allclose(query.encode_query(TEXTS), library.encode_query(TEXTS),
                             atol=1e-6)
  np.testing.assert_allclose(document.encode_document(TEXTS),
                             library.encode_document(TEXTS), atol=1e-6)
  assert query.bundle.cfg.backbone.family == 'static'
  assert document.bundle.cfg.max_length == 16


@pytest.mark.thorough
def test_a_tower_leaves_as_a_folder_without_a_router(folder, library, tmp_path):
  report = exporters.export(bundle.open(f'{folder}#document'), tmp_path / 'out')
  assert 'source' not in report  # the whole folder is another model
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  np.testing.assert_allclose(theirs.encode_document(TEXTS),
                             library.encode_document(TEXTS), atol=1e-6)


def test_towers_are_named_where_none_is_meant(folder, tmp_path):
  for source in (folder, f'{folder}#passage'):
    with pytest.raises(UnsupportedModel, match=r"tower.*'SOURCE#TOWER': query, docu"):
      bundle.open(source, weights=False)
  place = tmp_path / 'model'
  shutil.copytree(folder, place)
  file = next(place.rglob('router_config.json'))
  saved = json.loads(file.read_text())
  for changed, message in (
      ({'structure': {'query': 'all'}}, 'query is .all.; it must be a list of texts'),
      ({'structure': {'query': ['../../elsewhere']}}, 'outside|leaves|elsewhere'),
      ({'types': {}}, 'does not begin with'),
      ({'types': dict.fromkeys(saved['types'], 'mine.Transformer')}, 'mine.Transf')):
    file.write_text(json.dumps(saved | changed))
    with pytest.raises(ValueError, match=message):
      bundle.open(f'{place}#query', weights=False)
