"""The Embedder against sentence-transformers, and against itself."""

import argparse
import asyncio
import contextlib
import dataclasses
import inspect
import json
import logging
import re
import shutil
import subprocess
import warnings

import jax
import numpy as np
import pytest

from jaxembed import bundle, checkpoint, sharding, side_by_side, types
from jaxembed.embedder import Embedder
from jaxembed.similarity import unit
from tests.helpers.tiers import after

# Two float32 implementations of one network: measured 2e-7 to 4e-7; the bound leaves
# room for other machines.
PARITY = 1e-5
# One implementation on batches of other shapes: only the order of sums differs.
ROUNDING = 2e-6


def _real_words() -> list[str]:
  """English that every Python carries: docstrings of its library."""
  docs = []
  for module in (argparse, asyncio, contextlib, inspect, logging, subprocess):
    for _, thing in inspect.getmembers(module):
      docs.append(inspect.getdoc(thing) or '')
  return re.split(r'\s+', ' '.join(docs))


def _sentences(count: int, longest: int) -> list[str]:
  """Cuts of 1 to `longest` words, more of the short ones."""
  words = _real_words()
  sizes = 1 + (longest * np.linspace(0, 1, count) ** 3).astype(int)
  starts = np.cumsum(sizes) % (len(words) - longest - 1)
  return [' '.join(words[at:at + n]) for at, n in zip(starts, sizes)]


@pytest.mark.thorough
@pytest.mark.parametrize('count', after(1, [40, 250]))
def test_equals_sentence_transformers_at_every_length(embedder, torch_model, count):
  model = Embedder(embedder.bundle)  # it has planned no batch yet
  sentences = _sentences(count, 240)
  rng = np.random.default_rng(0)
  sentences = [sentences[i] for i in rng.permutation(len(sentences))]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # the longest are cut
    ours = model.encode(sentences)
  theirs = torch_model.encode(sentences, batch_size=32)
  assert ours.dtype == np.float32 and ours.shape == (count, 384)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)
  assert len(model.report.shapes) <= 10
  if count == 250:
    assert model.report.padding <= 0.10


@pytest.mark.thorough
def test_stsb_spearman(embedder, shared_data):
  from jaxembed.evaluation import sts
  model = Embedder(embedder.bundle)
  lines = (shared_data / 'sts/stsb/test.tsv').read_text('utf-8').splitlines()[1:]
  scores, first, second = zip(*(line.split('\t') for line in lines))
  result = sts.evaluate(model, first, second, np.array(scores, float))
  # The model's published figure.
  assert result['spearman'] == pytest.approx(0.8203, abs=0.0005)
  assert model.report.padding <= 0.10


def test_one_string_gives_one_vector(embedder):
  vector = embedder.encode('A sentence.')
  assert vector.shape == (384,)
  np.testing.assert_allclose(vector, embedder.encode(['A sentence.'])[0])


def test_nothing_gives_an_empty_matrix(embedder):
  assert embedder.encode([]).shape == (0,)  # as in sentence-transformers
  assert embedder.report.padding == 0


@pytest.mark.thorough
def test_neighbours_and_order_do_not_matter(embedder):
  texts = _sentences(40, 60)
  together = embedder.encode(texts)
  np.testing.assert_allclose(
      together[::-1], embedder.encode(texts[::-1], batch_size=5), atol=ROUNDING)
  np.testing.assert_allclose(
      together[7], embedder.encode(texts[7]), atol=ROUNDING)


@pytest.mark.thorough
def test_chunks_keep_the_order(embedder, monkeypatch):
  texts = _sentences(50, 20)
  whole = embedder.encode(texts)
  monkeypatch.setattr('jaxembed.embedder._CHUNK', 7)
  np.testing.assert_allclose(embedder.encode(texts), whole, atol=ROUNDING)
  assert embedder.report.texts == 50


