"""Every family with every pooling, exported and opened by a process of its own."""

import dataclasses
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
# The fresh process: nothing of this package, every folder, the largest difference.
_READER = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
texts, worst = json.load(open(sys.argv[1])), {}
for folder in sys.argv[2:]:
  model = SentenceTransformer(folder, device='cpu', trust_remote_code=True)
  worst[folder] = float(np.abs(model.encode(texts) - np.load(folder + '.npy')).max())
assert 'jaxembed' not in sys.modules
print(json.dumps(worst))
"""


@pytest.fixture(scope='module')
def tokenizer():
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
@pytest.mark.parametrize('family', sorted(FAMILIES))
def test_a_fresh_process_computes_the_same(family, tokenizer, tmp_path):
  cases = FAMILIES[family].cases
  if not cases:
    pytest.skip(f'{family} has no case of its own')
  fields = dict(next(iter(cases.values()))) | {
      'vocab_size': len(tokenizer), 'pad_token_id': tokenizer.pad_token_id}
  (tmp_path / 'model').mkdir()
  parity_families.build(tmp_path / 'model', family, fields)
  tokenizer.save_pretrained(tmp_path / 'model')
  model = bundle.open(tmp_path / 'model')
  texts = [t for t in folders.TEXTS if t.strip()]
  modes = ['bidirectional'] + ['causal'] * (family not in presets.ENCODERS)
  made = []
  for attention in modes:
    for name, pooling in POOLINGS.items():
      each = _with_head(model, pooling, attention)
      target = tmp_path / f'{name}_{attention}'
      exporters.export(each, target)
      np.save(f'{target}.npy', Embedder(each).encode(texts))
      made.append(str(target))
  (tmp_path / 'texts.json').write_text(json.dumps(texts))
  done = subprocess.run(
      [sys.executable, '-c', _READER, str(tmp_path / 'texts.json'), *made],
      capture_output=True, text=True, cwd=tmp_path, check=False,
      env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
  assert done.returncode == 0, done.stderr[-3000:]
  worst = json.loads(done.stdout.splitlines()[-1])
  assert max(worst.values()) <= 1e-5, worst
