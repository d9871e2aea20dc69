"""Token ids, masks and pools against Hugging Face's own and NV-Embed's."""

import json
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors
import tokenizers

from jaxembed.data import fast_truncation, tokenise
from jaxembed.data.tokenise import Tokenizer
from tests.helpers.tiers import after, thorough


@pytest.fixture(scope='module')
def bert(minilm):
  return Tokenizer.load(minilm)


@pytest.fixture(scope='module')
def sentences(shared_data):
  lines = (shared_data / 'sts/stsb/test.tsv').read_text('utf-8').splitlines()[1:]
  return [*(line.split('\t')[1] for line in lines[:200]),
          '', 'naïve 東京 — 😀', 'x ' * 99]


def _fast(folder):
  fast = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  fast.no_truncation()
  fast.no_padding()
  return fast


def test_nv_embed_masks_equal_the_original(shared_fixtures):
  """Golden ids and masks of the published code; case 3 loses EOS to the cut."""
  folder = shared_fixtures / 'nv_embed_tiny'
  golden = safetensors.load_file(folder / 'golden.safetensors')
  tokenizer = Tokenizer.load(folder, prompt_pooling='nv_embed', eos_text='</s>')
  for case in json.loads((folder / 'cases.json').read_text()):
    found = tokenizer.encode(case['texts'], case['instruction'],
                             max_length=case['max_length'])
    for side, field in (('ids', 'input_ids'), ('mask', 'attention_mask'),
                        ('pool', 'pool_mask')):
      want = golden[f"{case['case']}/{field}"]
      got = getattr(tokenizer.pad(found, want.shape[1]), side)
      np.testing.assert_array_equal(got, want, err_msg=f"{case['case']} {side}")


@pytest.mark.parametrize('max_length', [8, thorough(3), thorough(256)])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_equals_transformers(minilm, sentences, max_length, side):
  theirs = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(
      str(minilm), padding_side=side)
  want = theirs(sentences, padding=True, truncation=True, max_length=max_length,
                return_tensors='np')
  ours = Tokenizer.load(minilm)
  ours.padding_side = side
  ragged = ours.encode(sentences, max_length=max_length)
  got = ours.pad(ragged, int(ragged.lengths.max()))
  np.testing.assert_array_equal(got.ids, want['input_ids'])
  np.testing.assert_array_equal(got.mask, want['attention_mask'])
  np.testing.assert_array_equal(got.pool, got.mask)
  whole = ours.encode(sentences, max_length=10**6).lengths
  np.testing.assert_array_equal(ragged.truncated, whole > max_length)


def test_excluded_prompt_equals_sentence_transformers(minilm):
  st = pytest.importorskip('sentence_transformers')
  model = st.SentenceTransformer(str(minilm), device='cpu')
  ours = Tokenizer.load(minilm, prompt_pooling='exclude')
  for prompt in ('query: ', 'Represent this sentence: ', ''):
    features = model[0].preprocess(['a red car'], prompt=prompt)
    got = ours.encode(['a red car'], prompt, max_length=64)
    assert got.pool_from[0] == (features.get('prompt_length') or 0)
    np.testing.assert_array_equal(got.ids, features['input_ids'][0].numpy())


def test_prompts_may_differ_by_row(bert):
  together = bert.encode(['a', 'b'], ['x: ', ''], max_length=16)
  apart = [bert.encode(['a'], 'x: ', max_length=16), bert.encode(['b'], max_length=16)]
  np.testing.assert_array_equal(together.ids, np.concatenate([r.ids for r in apart]))


@pytest.mark.parametrize('which', ['bert', 'mistral'])
def test_a_prefix_gives_the_tokens_of_the_whole(minilm, shared_fixtures, which):
  """Random words, symbols and scripts: what is kept of a prefix never differs."""
  fast = _fast(minilm if which == 'bert' else shared_fixtures / 'nv_embed_tiny')
  assert fast_truncation.can_cut(fast)
  rng = np.random.default_rng(0)
  pieces = ['the', 'Unbelievable', ' ', '  ', '\n', 'é', '東京', '!!', '-', '😀',
            "don't", 'a b c', '</s>', '[SEP]', 'x1y2', '\t', 'İ', 'ﬁ',
            'e\u0301', '▁', 'Zz']
  texts = [' '.join(rng.choice(pieces, 300)) for _ in range(40)]
  texts += [''.join(rng.choice(pieces, 600)) for _ in range(40)]
  for wanted in (1, 7, 40):
    got = fast_truncation.encode(fast, texts, wanted, True)
    for text, ids in zip(texts, got):
      whole = fast.encode(text, add_special_tokens=False).ids
      assert ids == whole[:len(ids)]
      assert len(ids) >= min(wanted, len(whole))


def test_no_cut_where_tokens_may_cross_words(shared_fixtures):
  """A vocabulary with 'b▁c' merges over the gap, and no pre-tokenizer stops it."""
  crossing = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={'a': 0, 'b': 1, '▁': 2, 'c': 3, 'd': 4, 'b▁': 5, 'b▁c': 6},
      merges=[('b', '▁'), ('b▁', 'c')]))
  crossing.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  assert not fast_truncation.can_cut(crossing)
  assert not fast_truncation.can_cut(tokenizers.Tokenizer(tokenizers.models.BPE()))


