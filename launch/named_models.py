"""Models that a flag names as PATH or NAME=PATH, opened when they are needed."""

from collections.abc import Callable
import pathlib

from jaxembed import sharding
from jaxembed.embedder import Embedder


def opened_later(model: str) -> tuple[str, Callable[[], Embedder]]:
  """(name, function that opens it); without a name, the last part of its path."""
  name, equals, path = model.partition('=')
  path = path if equals else name

  def load() -> Embedder:
    return Embedder.load(path, mesh=sharding.mesh_of_several())

  return (name if equals else pathlib.PurePath(path).name), load
