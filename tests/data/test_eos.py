"""A token behind every text, whoever reads the folder."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from jaxembed.data import Tokenizer, append_token

transformers = pytest.importorskip('transformers')
_FRAME = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B:1', special_tokens=[('<s>', 1)])


def _folder(path, post, **settings):
  fast = tokenizers.Tokenizer(models.WordLevel(
      {'<pad>': 0, '<s>': 1, '</s>': 2, 'a': 3, 'b': 4, 'c': 5}, unk_token='<pad>'))
  fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  fast.add_special_tokens(['<pad>', '<s>', '</s>'])
  if post:
    fast.post_processor = post
  fast.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(json.dumps(
      {'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<pad>',
       'eos_token': '</s>'} | settings))
  return path


@pytest.mark.parametrize('post,front', [
    (_FRAME, [1]), (None, []), (processors.ByteLevel(trim_offsets=False), []),
    (processors.Sequence([processors.ByteLevel(trim_offsets=False), _FRAME]), [1])])
def test_the_token_stands_behind_every_text_and_survives_the_cut(tmp_path, post, front):
  append_token(_folder(tmp_path, post), '</s>')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = Tokenizer.load(tmp_path)
  room = 2 + len(front)
  for text, want in (('a b c', [*front, 3, 4, 5, 2]), ('', [*front, 2])):
    assert ours.encode([text], max_length=9).ids.tolist() == want
    assert theirs(text).input_ids == want
  assert ours.encode(['a b c'], max_length=room).ids.tolist() == [*front, 3, 2]
  assert theirs('a b c', truncation=True, max_length=room).input_ids == [*front, 3, 2]
  assert theirs('a', 'b').input_ids == [*front, 3, *front, 4, 2]
  before = (tmp_path / 'tokenizer.json').read_bytes()
  append_token(tmp_path, '</s>')
  assert (tmp_path / 'tokenizer.json').read_bytes() == before


def test_a_tokenizer_that_ends_so_already_stays_as_it_is(tmp_path, minilm):
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / name).write_bytes((minilm / name).read_bytes())
  append_token(tmp_path, '[SEP]')
  assert (tmp_path / 'tokenizer.json').read_bytes() == (
      minilm / 'tokenizer.json').read_bytes()


@pytest.mark.parametrize('post,token,message', [
    (None, '<end>', "no token '<end>'"),
    (processors.BertProcessing(('<s>', 1), ('<pad>', 0)), '</s>', 'BertProcessing')])
def test_what_cannot_be_appended_is_refused(tmp_path, post, token, message):
  _folder(tmp_path, post)
  with pytest.raises(ValueError, match=message):
    append_token(tmp_path, token)
