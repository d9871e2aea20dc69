"""Rows in three projects' shapes, and what is said about bad ones."""

import pytest

from jaxembed.data.records import BadRow, Example, Passage, from_row, text_id

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
             instruction='find')),
    # Tevatron
    ({'query_id': 3, 'query': 'q',
      'positive_passages': [{'docid': '7', 'title': 'T', 'text': 'p'}],
      'negative_passages': [{'docid': '8', 'title': '', 'text': 'n'}]},
     Example('q', (P('T p', '7'),), (P('n', '8'),), query_id='3')),
    ({'query': 'q', 'positive': 'p', 'negative': None, 'extra': 1},
     Example('q', (P('p'),))),
])
def test_shapes(row, want):
  assert from_row(row, 'f:1') == want


def test_named_columns():
  row = {'title': 'q', 'body': 'p', 'other': 'n', 'score': 'not read'}
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
])
def test_bad_rows_name_place_field_and_remedy(row, says):
  with pytest.raises(BadRow, match=r'data\.jsonl:12: .*' + says):
    from_row(row, 'data.jsonl:12')


def test_ids_are_31_bits_of_the_text():
  assert text_id('a') == text_id('a') != text_id('b')
  assert all(0 <= text_id(str(i)) < 2**31 for i in range(1000))
  assert text_id('\ud800') >= 0  # JSON may hold a lone surrogate
