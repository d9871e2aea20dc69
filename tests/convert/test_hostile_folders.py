"""Folders that someone damaged on purpose: a model, or a refusal in one sentence.

Whatever is changed in the files of a model, loading gives a model whose vectors are
finite, or an error that is meant for people; never a traceback of another kind.
"""

import copy
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from jaxembed import bundle
from jaxembed.config import DenseConfig, ModelConfig, PoolingConfig
from jaxembed.convert import peft, tables
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets

_ODD = (None, True, False, 0, 1, -1, 2, 2.0, 0.5, 1e30, 10**12, 10**400, '', 'x', '3',
        '../x', '/etc/passwd', 'a\0b', [], [0], ['x'], [None], {}, {'a': 1}, [[[]]],
        'left', 'sentence_transformers.models.Pooling', 'x' * 5000)


def _tokenizer() -> tokenizers.Tokenizer:
  words = ['[PAD]', '[CLS]', '[SEP]', '[UNK]', *'abcdefghijklmnopqrstuvwxyz']
  fast = tokenizers.Tokenizer(models.WordPiece(
      {w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)])
  return fast


def _model(folder, family: str) -> None:
  """A sentence-transformers folder with a dense layer."""
  backbone = presets.tiny(family)
  cfg = ModelConfig(backbone=backbone, pooling=PoolingConfig(kind='mean'),
                    dense=(DenseConfig(features=8, activation='tanh'),))
  params = encoder.init_params(cfg, jax.random.key(0))
  for name in ('1_Pooling', '2_Dense', '3_Normalize'):
    (folder / name).mkdir(parents=True)
  save_file(tables.to_hf(params, cfg), folder / 'model.safetensors')
  rows = tables.dense_table(0, cfg.dense[0], backbone.dim).rows
  save_file({k: np.ascontiguousarray(v) for k, v in tables.iter_hf(params, cfg, rows)},
            folder / '2_Dense' / 'model.safetensors')
  _tokenizer().save(str(folder / 'tokenizer.json'))
  kind = 'sentence_transformers.models.'
  for name, data in {
      'config.json': tables.config_to_hf(backbone, 'bidirectional'),
      'tokenizer_config.json': {'pad_token': '[PAD]', 'model_max_length': 64,
                                'padding_side': 'right', 'cls_token': '[CLS]'},
      'special_tokens_map.json': {'pad_token': '[PAD]', 'sep_token': '[SEP]'},
      'sentence_bert_config.json': {'max_seq_length': 32, 'do_lower_case': False},
      'config_sentence_transformers.json': {
          'prompts': {'query': 'q: '}, 'default_prompt_name': None,
          'similarity_fn_name': 'cosine'},
      'modules.json': [
          {'idx': i, 'name': str(i), 'path': path, 'type': kind + name}
          for i, (path, name) in enumerate([
              ('', 'Transformer'), ('1_Pooling', 'Pooling'), ('2_Dense', 'Dense'),
              ('3_Normalize', 'Normalize')])],
      '1_Pooling/config.json': {'word_embedding_dimension': 32,
                                'pooling_mode_mean_tokens': True,
                                'include_prompt': True},
      '2_Dense/config.json': {
          'in_features': 32, 'out_features': 8, 'bias': True,
          'activation_function': 'torch.nn.modules.activation.Tanh'},
      '3_Normalize/config.json': {}}.items():
    (folder / name).write_text(json.dumps(data))


@pytest.fixture(scope='module', params=['bert', 'gemma3_text'])
def model(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param) / 'model'
  _model(folder, request.param)
  return folder


def _places(value, path=()):
  """The way to every value below, outermost first."""
  yield path
  items = (value.items() if isinstance(value, dict) else
           enumerate(value) if isinstance(value, list) else ())
  for key, inner in list(items)[:40]:
    yield from _places(inner, (*path, key))


