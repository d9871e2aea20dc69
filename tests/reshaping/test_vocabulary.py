"""New tokens and other tokenizers: old texts keep their vectors, new rows are told."""


import numpy as np
import pytest

from jaxembed import bundle
from jaxembed.data import added_tokens
from jaxembed.embedder import Embedder
from jaxembed.paths import flatten
from jaxembed.reshaping import transplant, vocabulary
from tests.helpers import folders, tiny_run

TEXTS = ['what is number 3', 'three is nine']


@pytest.fixture(scope='module')
def model(tmp_path_factory, minilm):
  folder = tmp_path_factory.mktemp('vocabulary') / 'model'
  folder.mkdir()
  return bundle.open(tiny_run.write_model(folder, minilm))


def _table(model):
  return np.asarray(flatten(model.params)[vocabulary.TABLE])


@pytest.mark.thorough
def test_new_tokens_leave_other_texts_as_they_were(model, tmp_path):
  tokens = ['jaxembedding', 'zzyzx']
  before = _table(model)
  pieces = added_tokens.pieces(model.tokenizer_folder, tokens)
  assert min(map(len, pieces)) > 1
  made = {init: vocabulary.add(model, tokens, tmp_path / init, init)
          for init in vocabulary.INITS}
  for init, new in made.items():
    table = _table(new)
    assert new.cfg.backbone.vocab_size == len(table) == len(before) + 2
    assert table[:-2].tobytes() == before.tobytes()
    # Between the least and the most of every number: in the hull, and not on it.
    assert (table[-2:] < before.max(0)).all() and (table[-2:] > before.min(0)).all()
    ids = new.load_tokenizer().encode(['a jaxembedding here'], max_length=16).ids
    assert len(before) in ids, init
  for row, own in zip(_table(made['pieces'])[-2:], pieces):
    np.testing.assert_allclose(row, before[own].mean(0), atol=1e-8)
  np.testing.assert_allclose(_table(made['mean'])[-1], before.mean(0, np.float64),
                             rtol=1e-5)
  assert np.abs(np.diff(_table(made['hull'])[-2:], axis=0)).max() > 1e-6
  bundle.save(tmp_path / 'run', made['pieces'])
  again = Embedder.load(tmp_path / 'run')
  np.testing.assert_array_equal(again.encode(TEXTS), Embedder(model).encode(TEXTS))
  with pytest.raises(ValueError, match="has the token 'cat' already"):
    vocabulary.add(model, ['cat'], tmp_path / 'known')


def test_a_task_has_a_token_and_a_prompt(model, tmp_path):
  new = vocabulary.for_tasks(model, {'sts': '[STS]', 'ask': '[ASK]'}, tmp_path / 't')
  assert new.prompts == {'sts': '[STS]', 'ask': '[ASK]'}
  tokenizer = new.load_tokenizer()
  ids = tokenizer.encode(['what'], '[ASK]', max_length=16).ids
  assert ids.tolist().count(len(_table(model)) + 1) == 1
  assert len(_table(model)) + 1 in tokenizer.special_ids
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 't')
  assert theirs('[ASK]what')['input_ids'] == ids.tolist()


def _loop_pursuit(target, dictionary, atoms):
  """Orthogonal matching pursuit as its paper has it."""
  unit = dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)
  taken, left = [], target
  for _ in range(atoms):
    scores = np.abs(unit @ left)
    scores[taken] = -1
    taken.append(int(scores.argmax()))
    weights, *_ = np.linalg.lstsq(dictionary[taken].T, target, rcond=None)
    left = target - weights @ dictionary[taken]
  return weights @ dictionary[taken]


def test_pursuit_is_the_papers_and_finds_what_is_sparse():
  rng = np.random.default_rng(0)
  dictionary, targets = rng.normal(size=(40, 12)), rng.normal(size=(6, 12))
  taken, weights = transplant.pursue(targets, dictionary, 5)
  for i, target in enumerate(targets):
    np.testing.assert_allclose(weights[i] @ dictionary[taken[i]],
                               _loop_pursuit(target, dictionary, 5), atol=1e-10)
  exact = 2 * dictionary[3:4]
  taken, weights = transplant.pursue(exact, dictionary, 4)
  assert taken[0, 0] == 3
  np.testing.assert_allclose(weights[0], [2, 0, 0, 0], atol=1e-12)


def test_a_transplanted_tokenizer_shares_what_both_spell(model, tmp_path):
  donor = tmp_path / 'donor'
  folders.backbone(donor, 'bert', folders.words('<s> $A </s>', cls_token='<s>',
                                                sep_token='</s>'), 0)
  other = bundle.open(donor)
  new = transplant.transplant(model, other, tmp_path / 'new', atoms=4)
  ours, theirs = (added_tokens.vocabulary(m.tokenizer_folder) for m in (model, other))
  assert new.cfg.backbone.vocab_size == len(_table(new)) == len(theirs)
  for token, role in (('cat', 'cat'), ('##s', '##s'), ('<s>', '[CLS]'),
                      ('</s>', '[SEP]'), ('[PAD]', '[PAD]')):
    if token in theirs and role in ours:
      assert (_table(new)[theirs[token]] == _table(model)[ours[role]]).all(), token
  text = ['The cat sat on the mat.']
  assert Embedder(new).encode(text).shape == (1, model.cfg.embedding_dim)
  read = [m.load_tokenizer().encode(text, max_length=32).ids for m in (new, other)]
  assert read[0].tolist() == read[1].tolist()
  # A tokenizer transplanted into itself changes no row that texts can reach.
  same = transplant.transplant(model, model, tmp_path / 'same')
  assert _table(same).tobytes() == _table(model).tobytes()


def test_tokenizers_of_all_kinds_spell_alike(tmp_path):
  wordpiece = folders.words('<s> $A </s>', cls_token='<s>', sep_token='</s>')
  byte_level = folders.byte_pairs('<s> $A </s>')
  found = []
  for name, tokenizer in (('w', wordpiece), ('b', byte_level)):
    tokenizer.save_pretrained(tmp_path / name)
    found.append(set(added_tokens.spellings(tmp_path / name).values()))
  assert {('role', 'pad'), ('role', 'first'), ('role', 'last')} <= found[0] & found[1]
  assert ('word', 'the') in found[0] & found[1]
