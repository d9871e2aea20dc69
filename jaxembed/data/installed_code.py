"""Code search on the Python that is installed: docstring -> function.

The standard library and the environment's packages are on every machine that can
run this. A function's query is its docstring's first paragraph; its positive is
its source without the docstring. What comes out depends on what is installed,
and on nothing else.
"""

import ast
from collections.abc import Iterator, Sequence
import functools
import hashlib
import os
import pathlib
import re
import sysconfig
import textwrap
import warnings

from jaxembed.data.records import Example, Passage

_TEST_SHARE = 0.1  # of the modules
_TEST_PAIRS = 2000  # the whole test split; train leaves out what equals one
_WORDS = (5, 60)  # of the docstring's first paragraph
_LINES = (2, 60)  # of the function without it
_MAX_CHARS = 4000
_MAX_FILE = 300_000  # bytes; larger files are generated tables as a rule
_DOCSTRING = re.compile(r':\s*\n\s+[rR]?(\'\'\'|""")')
# Tests, and folders whose files are not importable code of their package.
_SKIP = re.compile(r'(^|_)(tests?|testing|conftest|__pycache__)(_|$)|^test|-|\.')
_SKIP_FOLDERS = ('site-packages', 'dist-packages', 'lib2to3', 'idlelib')


def read(split: str, limit: int = 0,
         roots: Sequence[str | os.PathLike] | None = None) -> list[Example]:
  """Pairs of the split 'train' or 'test', always the same ones.

  A module is on one side, by a hash of the last two parts of its name (a copy
  vendored into another package stays on its side), and train leaves out every
  pair whose docstring or code is in the test split. Nothing comes twice. Modules
  are visited in the order of a hash of their names, so a limited read is a sample
  of everything installed and takes a time that grows with the limit.

  Args:
    limit: the most pairs. 0: all 2,000 of test, and for train everything, which
      can take minutes.
    roots: folders with packages; default: the standard library and the
      environment's site-packages.
  """
  if split not in ('train', 'test'):
    raise ValueError(f"installed_code has the splits 'train' and 'test', not {split!r}")
  return list(_read(split, limit, tuple(roots or _installed())))


@functools.lru_cache(maxsize=4)  # opened by the plan and by the run alike
def _read(split: str, limit: int, roots: tuple) -> tuple[Example, ...]:
  seen: set[str] = set()
  if split == 'train':
    _take(_modules(roots, 'test'), _TEST_PAIRS, seen)
    return tuple(_take(_modules(roots, 'train'), limit, seen))
  limit = min(limit or _TEST_PAIRS, _TEST_PAIRS)
  return tuple(_take(_modules(roots, 'test'), limit, seen))


def _take(modules, limit: int, seen: set[str]) -> list[Example]:
  """The first `limit` pairs that are not in `seen`, to which they are added."""
  found: list[Example] = []
  for name, path in modules:
    for doc, code in _functions(path):
      keys = {doc.lower(), re.sub(r'\W+', ' ', code)}
      if keys & seen:
        continue
      seen |= keys
      found.append(Example(doc, (Passage(code),), query_id=name))
      if limit and len(found) == limit:
        return found
  return found


def _installed() -> list[str]:
  paths = sysconfig.get_paths()
  return sorted({paths['stdlib'], paths['purelib'], paths['platlib']})


def _modules(roots, split: str) -> list[tuple[str, pathlib.Path]]:
  """Names and files of a split's modules, in hash order."""
  found: dict[str, pathlib.Path] = {}
  for root in map(pathlib.Path, roots):
    for folder, inner, names in os.walk(root):
      inner[:] = sorted(d for d in inner
                        if d not in _SKIP_FOLDERS and not _SKIP.search(d))
      package = pathlib.Path(folder).relative_to(root).parts
      for file in names:
        stem = file.removesuffix('.py')
        if stem != file and not _SKIP.search(stem):
          found.setdefault('.'.join((*package, stem)), pathlib.Path(folder, file))
  names = [name for name in found if _side(name) == split]
  return [(name, found[name]) for name in sorted(names, key=_hash)]


def _side(name: str) -> str:
  parts = [p for p in name.split('.') if p != '__init__']
  return 'test' if _hash('.'.join(parts[-2:])) < _TEST_SHARE * 2**64 else 'train'


def _hash(name: str) -> int:
  return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')


def _functions(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Docstring and code of every function of a file that makes a good pair."""
  try:
    if path.stat().st_size > _MAX_FILE:
      return
    text = path.read_text('utf-8')
    if not _DOCSTRING.search(text):
      return
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # old escapes in other people's files
      tree = ast.parse(text)
  except (OSError, SyntaxError, ValueError, RecursionError):
    return  # not readable by this Python, so no example of it
  lines = text.splitlines()
  for node in _definitions(tree):
    doc = _summary(node)
    code = _code(node, lines) if doc else ''
    if code:
      yield doc, code


def _definitions(node):
  """Functions of a module and of its classes, in order, none inside another."""
  for child in node.body:
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
      yield child
    elif isinstance(child, ast.ClassDef):
      yield from _definitions(child)


def _summary(node) -> str:
  """The docstring's first paragraph as one line, '' if it says too little."""
  if node.name.startswith(('test', '__')):
    return ''
  doc = ast.get_docstring(node) or ''
  first = ' '.join(doc.split('\n\n')[0].split())
  words = re.findall(r'[A-Za-z]{2,}', first)
  if not _WORDS[0] <= len(words) <= _WORDS[1] or first.startswith(('>>>', ':')):
    return ''
  return first


def _code(node, lines: list[str]) -> str:
  """The function's source without its docstring, '' if little or too much is left."""
  doc = node.body[0]
  if len(node.body) == 1 or doc.lineno == node.lineno:
    return ''
  kept = lines[node.lineno - 1:doc.lineno - 1] + lines[doc.end_lineno:node.end_lineno]
  kept = [line.rstrip() for line in kept if line.strip()]
  code = textwrap.dedent('\n'.join(kept))
  if not _LINES[0] <= len(kept) <= _LINES[1] or len(code) > _MAX_CHARS:
    return ''
  if len(node.body) == 2 and isinstance(node.body[1], ast.Pass | ast.Raise):
    return ''  # abstract
  return code
