"""Every family with every pooling, exported and opened by a process of its own."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert import exporters, parity_families
from jaxembed.convert.families import FAMILIES
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets
from tests.helpers import folders

pytest.importorskip('sentence_transformers')

_HEAD = {'latents': 4, 'heads': 2, 'head_dim': 8, 'ff_mult': 1}
POOLINGS = {
    'mean': config.PoolingConfig(), 'cls': config.PoolingConfig(kind='cls'),
    'last': config.PoolingConfig(kind='last'),
    'latent': config.PoolingConfig(kind='latent_attention', **_HEAD),
    'layers': config.PoolingConfig(kind='layer_attention', **_HEAD)}
# Of one padded length, so that each model is compiled once.
TEXTS = ['the cat sat on the mat.', 'Stocks FELL sharply on Monday',
         'Paris is the capital', 'France and Rome of Italy; the cat']
# A fresh process, without this package: the largest difference of a folder's vectors.
_READER = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
for line in sys.stdin:
  folder, texts = json.loads(line)
  try:
    model = SentenceTransformer(folder, device='cpu', trust_remote_code=True)
    found = float(np.abs(model.encode(texts) - np.load(folder + '.npy')).max())
  except Exception as e:
    found = f'{type(e).__name__}: {e}'
  assert 'jaxembed' not in sys.modules
  print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
  """Asks the fresh process, which one import of torch serves for all families."""
  place = tmp_path_factory.mktemp('elsewhere')
  with open(place / 'told', 'w') as told, subprocess.Popen(
      [sys.executable, '-c', _READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=told, text=True, cwd=place,
      env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}) as process:
    def ask(folder) -> float | str:
      process.stdin.write(json.dumps([str(folder), TEXTS]) + '\n')
      process.stdin.flush()
      line = process.stdout.readline()
      assert line, (place / 'told').read_text()[-3000:]
      return json.loads(line)

    yield ask
    process.stdin.close()


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
  """An export's own check opens it in this process; here another one does."""
  known = exporters.FORMATS['sentence-transformers']
  monkeypatch.setitem(exporters.FORMATS, 'sentence-transformers', dataclasses.replace(
      known, expected=None, check=lambda folder, model: {}, card=False))


@pytest.fixture
def tokenizer(family):
  if family == 'qwen2':  # transformers reads bytes, whatever its files say
    return folders.byte_pairs('<s> $A </s>')
  return folders.words('<s> $A </s>', cls_token='<s>', sep_token='</s>')


def _with_head(model, pooling, attention):
  cfg = dataclasses.replace(model.cfg, pooling=pooling, attention=attention)
  params = {'backbone': model.params['backbone']}
  head = encoder.init_params(cfg, jax.random.key(0)).get('pooling')
  if head is not None:
    rng = np.random.default_rng(0)
    params['pooling'] = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), head)
  return dataclasses.replace(model, params=params, cfg=cfg, original=None)


@pytest.mark.slow
@pytest.mark.parametrize('family', sorted(f for f in FAMILIES if FAMILIES[f].cases))
def test_a_fresh_process_computes_the_same(family, tokenizer, elsewhere, tmp_path):
  fields = dict(next(iter(FAMILIES[family].cases.values()))) | {
      'vocab_size': len(tokenizer), 'pad_token_id': tokenizer.pad_token_id}
  (tmp_path / 'model').mkdir()
  parity_families.build(tmp_path / 'model', family, fields)
  tokenizer.save_pretrained(tmp_path / 'model')
  model = bundle.open(tmp_path / 'model')
  modes = ['bidirectional'] + ['causal'] * (family not in presets.ENCODERS)
  found = {}
  for attention, (name, pooling) in itertools.product(modes, POOLINGS.items()):
    if name == 'layers' and model.cfg.backbone.out_dim:
      with pytest.raises(ValueError, match='layers .* are not as wide'):
        Embedder(_with_head(model, pooling, attention)).encode(TEXTS)
      pooling = dataclasses.replace(pooling, reads='tokens')  # of the last layer
    each = _with_head(model, pooling, attention)
    target = tmp_path / f'{name}_{attention}'
    exporters.export(each, target)
    np.save(f'{target}.npy', Embedder(each).encode(TEXTS))
    found[target.name] = elsewhere(target)
  print(family, found)
  assert all(isinstance(x, float) and x <= 1e-5 for x in found.values()), found
