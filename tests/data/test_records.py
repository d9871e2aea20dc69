"""Rows in three projects' shapes, and what is said about bad ones."""

import json

import pytest

from jaxembed.data.records import (
    BadRow,
    Example,
    Passage,
    from_row,
    labelled,
    text_id,
)

P = Passage


@pytest.mark.parametrize('row, want', [
    # sentence-transformers
    ({'anchor': 'q', 'positive': 'p'}, Example('q', (P('p'),))),
    ({'anchor': 'q', 'positive': 'p', 'negative': 'n'},
     Example('q', (P('p'),), (P('n'),))),
    ({'query': 'q', 'positive': 'p', 'negative_2': 'b', 'negative_10': 'c',
      'negative_1': 'a'}, Example('q', (P('p'),), (P('a'), P('b'), P('c')))),
    ({'sentence1': 'q', 'sentence2': 'p', 'score': 4.5},
     Example('q', (P('p'),), score=4.5)),
    # FlagEmbedding
    ({'query': 'q', 'pos': ['p', 'r'], 'neg': ['n'], 'pos_scores': [1, 0.5],
      'neg_scores': [0.25], 'prompt': 'find', 'type': 'x'},
     Example('q', (P('p', score=1.0), P('r', score=0.5)), (P('n', score=0.25),),
             instruction='find', type='x')),
    # Tevatron
    ({'query_id': 3, 'query': 'q',
      'positive_passages': [{'docid': '7', 'title': 'T', 'text': 'p'}],
      'negative_passages': [{'docid': '8', 'title': '', 'text': 'n'}]},
     Example('q', (P('T p', '7'),), (P('n', '8'),), query_id='3')),
    ({'query': 'q', 'positive': 'p', 'negative': None, 'extra': 1},
     Example('q', (P('p'),))),
    # tables with empty cells
    ({'query': 'q', 'positive': 'p', 'negative': '', 'negative_1': 'n',
      'negative_2': float('nan'), 'negative_3': ' '},
     Example('q', (P('p'),), (P('n'),))),
    ({'query': 'q', 'positive': 'p', 'anchor': None, 'pos': []},
     Example('q', (P('p'),))),
    # embedding-training-data
    (['q', 'p'], Example('q', (P('p'),))),
    (['q', 'p', 'n', ''], Example('q', (P('p'),), (P('n'),))),
    (['q', ['p', 'r'], ['n', 'm']], Example('q', (P('p'), P('r')), (P('n'), P('m')))),
    ({'set': ['a', 'b', 'a', 'c']},
     Example('a', (P('b'), P('c')), interchangeable=True)),
    # mine_hard_negatives with scores
    ({'query': 'q', 'positive': 'p', 'negative_1': 'n', 'negative_2': 'm',
      'score': [0.9, 0.4, 0]},
     Example('q', (P('p', score=0.9),), (P('n', score=0.4), P('m', score=0.0)))),
])
def test_shapes(row, want):
  assert from_row(row, 'f:1') == want


def test_named_columns():
  row = {'title': 'q', 'body': 'p', 'other': 'n', 'extra': 'not read'}
  assert from_row(row, 'f:1', ('title', 'body', 'other')) == Example(
      'q', (P('p'),), (P('n'),))
  with pytest.raises(BadRow, match=r"f:1: no column 'x'"):
    from_row(row, 'f:1', ('title', 'x'))


