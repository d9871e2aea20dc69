"""Documented functions of Python's standard library, as texts for a search."""

import ast
from collections.abc import Iterator
import dataclasses
import pathlib
import sysconfig
import warnings

_SKIPPED = {'test', 'tests', 'idlelib', 'lib2to3', 'tkinter', 'turtledemo', 'ensurepip',
            'site-packages', 'dist-packages', 'encodings', 'pydoc_data', 'distutils'}
_MAX_FILE = 200_000  # bytes; larger ones are tables
_LEAST_WORDS = 4


@dataclasses.dataclass(frozen=True)
class Function:
  """A function: 'shutil.copytree', 'shutil.py:557', how it is called, what it does."""

  name: str
  where: str
  signature: str
  summary: str

  @property
  def text(self) -> str:
    """What is encoded: name and summary."""
    return f'{self.name}: {self.summary}'


def functions(root: pathlib.Path | None = None) -> list[Function]:
  """Public functions and methods with a docstring, by file; each summary once.

  root: where modules lie; default: the standard library of this Python.
  """
  root = root or pathlib.Path(sysconfig.get_paths()['stdlib'])
  found: dict[str, Function] = {}
  for file in sorted(root.rglob('*.py')):
    parts = file.relative_to(root).parts
    if (not _SKIPPED & set(parts) and file.stat().st_size <= _MAX_FILE
        and not any(p.startswith('_') for p in parts if p != '__init__.py')):
      for function in _read(file, parts):
        found.setdefault(function.summary, function)
  return list(found.values())


def _read(file: pathlib.Path, parts: tuple[str, ...]) -> Iterator[Function]:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # old escapes
    try:
      tree = ast.parse(file.read_text('utf-8'))
    except (SyntaxError, UnicodeDecodeError):
      return  # a file of another Python
  module = '.'.join(parts).removesuffix('.py').removesuffix('.__init__')
  yield from _inside(tree, module, '/'.join(parts))


def _inside(node: ast.AST, name: str, path: str) -> Iterator[Function]:
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.ClassDef) and not child.name.startswith('_'):
      yield from _inside(child, f'{name}.{child.name}', path)
    if not isinstance(child, ast.FunctionDef) or child.name.startswith('_'):
      continue
    summary = ' '.join((ast.get_docstring(child) or '').split('\n\n')[0].split())
    if len(summary.split()) >= _LEAST_WORDS:
      yield Function(f'{name}.{child.name}', f'{path}:{child.lineno}',
                     f'{child.name}({ast.unparse(child.args)})', summary)
