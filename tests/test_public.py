"""The front door opens every room it names, and nothing before it is asked."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxembed


@pytest.mark.parametrize('name', jaxembed.__all__)
def test_public_names_exist(name):
  assert callable(getattr(jaxembed, name))


def test_unknown_name_says_what_there_is():
  with pytest.raises(AttributeError, match="no 'Embeder'; it has .*Embedder"):
    _ = jaxembed.Embeder


def test_importing_the_package_loads_no_jax():
  code = 'import jaxembed, sys; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_checkers_see_the_names_that_are_loaded_lazily():
  """What is imported for type checkers alone is what the names lead to."""
  tree = ast.parse(pathlib.Path(jaxembed.__file__).read_text())
  block = next(n for n in tree.body if isinstance(n, ast.If))
  seen = {alias.name: node.module for node in block.body
          if isinstance(node, ast.ImportFrom) for alias in node.names}
  assert seen == jaxembed._PUBLIC
  assert sorted(seen) == sorted(jaxembed.__all__)


def test_an_embedder_shows_checkers_no_attribute_that_it_has_not():
  """A __getattr__ that they see would make every misspelt method right to them."""
  tree = ast.parse((pathlib.Path(jaxembed.__file__).parent / 'embedder.py').read_text())
  cls = next(n for n in tree.body if isinstance(n, ast.ClassDef))
  assert '__getattr__' not in [n.name for n in cls.body
                               if isinstance(n, ast.FunctionDef)]