@pytest.mark.thorough
def test_devices_share_the_rows(minilm, embedder):
  texts = _sentences(30, 30)
  sharded = Embedder.load(minilm, mesh=sharding.make_mesh((4, 2, 1)))
  np.testing.assert_allclose(
      sharded.encode(texts), embedder.encode(texts), atol=ROUNDING)
  assert all(rows % 8 == 0 for rows, _ in sharded.report.shapes)


@pytest.mark.thorough
def test_the_same_texts_compile_nothing_new(embedder, monkeypatch):
  texts = _sentences(60, 50)
  for cores in (1, 2):
    monkeypatch.setattr(side_by_side, 'cores', lambda cores=cores: cores)
    embedder.encode(texts, batch_size=4)
    jax.config.update('jax_log_compiles', True)  # by all threads
    try:
      with _counted('jax') as messages:
        embedder.encode(texts, batch_size=4)
    finally:
      jax.config.update('jax_log_compiles', False)
    assert not [m for m in messages if 'Compiling' in m]


@contextlib.contextmanager
def _counted(name: str):
  """The messages that the loggers below `name` receive."""
  messages = []
  handler = logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  logger = logging.getLogger(name)
  logger.addHandler(handler)
  try:
    yield messages
  finally:
    logger.removeHandler(handler)


def test_vectors_have_the_length_that_the_modules_say(embedder, torch_model):
  texts = ['One.', 'Another text.']
  full = embedder.encode(texts)
  np.testing.assert_allclose(np.linalg.norm(full, axis=-1), 1, atol=1e-6)
  for asked in ({'truncate_dim': 64}, {'truncate_dim': 64, 'normalize_embeddings': 1}):
    np.testing.assert_allclose(embedder.encode(texts, **asked),
                               torch_model.encode(texts, **asked), atol=PARITY)
  np.testing.assert_allclose(embedder.encode(texts, truncate_dim=64, normalize=True),
                             unit(full[:, :64]), atol=ROUNDING)
  bare = Embedder(dataclasses.replace(embedder.bundle, cfg=dataclasses.replace(
      embedder.cfg, normalize=False)))
  raw = bare.encode(texts, normalize=False)
  assert (np.linalg.norm(raw, axis=-1) > 1.5).all()
  np.testing.assert_allclose(bare.encode(texts, normalize_embeddings=True), full,
                             atol=ROUNDING)
  with pytest.raises(TypeError, match='cannot take out the normalisation'):
    embedder.encode(texts, normalize=False)


@pytest.fixture(scope='module')
def prompted(minilm, tmp_path_factory):
  """MiniLM with prompts, whose tokens are not pooled."""
  folder = tmp_path_factory.mktemp('prompted') / 'model'
  shutil.copytree(minilm, folder)
  (folder / 'config_sentence_transformers.json').write_text(json.dumps({
      'prompts': {'query': 'search query: ', 'document': 'text: ', 'none': ''},
      'default_prompt_name': 'none', 'similarity_fn_name': 'dot'}))
  file = folder / '1_Pooling/config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {
      'include_prompt': False}))
  return folder


@pytest.mark.thorough
def test_prompts_are_sentence_transformers(prompted):
  st = pytest.importorskip('sentence_transformers')
  theirs = st.SentenceTransformer(str(prompted), device='cpu')
  ours = Embedder.load(prompted)
  texts = _sentences(20, 20)
  for mine, other in (
      (ours.encode_query(texts), theirs.encode_query(texts)),
      (ours.encode_document(texts), theirs.encode_document(texts)),
      (ours.encode(texts), theirs.encode(texts)),
      (ours.encode(texts, 'document'), theirs.encode(texts, 'document')),
      (ours.encode(texts, 'document', prompt='to: '),
       theirs.encode(texts, 'document', prompt='to: '))):
    np.testing.assert_allclose(mine, other, rtol=0, atol=PARITY)
  assert not np.allclose(ours.encode_query(texts), ours.encode(texts), atol=1e-2)


