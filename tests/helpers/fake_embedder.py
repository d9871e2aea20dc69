"""A model whose vectors are functions of the text, for tests of what uses them."""

import dataclasses
import zlib

import numpy as np


@dataclasses.dataclass
class Report:
  truncated: int = 0
  empty: int = 0


class Fake:
  """Stands for an Embedder: unit vectors by `vector`, and counts what it encodes."""

  similarity_fn_name, max_seq_length, mesh = 'cosine', 64, None
  report = Report()

  def __init__(self, vector=None, width=16, name='fake', dies_after=None):
    self._vector = vector or (lambda text: random_vector(text, width))
    self._width, self._name = width, name
    self.shapes, self.encoded, self.dies_after = set(), [], dies_after

  def width(self, truncate_dim=None):
    return truncate_dim or self._width

  def prompt_text(self, name, prompt):
    return prompt or ''

  def vector_fingerprint(self):
    return self._name

  def encode(self, texts, prompt='', **_):
    if self.dies_after is not None and len(self.encoded) >= self.dies_after:
      raise KeyboardInterrupt
    self.encoded += texts
    x = np.stack([self._vector(prompt + t) for t in texts]).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_vector(text, width=16):
  return np.random.default_rng(zlib.crc32(text.encode())).normal(size=width)