@pytest.mark.parametrize('text', after(1, ['the quick brown fox ' * 50_000, 'a' * 10**6,
                                           ' ' * 10**6, '東京' * 500_000]),
                         ids=['words', 'one letter', 'spaces', 'kanji'])
def test_a_million_characters(minilm, shared_fixtures, text):
  for folder in (minilm, shared_fixtures / 'nv_embed_tiny'):
    tokenizer = Tokenizer.load(folder)
    begun = time.perf_counter()
    got = tokenizer.encode([text], max_length=256)
    # Measured at most 1.1 s for the worst; the rest is for a busy machine.
    assert time.perf_counter() - begun < 20
    assert got.lengths[0] <= 256
    if text.startswith('the'):
      fast = _fast(folder)
      assert got.truncated[0]
      assert got.ids.tolist()[1:200] == fast.encode(text[:9000]).ids[1:200]


def test_an_empty_text_is_its_special_tokens(bert):
  got = bert.encode(['', 'a'], max_length=8)
  np.testing.assert_array_equal(got.lengths, [2, 3])
  np.testing.assert_array_equal(got.ids[:2], [101, 102])


def test_a_text_without_a_pooled_token_is_refused(minilm):
  tokenizer = Tokenizer.load(minilm, prompt_pooling='exclude')
  with pytest.raises(ValueError, match=r"text 0 \('hi'\).*no token.*max_length"):
    tokenizer.encode(['hi'], 'a very long prompt with many words: ', max_length=6)


def test_bad_arguments(bert):
  with pytest.raises(TypeError, match='one string'):
    bert.encode('abc', max_length=8)
  with pytest.raises(TypeError, match='text 1 is NoneType'):
    bert.encode(['a', None], max_length=8)
  with pytest.raises(ValueError, match='2 prompts for 1 texts'):
    bert.encode(['a'], ['x', 'y'], max_length=8)
  with pytest.raises(ValueError, match='max_length 2 leaves no room'):
    bert.encode(['a'], max_length=2)


def test_a_tokenizer_that_does_not_fit_the_model(minilm):
  """Ids beyond the table are told at load, and refused where a text has one."""
  with pytest.warns(UserWarning, match=r'ids up to 30521.*has 20000 rows'):
    tokenizer = Tokenizer.load(minilm, table_size=20000)
  number = tokenizer.encode(['the'], max_length=8).ids[1]
  beyond = next(w for w, i in _fast(minilm).get_vocab().items()
                if i >= 20000 and w.isascii() and w.isalpha())
  assert number < 20000
  with pytest.raises(ValueError, match=f"text 1 .*token '{beyond}' of id 2"):
    tokenizer.encode(['the', f'a {beyond}'], max_length=8)
  assert Tokenizer.load(minilm, table_size=30522).vocab_size == 30522


def test_a_folder_without_a_tokenizer(tmp_path, minilm):
  with pytest.raises(FileNotFoundError, match=r'tokenizer\.json does not exist'):
    Tokenizer.load(tmp_path)


@pytest.mark.parametrize('settings', ['{"pad_token": "<none>"}', '{"pad_token": null}'])
def test_without_a_pad_token_any_id_serves(tmp_path, minilm, settings):
  """Padding is masked: the vectors cannot tell."""
  (tmp_path / 'tokenizer.json').write_bytes((minilm / 'tokenizer.json').read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text(settings)
  bare, whole = Tokenizer.load(tmp_path), Tokenizer.load(minilm)
  texts = ['a b c', 'd']
  got, want = (t.pad(t.encode(texts, max_length=8), 8) for t in (bare, whole))
  np.testing.assert_array_equal(got.mask, want.mask)
  np.testing.assert_array_equal(got.ids[got.mask], want.ids[want.mask])
  assert 0 <= bare.pad_id < 30522


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_keeps_every_token_in_order(bert, side):
  ragged = bert.encode(['a b c', 'd', 'e f'], max_length=8)
  got = tokenise.pad(ragged, 9, pad_id=0, side=side, rows=5)
  assert got.ids.dtype == np.int32
  assert got.mask.dtype == got.pool.dtype == bool
  np.testing.assert_array_equal(got.ids[:3][got.mask[:3]], ragged.ids)
  np.testing.assert_array_equal(got.mask[:3].sum(1), ragged.lengths)
  np.testing.assert_array_equal(got.mask[3:].sum(1), [1, 1])  # finite, to be dropped
  edge = -1 if side == 'left' else 0
  assert got.mask[:, edge].all()


def test_padding_refuses_to_cut(bert):
  ragged = bert.encode(['a b c'], max_length=8)
  with pytest.raises(ValueError, match=r'5 tokens do not fit into \[1, 4\]'):
    tokenise.pad(ragged, 4, pad_id=0)


def test_take_equals_encoding_the_rows_taken(bert, sentences):
  rows = [5, 0, 200, 5]
  got = bert.encode(sentences, max_length=16).take(rows)
  want = bert.encode([sentences[i] for i in rows], max_length=16)
  for name in ('ids', 'starts', 'pool_from', 'truncated'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