@pytest.mark.thorough
def test_prompts_given_at_loading_are_sentence_transformers(prompted):
  st = pytest.importorskip('sentence_transformers')
  given = {'prompts': {'query': 'ask: ', 'own': 'mine: '}, 'default_prompt_name': 'own'}
  theirs = st.SentenceTransformer(str(prompted), device='cpu', **given)
  ours = Embedder.load(prompted, **given)
  assert ours.prompts == theirs.prompts
  texts = _sentences(20, 20)
  for mine, other in ((ours.encode(texts), theirs.encode(texts)),
                      (ours.encode_query(texts), theirs.encode_query(texts))):
    np.testing.assert_allclose(mine, other, rtol=0, atol=PARITY)
  with pytest.raises(ValueError, match="'other' is unknown"):
    Embedder.load(prompted, default_prompt_name='other')


@pytest.mark.thorough
@pytest.mark.parametrize('prompts, default', [
    ({'query': 'ask for '}, 'query'), ({'x': 'ask for '}, 'x'), ({'query': None}, None),
    ({'passage': 'passage: ', 'corpus': 'no: '}, None), ({}, None)])
def test_prompts_of_queries_and_documents_are_the_references(
    embedder, torch_model, monkeypatch, prompts, default):
  ours = Embedder(dataclasses.replace(
      embedder.bundle, prompts=prompts, default_prompt_name=default))
  known = {'query': '', 'document': ''} | {k: v or '' for k, v in prompts.items()}
  monkeypatch.setattr(torch_model, 'prompts', known)  # as its constructor makes them
  monkeypatch.setattr(torch_model, 'default_prompt_name', default)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for call in ('encode', 'encode_query', 'encode_document'):
      np.testing.assert_allclose(getattr(ours, call)('bread'),
                                 getattr(torch_model, call)('bread'), atol=PARITY)
  np.testing.assert_allclose(ours.encode('bread', 'document'),
                             torch_model.encode('bread', 'document'), atol=PARITY)


def test_a_passage_prompt_that_is_not_used_is_told(embedder):
  model = Embedder(dataclasses.replace(
      embedder.bundle, prompts={'passage': 'passage: '}))
  with pytest.warns(UserWarning, match="it has 'passage'"):
    model.encode_document('a')
  np.testing.assert_allclose(model.encode_document('a', 'passage'),
                             embedder.encode('passage: a'), atol=ROUNDING)


@pytest.mark.parametrize('name', ['cosine', 'dot', 'euclidean', 'manhattan'])
def test_similarities_are_sentence_transformers(embedder, name, monkeypatch):
  util = pytest.importorskip('sentence_transformers.util')
  rng = np.random.default_rng(0)
  a = rng.normal(size=(5, 8)).astype(np.float32)
  b = rng.normal(size=(7, 8)).astype(np.float32)
  monkeypatch.setattr(embedder, 'similarity_fn_name', name)
  theirs = util.SimilarityFunction.to_similarity_fn(name)(a, b).numpy()
  # Their euclidean distance comes from a matrix product, which cancels.
  np.testing.assert_allclose(embedder.similarity(a, b), theirs, atol=1e-4)
  pairwise = util.SimilarityFunction.to_similarity_pairwise_fn(name)(a, b[:5])
  np.testing.assert_allclose(
      embedder.similarity_pairwise(a, b[:5]), pairwise.numpy(), atol=1e-4)


@pytest.mark.thorough
def test_a_workdir_is_read_like_a_folder(minilm, embedder, tmp_path):
  bundle.save_model(tmp_path, embedder.bundle)
  state = types.TrainState(
      jax.numpy.int32(3), jax.tree.map(lambda x: x * 1.5, embedder.params),
      {'count': jax.numpy.int32(0)})
  with checkpoint.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(3, state, {})
    checkpoints.keep_best(3, 'score', 1.0)
    checkpoints.save(4, dataclasses.replace(state, params=embedder.params), {})
  expected = Embedder(dataclasses.replace(embedder.bundle, params=state.params))
  for mesh, step in ((None, 'best'), (sharding.make_mesh((8, 1, 1)), 3)):
    found = Embedder.load(tmp_path, mesh=mesh, step=step)
    assert found.bundle.step == 3
    assert found.folder == tmp_path / 'model'
    np.testing.assert_allclose(
        found.encode('A text.'), expected.encode('A text.'), atol=ROUNDING)


