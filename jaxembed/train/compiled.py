"""Compiled programs of a run, kept in its workdir: the next start reads them."""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = 'compiled'


@contextlib.contextmanager
def kept(folder: pathlib.Path) -> Iterator[None]:
  """JAX's persistent compilation cache in folder/compiled; nothing where there is one
  already (jax_compilation_cache_dir, JAX_COMPILATION_CACHE_DIR)."""
  settings: Any = jax.config  # its type names no setting
  if settings.jax_compilation_cache_dir:
    yield
    return
  compilation_cache.reset_cache()  # it may have been found to be switched off
  jax.config.update('jax_compilation_cache_dir', str(folder / FOLDER))
  try:
    yield
  finally:
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()
