"""ONNX, static, plain and new-layout exports in the libraries that open them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.convert import exporters, parity, tables, to_static
from jaxembed.embedder import Embedder
from jaxembed.models import presets
from tests.helpers import folders, tiny_run

TEXTS = ['what is number 3', 'a', 'three is nine and no more than that']


@pytest.fixture(scope='module')
def model(tiny):
  return bundle.open(tiny)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A model of few words, whose whole vocabulary is embedded in no time."""
  folder = tmp_path_factory.mktemp('small') / 'model'
  tokenizer = folders.words('<s> $A </s>', cls_token='<s>', sep_token='</s>',
                            mask_token='[MASK]')
  tokenizer.add_tokens(['[unused0]', '[unused1]'])
  return bundle.open(folders.backbone(folder, 'bert', tokenizer, 0))


def test_static_vectors_are_pca_of_the_models_own(small, tmp_path):
  st = pytest.importorskip('sentence_transformers')
  report = exporters.export(small, tmp_path / 'out', 'static', dims=8)
  assert report['max_difference'] < 1e-5
  spec, ids = to_static.vocabulary(small.tokenizer_folder)
  names = list(spec['model']['vocab'])
  assert '[unused0]' not in names and '<s>' not in names and '[MASK]' not in names
  assert {'[PAD]', '[UNK]', 'the'} <= set(names)
  # By another way: the model's own vectors of token by token, their covariance.
  whole = Embedder(dataclasses.replace(small, cfg=dataclasses.replace(
      small.cfg, normalize=False))).encode([n for n in names if n.isalpha()])
  assert whole.shape[1] == 32
  table = np.asarray(to_static.tensor_files.open_folder(
      tmp_path / 'out')['embeddings'].read())
  assert table.shape == (len(ids), 8)
  alone = to_static._through(small, ids).astype(np.float64)
  left, sizes, _ = np.linalg.svd(alone - alone.mean(0), full_matrices=False)
  rank = np.arange(2, len(ids) + 2)
  weights = 1e-4 / (1e-4 + 1 / rank / (1 / rank).sum())
  wanted = np.abs(left[:, :8] * sizes[:8] * weights[:, None])
  np.testing.assert_allclose(np.abs(table), wanted, rtol=0, atol=1e-6 * wanted.max())
  theirs = st.SentenceTransformer(str(tmp_path / 'out'), device='cpu')
  row = [names.index(w) for w in ('the', 'cat')]
  mean = table[row].mean(0)
  np.testing.assert_allclose(theirs.encode(['the cat'])[0],
                             mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.thorough
def test_static_arrays_are_model2vecs(small, tmp_path):
  library = pytest.importorskip('model2vec.distill')
  pytest.importorskip('skeletoken')
  theirs = library.distill(str(small.original), pca_dims=8, quantize_to='float32')
  exporters.export(small, tmp_path / 'out', 'static', dims=8)
  ours = to_static.tensor_files.open_folder(tmp_path / 'out')['embeddings'].read()
  assert json.loads((tmp_path / 'out/tokenizer.json').read_text())['model'][
      'vocab'] == json.loads(theirs.tokenizer.to_str())['model']['vocab']
  # Their PCA is in float32, ours in float64; of their own arithmetic on float64:
  _, ids = to_static.vocabulary(small.tokenizer_folder)
  exact = library.inference.apply_pca(
      to_static._through(small, ids).astype(np.float64), 8)
  exact *= library.inference.compute_weights(len(exact), 1e-4)[:, None]
  largest = np.abs(exact).max()
  np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6 * largest)
  np.testing.assert_allclose(ours, theirs.embedding, rtol=0, atol=2e-5 * largest)


@pytest.mark.slow
@pytest.mark.parametrize('family', ['mistral', 'qwen3', 'modernbert', 'gemma3_text',
                                    'mpnet', 'distilbert'])
def test_graphs_of_other_families_compute_the_same(family, minilm, tmp_path):
  pytest.importorskip('onnxscript')
  (tmp_path / 'model').mkdir()
  tiny_run.write_model(tmp_path / 'model', minilm, family)
  report = exporters.export(bundle.open(tmp_path / 'model'), tmp_path / 'out', 'onnx')
  assert report['onnx']['max_difference'] <= 1e-4


@pytest.mark.thorough
def test_a_graph_computes_the_whole_model(model, tmp_path):
  onnxruntime = pytest.importorskip('onnxruntime')
  pytest.importorskip('onnxscript')
  report = exporters.export(model, tmp_path / 'out', 'onnx', int8=True)
  assert report['onnx']['max_difference'] <= 1e-4
  session = onnxruntime.InferenceSession(tmp_path / 'out/onnx/model.onnx')
  assert [x.name for x in session.get_outputs()] == [
      'last_hidden_state', 'sentence_embedding']
  tokenizer = model.load_tokenizer()
  ragged = tokenizer.encode(TEXTS, max_length=32)
  tokens = tokenizer.pad(ragged, int(ragged.lengths.max()))
  given = {'input_ids': tokens.ids.astype(np.int64),
           'attention_mask': tokens.mask.astype(np.int64),
           'token_type_ids': np.zeros(tokens.ids.shape, np.int64)}
  found = session.run(['sentence_embedding'], {
      x.name: given[x.name] for x in session.get_inputs()})[0]
  np.testing.assert_allclose(found, Embedder(model).encode(TEXTS), atol=1e-5)
  assert (tmp_path / 'out/onnx/model_int8.onnx').is_file()
  assert 'model_args' not in json.loads(  # optimum's classes refuse them
      (tmp_path / 'out/sentence_bert_config.json').read_text())
  assert report['onnx']['int8_least_cosine'] > 0.9