@pytest.mark.parametrize('row, says', [
    ('text', "the row is str 'text'"),
    ({'positive': 'p'}, 'no query; one of the fields query, anchor'),
    ({'query': 'q'}, 'no positive; one of the fields positive'),
    ({'query': 'q', 'pos': []}, "field 'pos' is empty"),
    ({'query': 'q', 'positive': None}, "field 'positive' is empty"),
    ({'query': ' ', 'positive': 'p'}, "field 'query' is an empty text"),
    ({'query': None, 'positive': 'p'}, "field 'query' is NoneType"),
    ({'query': 'q', 'pos': ['p', 3]}, r"field 'pos\[1\]' is int 3"),
    ({'query': 'q', 'pos': 3}, "field 'pos' is int 3; give a text or a list"),
    ({'query': 'q', 'positive': 'p', 'neg': ['']}, r"field 'neg\[0\]' is an empty"),
    ({'query': 'q', 'positive_passages': [{'docid': 1}]}, "has no 'text'"),
    ({'query': 'q', 'pos': ['p'], 'pos_scores': [1, 2]}, 'a list of 1 numbers'),
    ({'query': 'q', 'pos': ['p'], 'pos_scores': ['x']}, "'pos_scores' is 'x'"),
    ({'sentence1': 'q', 'sentence2': 'p', 'score': 'nan'}, "'score' is 'nan'"),
    ({'sentence1': 'q', 'sentence2': 'p', 'score': 1e39}, "'score' is 1e.39"),
    ({'sentence1': 'q', 'sentence2': 'p', 'score': [0.5, 0.5]}, 'a list of 1 numbers'),
    ({'sentence1': 'q', 'sentence2': 'p', 'score': [0.5]}, 'give the number alone'),
    ({'query': 'q', 'pos': ['p'], 'neg': [], 'neg_scores': [1]}, 'a list of 0 numbers'),
    ({'query': 'q', 'pos': ['p', 'r'], 'pos_scores': '12'}, 'a list of 2 numbers'),
    ({'query': 'q', 'pos': ['p', 'r'], 'score': [1, 1], 'pos_scores': [1, 1]},
     'another field'),
    ({'query': 'q', 'anchor': 'a', 'positive': 'p'}, "'query' and 'anchor' could each"),
    ({'query': 'q', 'pos': ['p'], 'positive': 'p'}, "'positive' and 'pos' could each"),
    ({'query': 'q', 'positive': 'p', 'prompt': 'a', 'instruction': 'b'}, 'differ'),
    ({'query': 'q', 'positive': 'p', 'query_id': [1]}, "'query_id' is list"),
    ({'query': 'q', 'positive': {'text': 'p', 'docid': {}}}, "positive.docid' is dict"),
    ({'query': 'q', 'positive': {'text': 'p', 'title': 5}}, "'positive.title' is int"),
    ({'query': 'q', 'positive': 'p', 'negative_' + '9' * 5000: 'n'}, 'than 20 digits'),
    (['q'], 'the row is a list of 1'),
    ([{'query': 'q', 'positive': 'p'}] * 3, 'begins with dict .*one JSON array .*jq'),
    ([['q', 'p'], ['a', 'b']], 'begins with list .*one JSON array .*jq'),
    (['q', ''], r"field 'row\[1\]' is an empty text"),
    ({'set': ['a', 'a']}, "'set' has 1 different texts"),
    ({'set': ['a', 3]}, r"field 'set\[1\]' is int"),
])
def test_bad_rows_name_place_field_and_remedy(row, says):
  with pytest.raises(BadRow, match=r'data\.jsonl:12: .*' + says):
    from_row(row, 'data.jsonl:12')


@pytest.mark.parametrize('field', [
    'query', 'positive', 'pos', 'neg', 'negative_1', 'prompt', 'title', 'docid', 'set',
    'text', 'label'])
def test_half_a_character_is_found_when_the_row_is_read(field):
  """No tokenizer takes one; json.dumps writes it where a text was cut in an emoji."""
  half = json.loads(r'"a \ud83d"')
  inner = {'text': 'p', 'title': 't', 'docid': '1'}
  row = {'query': 'q', 'positive': [inner]}
  if field in inner and field != 'text':
    inner[field] = half
  elif field == 'set':
    row = {'set': ['a', half]}
  elif field == 'pos':
    row = {'query': 'q', 'pos': ['p', half]}
  elif field == 'neg':
    row['neg'] = ['n', half]
  else:
    row[field] = half
  read = from_row if field not in ('text', 'label') else labelled
  row = row if read is from_row else {'text': 'a', 'label': 'b'} | {field: half}
  with pytest.raises(BadRow, match=rf'f:3: field .*{field}.* half of a character at 2'):
    read(row, 'f:3')


def test_ids_are_31_bits_of_the_text():
  assert text_id('a') == text_id('a') != text_id('b')
  assert all(0 <= text_id(str(i)) < 2**31 for i in range(1000))
  assert text_id('\ud800') >= 0  # JSON may hold a lone surrogate
