"""Lines written for SentenceTransformer, run on both libraries."""

import sys
import warnings

import numpy as np
import pytest

from jaxembed import drop_in, quantize, similarity, texts
from tests.helpers.tiers import after

PARITY = 1e-5
TEXTS = ['The cat sat on the mat.', 'Stocks fell sharply on Monday.', 'a', '',
         'Paris is the capital of France, and Rome of Italy.']

# What gives the same on both, within float32 rounding.
LINES = [
    'm.encode(TEXTS)', 'm.encode(tuple(TEXTS))', 'm.encode(np.array(TEXTS))',
    'm.encode(TEXTS[0])', 'm.encode(sentences=TEXTS)', 'm.encode(inputs=TEXTS)',
    'm.encode([])', 'm.encode([], convert_to_tensor=True)',
    'm.encode([], convert_to_numpy=False)', 'm.encode([TEXTS[0]])',
    'm.encode(TEXTS, None, None, 2, False)', "m.encode(TEXTS, 'query')",
    "m.encode(TEXTS, 'document', None, 32, False, 'sentence_embedding', 'float32', "
    'True, False, None, True, 16)',
    "m.encode(TEXTS, prompt='query: ')", "m.encode_document(TEXTS, prompt='a ')",
    "m.encode_query(TEXTS, None, 'ask: ', 8)", 'm.encode_query(sentences=TEXTS)',
    'm.encode(TEXTS, normalize_embeddings=True)', 'm.encode(TEXTS, truncate_dim=8)',
    'm.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)',
    'm.encode(TEXTS, convert_to_numpy=True)', 'm.encode(TEXTS, convert_to_tensor=True)',
    'm.encode(TEXTS, convert_to_numpy=False)',
    'm.encode(TEXTS[0], convert_to_tensor=True)',
    "m.encode(TEXTS, device='cpu')", 'm.encode(TEXTS, device=m.device)',
    'm.encode(TEXTS, batch_size=64, show_progress_bar=False, chunk_size=3)',
    "m.encode(TEXTS, output_value='token_embeddings')",
    "m.encode(TEXTS[0], output_value='token_embeddings')",
    "m.encode(TEXTS, output_value=None)[0]['sentence_embedding']",
    "m.encode(TEXTS[0], output_value=None)['token_embeddings']",
    "m.encode(TEXTS, precision='binary')", "m.encode(TEXTS[0], precision='ubinary')",
    'm.encode(TEXTS, precision=None)',
    "m.tokenize(TEXTS)['input_ids']", "m.tokenize(TEXTS)['attention_mask']",
    'm.similarity(m.encode(TEXTS[0]), m.encode(TEXTS))',
    'm.similarity(m.encode(TEXTS[0]), m.encode(TEXTS[1]))',
    'm.similarity_pairwise(m.encode(TEXTS), m.encode(TEXTS[::-1]))',
    'm.similarity_pairwise(m.encode(TEXTS[0]), m.encode(TEXTS[1]))',
    'm.similarity(list(m.encode(TEXTS)), m.encode(TEXTS))',
    'm.max_seq_length', 'm.get_max_seq_length()', 'm.get_embedding_dimension()',
    'm.get_sentence_embedding_dimension()', 'm.truncate_dim', 'm.similarity_fn_name',
    'str(m.device)', 'm.default_prompt_name',
]


@pytest.fixture(scope='module')
def models(embedder, torch_model):
  return embedder, torch_model


def _run(line, model):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return eval(line, {'m': model, 'TEXTS': TEXTS, 'np': np})


def _equal(ours, theirs):
  if isinstance(theirs, list):
    assert isinstance(ours, list) and len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
      _equal(a, b)
  elif isinstance(theirs, str | int | None):
    assert ours == theirs
  else:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)


@pytest.mark.parametrize('line', after(10, LINES))
def test_a_line_gives_the_same(models, line):
  ours, theirs = (_run(line, model) for model in models)
  _equal(ours, theirs)
  if 'convert_to_tensor=True' in line:
    assert type(ours) is type(theirs)


SETTINGS = [('max_seq_length', 8), ('truncate_dim', 16), ('truncate_dim', None),
            ('similarity_fn_name', 'dot'), ('similarity_fn_name', 'manhattan')]


@pytest.mark.parametrize('name, value', after(2, SETTINGS))
def test_a_setting_acts_as_there(models, monkeypatch, name, value):
  for model in models:
    monkeypatch.setattr(model, name, value)
  for line in ('m.encode(TEXTS)', 'm.get_embedding_dimension()', 'm.max_seq_length',
               'm.similarity(m.encode(TEXTS), m.encode(TEXTS[1:]))'):
    ours, theirs = (np.asarray(_run(line, model)) for model in models)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-3 if name[0] == 's' else PARITY)


def test_a_dimension_for_a_while(models):
  for model in models:
    with model.truncate_embeddings(24):
      assert model.encode('a').shape == (24,)
    assert model.encode('a').shape == (384,)


