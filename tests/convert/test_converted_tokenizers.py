"""Tokenizers of folders without tokenizer.json, against transformers on that folder."""

import json

import pytest

from jaxembed import bundle, data
from jaxembed.convert.fields import UnsupportedModel
from jaxembed.data import cache, converted_tokenizer
from tests.helpers.folders import TEXTS, backbone, byte_pairs, edit, words

transformers = pytest.importorskip('transformers')

_TEXTS = [*TEXTS, "  don't 12345 ``x'' (a)\n", 'ÄRGER </s> z']
_PIECES = {  # model type: (file, sentencepiece's arguments)
    't5': ('spiece.model', {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}),
    'xlm-roberta': ('sentencepiece.bpe.model', {}),
    'albert': ('spiece.model', {
        'pad_id': 0, 'unk_id': 1, 'bos_id': -1, 'eos_id': -1,
        'user_defined_symbols': ['[CLS]', '[SEP]', '[MASK]']}),
    'deberta-v2': ('spm.model', {
        'pad_id': 0, 'bos_id': 1, 'eos_id': 2, 'unk_id': 3, 'pad_piece': '[PAD]',
        'bos_piece': '[CLS]', 'eos_piece': '[SEP]', 'unk_piece': '[UNK]',
        'user_defined_symbols': ['[MASK]']})}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, 'HOME', str(tmp_path / 'cache'))


def _word_list(folder):
  """BERT's vocab.txt, as before tokenizer.json was."""
  fast = words('$A')._tokenizer
  rows = sorted(fast.get_vocab().items(), key=lambda row: row[1])
  names = {'<s>': '[CLS]', '</s>': '[SEP]'}
  (folder / 'vocab.txt').write_text(
      ''.join(f'{names.get(token, token)}\n' for token, _ in rows))
  return 'bert'


def _merges(folder):
  model = json.loads(byte_pairs('$A')._tokenizer.to_str())['model']
  (folder / 'vocab.json').write_text(json.dumps(model['vocab']))
  (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(
      f'{" ".join(pair) if isinstance(pair, list) else pair}\n'
      for pair in model['merges']))
  return 'roberta'


def _agree(folder):
  want = transformers.AutoTokenizer.from_pretrained(folder)(_TEXTS)['input_ids']
  with pytest.warns(UserWarning, match='no tokenizer.json; transformers .* made one'):
    place = converted_tokenizer.folder(folder)
  assert converted_tokenizer.folder(folder) == place  # said, and made, once
  ragged = data.Tokenizer.load(place).encode(_TEXTS, max_length=512)
  assert ragged.ids.tolist() == [i for row in want for i in row]


@pytest.mark.parametrize('write', [_word_list, _merges])
def test_vocabularies_of_words_and_merges(tmp_path, write):
  edit(tmp_path / 'config.json', model_type=write(tmp_path))
  _agree(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize('kind', _PIECES)
def test_models_of_sentencepiece(tmp_path, kind):
  pieces = pytest.importorskip('sentencepiece')
  name, options = _PIECES[kind]
  (tmp_path / 'texts').write_text('\n'.join(_TEXTS * 20))
  pieces.SentencePieceTrainer.train(
      input=str(tmp_path / 'texts'), model_prefix=str(tmp_path / 'm'), vocab_size=70,
      hard_vocab_limit=False, minloglevel=2, **options)
  folder = tmp_path / 'model'
  folder.mkdir()
  (tmp_path / 'm.model').rename(folder / name)
  edit(folder / 'config.json', model_type=kind)
  _agree(folder)


@pytest.mark.filterwarnings('ignore:.*no (modules|tokenizer).json')
def test_a_model_is_opened_with_its_tokenizer(tmp_path):
  tokenizer = words('<s> $A </s>')
  folder = backbone(tmp_path / 'old', 'bert', tokenizer, 0)
  (folder / 'tokenizer.json').unlink()
  (folder / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
  _word_list(folder)
  model = bundle.open(folder, weights=False)
  assert (model.tokenizer_folder / 'tokenizer.json').is_file()
  want = transformers.AutoTokenizer.from_pretrained(folder)('The cat')['input_ids']
  got = model.load_tokenizer().encode(['The cat'], max_length=9).ids.tolist()
  assert got == want
  (folder / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\nThe\ncat\n')
  again = bundle.open(folder, weights=False).load_tokenizer()
  assert again.encode(['The cat'], max_length=9).ids.tolist() == [2, 4, 5, 3]


def test_classes_that_are_not_known_are_not_made(tmp_path):
  edit(tmp_path / 'config.json', model_type=_word_list(tmp_path))
  edit(tmp_path / 'tokenizer_config.json', tokenizer_class='BertJapaneseTokenizer')
  with pytest.raises(UnsupportedModel, match='vocab.txt of a .BertJapaneseTokenizer'):
    converted_tokenizer.folder(tmp_path)


def test_code_that_a_tokenizer_names_is_not_run(tmp_path):
  edit(tmp_path / 'config.json', model_type=_word_list(tmp_path))
  edit(tmp_path / 'tokenizer_config.json', auto_map={'AutoTokenizer': ['mine.A', None]})
  (tmp_path / 'mine.py').write_text('raise SystemExit("run")')
  with pytest.warns(UserWarning, match='made one of vocab.txt'):
    assert converted_tokenizer.folder(tmp_path) != tmp_path
