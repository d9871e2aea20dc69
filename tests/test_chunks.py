"""Late chunking and windows, against loops over tokens and torch."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
import tokenizers

from jaxembed import chunks, sharding
from jaxembed.config import LengthConfig, ModelConfig, PoolingConfig
from jaxembed.data import pieces
from jaxembed.embedder import Embedder
from jaxembed.models import encoder, presets
from jaxembed.similarity import unit
from jaxembed.types import Tokens
from tests.helpers.tiers import after

TEXTS = ['Cats purr. Dogs bark at night; nobody knows why.', 'One',
         'A steam engine turns heat into work, and naïve façades crumble slowly.']
SPANS = [[(0, 10), (11, 30), (5, 47)], [(0, 3)], [(0, 70), (8, 20), (20, 36)]]


def _loop(embedder, minilm, texts, spans, prompt=''):
  """Means of the states of the tokens that end in each span."""
  fast = tokenizers.Tokenizer.from_file(str(minilm / 'tokenizer.json'))
  fast.no_truncation()
  fast.no_padding()
  states = embedder.encode(texts, prompt=prompt, output_value='token_embeddings')
  for text, own, x in zip(texts, spans, states):
    ends = [end - len(prompt) for _, end in fast.encode(prompt + text).offsets]
    yield unit(np.stack([np.mean([
        s for s, end in zip(x, ends) if start < end <= stop], 0)
        for start, stop in own]))


@pytest.mark.parametrize('prompt', after(1, ['', 'search: ']))
def test_a_spans_vector_is_the_mean_of_its_tokens_in_the_whole_text(
    embedder, minilm, prompt):
  got = embedder.encode_chunks(TEXTS, SPANS, prompt=prompt)
  for mine, want in zip(got, _loop(embedder, minilm, TEXTS, SPANS, prompt)):
    np.testing.assert_allclose(mine, want, atol=2e-6)
  alone = embedder.encode_chunks(TEXTS[0], SPANS[0], prompt=prompt)
  np.testing.assert_allclose(alone, got[0], atol=2e-6)
  apart = embedder.encode([TEXTS[0][0:10]], prompt=prompt)
  assert np.abs(apart[0] - got[0][0]).max() > 1e-3  # the text was read


def test_parts_of_so_many_tokens(embedder, minilm):
  text = ' '.join(TEXTS * 3)
  spans = embedder.chunk_spans(text, 8, 3)
  count = len(embedder.tokenize([text])['input_ids'][0]) - 2
  assert len(spans) == -(-(count - 3) // 5) and spans[0][0] == 0
  assert spans[-1][1] == len(text)
  got = embedder.encode_chunks([text, '', 'cat'], chunk_tokens=8, overlap=3)
  assert [len(v) for v in got] == [len(spans), 0, 1]
  want, = _loop(embedder, minilm, [text], [spans])
  np.testing.assert_allclose(got[0], want, atol=2e-6)
  short = embedder.encode_chunks(text, spans, truncate_dim=16,
                                 normalize_embeddings=True)
  np.testing.assert_allclose(short, unit(want[:, :16]), atol=5e-6)


LATENT = dict(kind='latent_attention', latents=8, heads=2, head_dim=8)


@pytest.mark.parametrize('pooling', after(1, [
    LATENT, dict(kind='last+mean'), dict(kind='max'), dict(kind='mean_sqrt'),
    dict(kind='layer_attention', reads='tokens', latents=8, heads=2, head_dim=8)]))
def test_pooling_a_span_is_pooling_the_text_over_it(pooling):
  """In rows of their own, in shared ones, and with rows over devices."""
  cfg = ModelConfig(backbone=presets.tiny('mistral'), pooling=PoolingConfig(**pooling))
  params = encoder.init_params(cfg, jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(
      jax.random.key(x.size), x.shape), params)
  ids = np.random.default_rng(0).integers(2, 96, (2, 12)).astype(np.int32)
  mask = np.arange(12)[None] < np.array([12, 9])[:, None]
  places = [(0, 2, 7), (1, 0, 4), (1, 3, 6), (0, 11, 1)]
  row, first, count = np.array(places, np.int32).T
  inside = np.arange(12)[None] - first[:, None]
  want = jax.jit(encoder.encode, static_argnums=1)(params, cfg, Tokens(
      ids[row], mask[row], (inside >= 0) & (inside < count[:, None])))

  @jax.jit
  def spans(params, tokens, row, first):
    states = encoder.hidden_states(params, cfg, tokens)
    return encoder.encode_spans(params, cfg, states, row, first, count, 8)

  got = spans(params, Tokens(ids, mask, mask), row, first)
  np.testing.assert_allclose(got, want, atol=5e-6)
  if pooling['kind'] != 'layer_attention':
    one = Tokens(ids.reshape(1, -1), mask.reshape(1, -1), mask.reshape(1, -1),
                 np.repeat([[0, 1]], 12, 1).astype(np.int32))
    np.testing.assert_allclose(spans(params, one, 0 * row, first + 12 * row), want,
                               atol=5e-6)
  mesh = sharding.make_mesh((2, 1, 1), jax.devices()[:2])
  with jax.set_mesh(mesh):
    split = sharding.to_global(mesh, Tokens(ids, mask, mask))
    np.testing.assert_allclose(
        spans(sharding.place(params, mesh), split, row, first), want, atol=5e-6)


@pytest.mark.parametrize('spans,message', [
    ([[(0, 3)], [], [(0, 71)]], r'span 0 of text 2 is \(0, 71\), which .* of 70 char'),
    ([[(0, 3)], [(2, 2)], []], 'span 0 of text 1 .* empty or outside'),
    ([[(0, 3), (-1, 2)], [], []], 'span 1 of text 0'),
    ([[(10, 11)], [], []], r"span 0 of text 0 \(10, 11\) holds no token \(' '\)"),
    ([[(0, 3)]], 'spans has 1 lists for 3 texts')])
def test_spans_that_are_none_are_refused_with_their_text(embedder, spans, message):
  with pytest.raises(ValueError, match=message):
    embedder.encode_chunks(TEXTS, spans)


def test_what_chunks_cannot_be_is_refused(embedder):
  for options, message in (
      (dict(chunk_tokens=8, overlap=8), 'overlap 8 is not from 0 to 7'),
      (dict(chunk_tokens=0), 'chunk_tokens 0'), (dict(), 'either spans, or chunk_tok'),
      (dict(chunk_tokens=4, spans=SPANS), 'either spans'),
      (dict(spans=SPANS, overlap=2), 'overlap 2 is of chunk_tokens')):
    with pytest.raises(ValueError, match=message):
      embedder.encode_chunks(TEXTS, **options)
  for spans in ([[(0, 'a')], [], []], [[3], [], []], [3, [], []], 'abc'):
    with pytest.raises(TypeError, match='give'):
      embedder.encode_chunks(TEXTS, spans)
  with pytest.raises(ValueError, match=r'text 1 has \d+ tokens, and one pass'):
    embedder.encode_chunks(['a', 'cat ' * 400], chunk_tokens=8)
  for pooling in (PoolingConfig(kind='cls+mean'), PoolingConfig(
      kind='layer_attention', reads='layers_mean')):
    cfg = dataclasses.replace(embedder.cfg, pooling=pooling)
    with pytest.raises(ValueError, match='as texts of their own'):
      encoder.check_spans(cfg)


def _windows(torch_model, text, size, prompt=''):
  """The published loop: windows of tokens, the last one flush right, averaged."""
  import torch
  tokenizer = torch_model.tokenizer
  ids = tokenizer(text, add_special_tokens=False, truncation=False)['input_ids']
  before = tokenizer(prompt, add_special_tokens=False)['input_ids']
  room, found = size - 2 - len(before), []
  for start in range(0, len(ids), room):
    part = ids[max(min(start, len(ids) - room), 0):][:room]
    row = torch.tensor([[101, *before, *part, 102]])
    x = torch_model[0]({'input_ids': row, 'attention_mask': torch.ones_like(row)})
    found.append(x['token_embeddings'][0].mean(0).detach().numpy())
  return unit(np.mean(found, 0))


def test_long_texts_are_tokenised_once(embedder, monkeypatch):
  """Windows and parts: the tokenizer is given every text whole, and once."""
  given, fast, prompt = [], embedder.tokenizer._fast, 'search: '

  class Watched:
    def __getattr__(self, name):
      def encode_batch(texts, **options):
        given.extend(texts)
        return getattr(fast, name)(texts, **options)
      return encode_batch if name.startswith('encode_batch') else getattr(fast, name)

  monkeypatch.setattr(embedder.tokenizer, '_fast', Watched())
  monkeypatch.setattr(pieces, '_CHARACTERS', 100)
  texts = [*TEXTS, 'cats and dogs ' * 30, '', 'a']
  run = dataclasses.replace(
      embedder._runner(), cfg=dataclasses.replace(embedder.cfg, max_length=24))
  (rows, owner), = run._rows(texts, prompt, 'windows')
  assert given == [prompt + text for text in texts]
  assert np.bincount(owner).tolist() == [1, 1, 1, 5, 1, 1] and rows.lengths.max() == 24
  whole = embedder.tokenizer.encode(texts, prompt, max_length=512)
  short = owner != 3
  np.testing.assert_array_equal(rows.take(np.flatnonzero(short)).ids,
                                whole.take([0, 1, 2, 4, 5]).ids)
  given.clear()
  asked = chunks.parts(embedder._runner(), texts, prompt, None, 8, 0)
  assert given == [prompt + text for text in texts]
  np.testing.assert_array_equal(asked.rows.ids, whole.ids)


@pytest.mark.thorough
def test_windows_of_a_long_text_are_averaged(embedder, torch_model, monkeypatch):
  model = Embedder(embedder.bundle)
  model.max_seq_length = 24
  texts = [' '.join(TEXTS * 2), 'A short text.', TEXTS[2] + ' ' + TEXTS[0]]
  for prompt in ('', 'query: '):
    got = model.encode(texts, prompt=prompt, long_texts='windows')
    want = [_windows(torch_model, text, 24, prompt) for text in texts]
    np.testing.assert_allclose(got, want, atol=1e-5)
  assert model.report.windowed == 2 and model.report.truncated == 0
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    np.testing.assert_allclose(got[1], model.encode(texts[1], prompt='query: '),
                               atol=2e-6)
  by_method = Embedder(embedder.bundle.with_length(
      LengthConfig(method='windows', target=4096)))
  by_method.max_seq_length = 24
  np.testing.assert_array_equal(by_method.encode(texts, prompt='query: '), got)
  assert by_method.vector_fingerprint() != model.vector_fingerprint()


def test_windows_that_cannot_be_are_refused(embedder):
  with pytest.raises(ValueError, match='choose one of cut, windows'):
    embedder.encode('a', long_texts='drop')
  with pytest.raises(ValueError, match='asks for tokens'):
    embedder.encode('a', long_texts='windows', output_value=None)
  model = Embedder(embedder.bundle)
  model.max_seq_length = 4
  with pytest.raises(ValueError, match='text 0 .*its prompt and special tokens fill'):
    model.encode(['cats and dogs', 'a'], prompt='search: ', long_texts='windows')