@pytest.mark.parametrize('precision', quantize.PRECISIONS)
def test_quantized_numbers_are_the_references(precision):
  util = pytest.importorskip('sentence_transformers.util')
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(120, 20)).astype(np.float32)
  vectors[:, 3] = 0.5  # a dimension without a range
  ours = quantize.quantize(vectors, precision)
  theirs = util.quantize_embeddings(vectors, precision)
  assert ours.dtype == theirs.dtype
  np.testing.assert_array_equal(ours, theirs)
  if precision.endswith('int8'):
    with pytest.raises(ValueError, match='one vector does not have'):
      quantize.quantize(vectors[:1], precision)
    with pytest.warns(UserWarning, match='ranges are those of 9 vectors'):
      quantize.quantize(vectors[:9], precision)
  matrices = [vectors[:50], vectors[50:]]
  for a, b in zip(quantize.quantize_all(matrices, precision),
                  util.quantize_embeddings(matrices, precision)):
    np.testing.assert_array_equal(a, b)


def test_without_torch_the_remedy_is_told(models, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert models[0].encode('a').shape == (384,)
  with pytest.raises(ModuleNotFoundError, match='leave them out to get numpy'):
    models[0].encode('a', convert_to_tensor=True)


@pytest.mark.parametrize('line, error, says', [
    ('m.encode(TEXTS, pool={})', TypeError, 'mesh='),
    ("m.encode(TEXTS, device=['cpu', 'cpu'])", TypeError, 'mesh='),
    ("m.encode(TEXTS, device='cuda:1')", TypeError, 'lives on cpu'),
    ('m.encode(TEXTS, normalise_embeddings=True)', TypeError,
     "did you mean 'normalize_embeddings'"),
    ('m.encode()', TypeError, 'needs texts'),
    ("m.encode(TEXTS, precision='int4')", ValueError, 'int8, uint8, binary'),
    ("m.encode(TEXTS, output_value='tokens')", ValueError, 'token_embeddings'),
    ('m.encode(TEXTS, batch_size=2.5)', ValueError, 'batch_size 2.5'),
    ('m.encode(TEXTS, truncate_dim=0)', ValueError, 'truncate_dim is 0'),
    ('m.encode(TEXTS, prompt=3)', TypeError, 'the prompt is int 3'),
    ('m.encode_multi_process(TEXTS, None)', AttributeError, 'mesh='),
    ('m.half()', AttributeError, "dtype='float16'"),
    ('m.encode_querry(TEXTS)', AttributeError, "did you mean 'encode_query'"),
    ("setattr(m, 'max_length', 3)", AttributeError, 'would change nothing'),
    ("setattr(m, 'max_seq_len', 3)", AttributeError, "mean 'max_seq_length'"),
    ("setattr(m, 'max_seq_length', 513)", ValueError, '512 positions'),
    ("setattr(m, 'max_seq_length', 0)", ValueError, 'max_seq_length 0'),
    ("setattr(m, 'truncate_dim', 385)", ValueError, 'truncate_dim is 385'),
    ("setattr(m, 'similarity_fn_name', 'cos_sim')", ValueError, 'choose one of cosine'),
    ("setattr(m, 'device', 'cuda')", AttributeError, 'device'),
])
def test_what_cannot_be_says_what_to_do(models, line, error, says):
  with pytest.raises(error, match=says):
    _run(line, models[0])


def test_every_word_of_advice_is_needed(models):
  assert [n for n in drop_in.ELSEWHERE if hasattr(models[0], n)] == []
  assert [n for n in drop_in.ELSEWHERE if not hasattr(models[1], n)] == []


def test_series_and_iterators_are_taken():
  pandas = pytest.importorskip('pandas')
  arrow = pytest.importorskip('pyarrow')
  for given in (pandas.Series(TEXTS), iter(TEXTS), np.array(TEXTS, object),
                arrow.array(TEXTS), arrow.chunked_array([TEXTS[:2], TEXTS[2:]])):
    assert texts.as_texts(given) == (TEXTS, False)
  for refused in (pandas.DataFrame({'text': TEXTS}), {'a': 'b'}.keys(), np.array('a')):
    with pytest.raises(TypeError):
      texts.as_texts(refused)
  with pytest.raises(TypeError, match='text 1 is NAType'):
    texts.as_texts(pandas.Series(['a', pandas.NA], dtype='string'))


def test_similarities_of_other_numbers():
  wide = np.array([[1e30, 1.0]])  # squares leave float32
  assert similarity.matrix('cosine', wide, wide)[0, 0] == pytest.approx(1)
  for bad in (np.ones((1, 2), complex), [['a', 'b']]):
    with pytest.raises(ValueError, match='real numbers'):
      similarity.matrix('dot', bad, bad)
  with pytest.raises(ValueError, match='one width'):
    similarity.matrix('dot', np.ones((2, 3)), np.ones((2, 4)))
  torch = pytest.importorskip('torch')
  numbers = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
  want = (numbers @ numbers.T).numpy()
  for given in (numbers.bfloat16(), numbers.clone().requires_grad_()):
    np.testing.assert_array_equal(similarity.matrix('dot', given, numbers), want)
  none = np.ones((0, 3))
  assert similarity.matrix('euclidean', none, np.ones((2, 3))).shape == (0, 2)