def test_empty_text_is_its_special_tokens(embedder, torch_model):
  texts = ['', ' ', 'a']
  np.testing.assert_allclose(
      embedder.encode(texts), torch_model.encode(texts), rtol=0, atol=PARITY)


def test_a_bad_text_is_found_before_any_is_computed(embedder, monkeypatch):
  monkeypatch.setattr('jaxembed.embedder._CHUNK', 4)
  monkeypatch.setattr('jaxembed.batch_runner._encode', None)  # would fail if called
  texts = ['hello'] * 10
  texts[7] = float('nan')
  with pytest.raises(TypeError, match='text 7 is float nan'):
    embedder.encode(texts)


def test_a_million_characters_are_cut_with_a_warning(embedder):
  text = 'lorem ipsum ' * 90_000
  assert len(text) > 1_000_000
  with pytest.warns(UserWarning, match='1 of 2 texts are longer than 256 tokens'):
    vectors = embedder.encode([text, 'short'])
  assert embedder.report.truncated == 1
  with pytest.warns(UserWarning, match='cut'):
    np.testing.assert_allclose(
        vectors[0], embedder.encode(text[:6000]), atol=ROUNDING)


def test_bad_input_is_named(embedder, tmp_path):
  with pytest.raises(TypeError, match='text 1 is int 3, not str'):
    embedder.encode(['a', 3])
  with pytest.raises(TypeError, match='NoneType'):
    embedder.encode(None)
  with pytest.raises(TypeError, match='bytes'):
    embedder.encode(b'abc')
  with pytest.raises(TypeError, match='table'):
    embedder.encode(np.array([['a', 'b']]))
  with pytest.raises(TypeError, match='whose order means nothing'):
    embedder.encode({'a', 'b'})
  with pytest.raises(TypeError, match='dict'):
    embedder.encode({'a': 'b'})
  with pytest.raises(ValueError, match='text 1 is not Unicode: character 1 is'):
    embedder.encode(['a', 'b\ud83d'])
  with pytest.raises(ValueError, match="prompt 'qery' is unknown"):
    embedder.encode('a', 'qery')
  with pytest.raises(ValueError, match='truncate_dim is 385'):
    embedder.encode('a', truncate_dim=385)
  with pytest.raises(ValueError, match='batch_size 0'):
    embedder.encode('a', batch_size=0)
  with pytest.raises(ValueError, match=r'\(1, 8\) is not \(2, 8\)'):
    embedder.similarity_pairwise(np.ones((1, 8)), np.ones((2, 8)))
  with pytest.raises(FileNotFoundError):
    Embedder.load(tmp_path)


def test_a_token_that_the_model_does_not_have_is_refused(embedder):
  row = int(embedder.tokenize(['yeast'])['input_ids'].max())
  small = dataclasses.replace(embedder.cfg, backbone=dataclasses.replace(
      embedder.cfg.backbone, vocab_size=row))
  with pytest.warns(UserWarning, match=f'table has {row} rows'):
    model = Embedder(dataclasses.replace(embedder.bundle, cfg=small))
  model.tokenize(['bread'])
  with pytest.raises(ValueError, match=rf"text 1 \('yeast'\).*of id {row}"):
    model.encode(['bread', 'yeast'])


def test_unknown_similarity_or_default_prompt_is_refused(embedder):
  with pytest.raises(ValueError, match="similarity 'l3'"):
    dataclasses.replace(embedder.bundle, similarity_fn_name='l3')
  with pytest.raises(ValueError, match="default prompt 'q' is unknown"):
    dataclasses.replace(embedder.bundle, default_prompt_name='q')
