"""What the API reference shows: every public name says what it is."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def _public(body):
  """Functions and classes, with their methods, that are offered to others."""
  for node in body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    set_by = [d for d in node.decorator_list
              if isinstance(d, ast.Attribute) and d.attr == 'setter']
    if node.name.startswith('_') or set_by:
      continue
    yield node
    if isinstance(node, ast.ClassDef):
      yield from _public(node.body)


def test_public_names_are_described():
  lacking = []
  for path in sorted((ROOT / 'jaxembed').rglob('*.py')):
    module = ast.parse(path.read_text())
    lacking += [f'{path.relative_to(ROOT)}: {getattr(node, "name", "the module")}'
                for node in (module, *_public(module.body))
                if not ast.get_docstring(node)]
  assert not lacking, 'say what they are: ' + ', '.join(lacking)
