"""A run stopped halfway by a release from before models were bundles goes on today.

old_workdir.tar.gz holds the stopped run (2 of 4 steps of a tiny BERT with a latent
head), its rows, and the parameters that the release itself reached after 4 steps.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from jaxembed import bundle, config
from jaxembed.convert import exporters, tables
from jaxembed.embedder import Embedder
from jaxembed.train import loop


@pytest.fixture
def old(tmp_path, monkeypatch):
  with tarfile.open(pathlib.Path(__file__).with_name('old_workdir.tar.gz')) as tar:
    tar.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)  # its rows are named from here
  return tmp_path / 'run'


@pytest.mark.thorough
def test_it_opens_resumes_and_exports(old):
  st = pytest.importorskip('sentence_transformers')
  begun = bundle.open(old)
  assert begun.step == 2 and begun.cfg.pooling.latents == 2
  assert tables.flatten(begun.params).keys() == tables.flatten(
      bundle.open(old, weights=False).params).keys()
  cfg = config.from_dict(config.Config, json.loads((old / 'config.json').read_text()))
  cfg.mesh = config.MeshConfig()
  loop.train(cfg, old, log=lambda _: None)
  found, wanted = tables.flatten(bundle.open(old).params), np.load('final.npz')
  for path, x in found.items():
    np.testing.assert_allclose(x, wanted[path], rtol=0, atol=1e-5, err_msg=path)
  moved = max(np.abs(wanted[p] - np.asarray(x)).max()
              for p, x in tables.flatten(begun.params).items())
  assert moved > 1e-3  # what is resumed is training
  exporters.export(bundle.open(old), old.with_name('out'))
  theirs = st.SentenceTransformer('out', device='cpu', trust_remote_code=True)
  texts = ['what is number 3', 'the 2 of 9']
  np.testing.assert_allclose(
      Embedder.load(old).encode(texts), theirs.encode(texts), atol=1e-5)
