"""The front door opens every room it names, and nothing before it is asked."""

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