@pytest.mark.thorough
@pytest.mark.parametrize('format', ['huggingface', 'sentence-transformers-new'])
def test_other_layouts_open_as_the_same_model(model, tmp_path, format):
  pytest.importorskip('sentence_transformers')
  report = exporters.export(model, tmp_path / 'out', format)
  assert report['max_difference'] < 1e-5
  back = bundle.open(tmp_path / 'out')
  np.testing.assert_array_equal(Embedder(back).encode(TEXTS),
                                Embedder(model).encode(TEXTS))
  for path, x in tables.flatten(back.params).items():
    assert (np.asarray(x) == np.asarray(tables.flatten(model.params)[path])).all()
  card = (tmp_path / 'out/README.md').read_text()
  assert f"'{'out'}'" in card and 'Embedder.load' in card


def test_options_and_heads_that_a_format_lacks_are_refused(model, tmp_path):
  for format, options, told in (
      ('sentence-transformers', {'dims': 8}, 'does not read dims; it reads no options'),
      ('static', {'int8': True}, 'does not read int8; it reads dims'),
      ('static', {'dims': 0}, 'dims is 0'), ('static', {'dims': 8.0}, 'dims is 8.0'),
      ('onnx', {'int8': 'no'}, "int8 is 'no'")):
    with pytest.raises(ValueError, match=told):
      exporters.export(model, tmp_path / 'out', format, **options)
  with pytest.raises(ValueError, match='no place for lower_case'):
    exporters.export(dataclasses.replace(model, cfg=dataclasses.replace(
        model.cfg, lower_case=True)), tmp_path / 'out', 'static')
  table = dataclasses.replace(model, cfg=dataclasses.replace(
      model.cfg, backbone=presets.tiny('static')))
  for format in ('onnx', 'huggingface'):
    with pytest.raises(ValueError, match=r'static model'):
      exporters.export(table, tmp_path / 'out', format)
  latent = dataclasses.replace(model, cfg=dataclasses.replace(
      model.cfg, pooling=dataclasses.replace(
          model.cfg.pooling, kind='latent_attention')))
  with pytest.raises(ValueError, match='no place for latent_attention pooling'):
    exporters.export(latent, tmp_path / 'out', 'huggingface')
  assert not list(tmp_path.iterdir())


def test_parameters_are_let_go_before_torch_opens_the_folder(model, monkeypatch,
                                                             tmp_path):
  """Weights of both libraries in memory at once would be two models."""
  pytest.importorskip('sentence_transformers')
  held = []

  def seen(folder, cases, *rest):
    held.append(sum(x.nbytes for x in jax.live_arrays() if x.ndim > 2))
    return {'max_difference': 0.0, 'cases': [], 'versions': parity.versions() | {
        'jax': jax.__version__}}

  monkeypatch.setattr(parity, 'check', seen)
  folder = model.original
  before = sum(x.nbytes for x in jax.live_arrays() if x.ndim > 2)
  exporters.export(bundle.open(folder), tmp_path / 'out')
  assert held[0] <= before


def test_a_full_disk_is_told_and_leaves_nothing(model, tmp_path, monkeypatch):
  import errno
  import shutil

  free = shutil._ntuple_diskusage(10**9, 10**9, 1000)
  with monkeypatch.context() as m:
    m.setattr(shutil, 'disk_usage', lambda _: free)
    with pytest.raises(OSError, match='GB free; make room'):
      exporters.export(model, tmp_path / 'out')

  def full(f, data):
    raise to_static.tensor_files._named(OSError(errno.ENOSPC, 'full'), f.name)

  monkeypatch.setattr(to_static.tensor_files, '_into', full)
  with pytest.raises(OSError) as e:  # between the look and the writing
    exporters.export(model, tmp_path / 'out')
  assert e.value.errno == errno.ENOSPC and 'model.safetensors' in e.value.filename
  assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_source_that_fails_in_torch_is_not_compared(small, tmp_path):
  """Its length is above its 64 positions, where this library cuts."""
  exporters.export(small, tmp_path / 'one')
  folders.edit(tmp_path / 'one/sentence_bert_config.json', max_seq_length=65)
  report = exporters.export(bundle.open(tmp_path / 'one'), tmp_path / 'two')
  assert report['source']['compared'] is False
  assert 'RuntimeError' in report['source']['why']


@pytest.mark.thorough
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_folder_leaves_in_16_bits(small, tmp_path, dtype):
  exporters.export(small, tmp_path / 'one')
  report = exporters.export(bundle.open(tmp_path / 'one', dtype=dtype),
                            tmp_path / 'two')
  assert 1e-5 < report['source']['max_difference'] < 0.05
  tensors = to_static.tensor_files.open_folder(tmp_path / 'two').values()
  assert {x.dtype.name for x in tensors} == {dtype}