def _changed(rng, value):
  """`value` with one part taken out, replaced, or doubled."""
  value = copy.deepcopy(value)
  places = list(_places(value))
  path = places[rng.integers(len(places))]
  odd = _ODD[rng.integers(len(_ODD))]
  if not path:
    return odd
  holder = value
  for key in path[:-1]:
    holder = holder[key]
  what = rng.integers(4)
  if what == 0:
    del holder[path[-1]]
  elif what == 1 and isinstance(holder, list):
    holder.append(holder[path[-1]])
  else:
    holder[path[-1]] = odd
  return value


def _outcome(folder) -> str:
  """'' where a model loads and gives finite vectors; else why it was refused."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      opened = bundle.open(folder)
      tokenizer = opened.load_tokenizer()
      tokenizer.encode(['a b'], max_length=min(16, opened.cfg.max_length))
    except (ValueError, OSError) as e:
      assert '\n' not in str(e) and len(str(e)) < 1500, str(e)
      return str(e)
  return ''


def _fuzz(model, tmp_path, seed: int, rounds: int) -> None:
  rng = np.random.default_rng(seed)
  files = sorted(p.relative_to(model) for p in model.rglob('*.json'))
  work, refused = tmp_path / 'work', 0
  shutil.copytree(model, work)
  for i in range(rounds):
    file = files[rng.integers(len(files))]
    text = (model / file).read_bytes()
    if rng.random() < 0.1:
      at = rng.integers(len(text))
      text = text[:at] + bytes([rng.integers(256)]) + text[at + 1:]
    else:
      text = json.dumps(_changed(rng, json.loads(text))).encode()
    (work / file).write_bytes(text)
    try:
      refused += bool(_outcome(work))
    except Exception as e:
      raise AssertionError(f'round {i}: {file} as {text[:2000]!r}') from e
    (work / file).write_bytes((model / file).read_bytes())
  assert rounds // 4 < refused < rounds
  assert not _outcome(work)


def test_random_settings(model, tmp_path):
  _fuzz(model, tmp_path, 0, 60)


@pytest.mark.slow
def test_many_random_settings(model, tmp_path):
  _fuzz(model, tmp_path, 1, 4000)


@pytest.fixture(scope='module')
def adapter(tmp_path_factory):
  folder = tmp_path_factory.mktemp('adapter')
  _model(folder / 'base', 'bert')
  (folder / 'adapter').mkdir()
  q = 'base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight'
  save_file({q.format(i, x): np.full(shape, 0.1, np.float32) for i in range(3)
             for x, shape in (('A', (2, 32)), ('B', (32, 2)))},
            folder / 'adapter' / peft.WEIGHTS)
  (folder / 'adapter' / peft.CONFIG).write_text(json.dumps({
      'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, 'lora_dropout': 0.0,
      'base_model_name_or_path': '../base', 'target_modules': ['query'],
      'bias': 'none', 'use_rslora': False, 'init_lora_weights': True,
      'rank_pattern': {}, 'alpha_pattern': {}, 'modules_to_save': None}))
  return folder


def _fuzz_adapters(adapter, tmp_path, seed: int, rounds: int) -> None:
  rng, refused = np.random.default_rng(seed), 0
  shutil.copytree(adapter, tmp_path / 'a')
  file = tmp_path / 'a' / 'adapter' / peft.CONFIG
  data = json.loads(file.read_text())
  for i in range(rounds):
    changed = _changed(rng, data)
    file.write_text(json.dumps(changed))
    try:
      refused += bool(_outcome(file.parent))
    except Exception as e:
      raise AssertionError(f'round {i}: {changed!r:.2000}') from e
  assert rounds // 4 < refused < rounds


def test_random_adapters(adapter, tmp_path):
  _fuzz_adapters(adapter, tmp_path, 0, 40)


@pytest.mark.slow
def test_many_random_adapters(adapter, tmp_path):
  _fuzz_adapters(adapter, tmp_path, 1, 3000)


def test_the_model_itself_gives_finite_vectors(model):
  vectors = Embedder.load(model).encode(['a b c', 'd'])
  assert vectors.shape == (2, 8) and np.isfinite(vectors).all()
