"""Settings of an Embedder: lengths, dimensions, prompts, similarity, fingerprints."""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxembed import (
  batch_runner,
  config,
  drop_in,
  fingerprint,
  memory as memory_forecast,
  similarity,
  texts,
  types,
)
from jaxembed.bundle import Bundle
from jaxembed.data import tokenise
from jaxembed.models import length

# What may be set beside the properties below.
_ATTRIBUTES = ('bundle', 'params', 'cfg', 'tokenizer', 'mesh', 'prompts',
               'default_prompt_name', 'folder', 'report', 'shapes')


def long_texts_checked(choice: str) -> str:
  """`choice`. Raises ValueError if it is none of batch_runner.LONG_TEXTS."""
  if choice not in batch_runner.LONG_TEXTS:
    raise ValueError(f'long_texts is {choice!r}; choose one of '
                     f'{", ".join(batch_runner.LONG_TEXTS)}')
  return choice


class Settings:
  """What `Embedder` has beside its calls; see there."""

  bundle: Bundle
  params: types.Params
  cfg: config.ModelConfig
  tokenizer: tokenise.Tokenizer
  mesh: jax.sharding.Mesh | None
  prompts: dict[str, str]
  default_prompt_name: str | None
  report: batch_runner.EncodeReport
  shapes: set[tuple[int, int]]

  @property
  def embedding_dim(self) -> int:
    """E, the width of what `encode` returns without truncate_dim."""
    return self.cfg.embedding_dim

  def get_embedding_dimension(self) -> int:
    """The width of what `encode` returns: E, or the attribute truncate_dim."""
    return self.truncate_dim or self.embedding_dim

  def width(self, truncate_dim: int | None = None) -> int:
    """The width of what `encode` returns with this truncate_dim.

    Raises:
      ValueError: it is outside 1 to E.
    """
    return (self.get_embedding_dimension() if truncate_dim is None else
            texts.check_dim(truncate_dim, self.embedding_dim))

  get_sentence_embedding_dimension = get_embedding_dimension  # its older name

  @property
  def max_seq_length(self) -> int:
    """The tokens of a text, specials included, beyond which it is cut."""
    return self.cfg.max_length

  @max_seq_length.setter
  def max_seq_length(self, tokens: int) -> None:
    texts.check_count('max_seq_length', tokens)
    table = length.longest(self.cfg)
    if table is not None and tokens > table:
      raise ValueError(f'max_seq_length is {tokens}, but the model has embeddings of '
                       f'{table} positions; choose {table} or less, encode with '
                       "long_texts='windows', or load with a length method (length=)")
    self.cfg = dataclasses.replace(self.cfg, max_length=int(tokens))
    self.memory.check()

  def get_max_seq_length(self) -> int:
    """The attribute max_seq_length, as a method."""
    return self.max_seq_length

  @property
  def truncate_dim(self) -> int | None:
    """The dimensions that `encode` keeps when not told; None: all."""
    return self._truncate_dim

  @truncate_dim.setter
  def truncate_dim(self, dim: int | None) -> None:
    self._truncate_dim = (
        None if dim is None else texts.check_dim(dim, self.embedding_dim))

  @contextlib.contextmanager
  def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
    """Sets `truncate_dim` for the body of a with statement."""
    before, self.truncate_dim = self.truncate_dim, truncate_dim
    try:
      yield
    finally:
      self.truncate_dim = before

  @property
  def similarity_fn_name(self) -> str:
    """cosine, dot, euclidean or manhattan."""
    return self._similarity_fn_name

  @similarity_fn_name.setter
  def similarity_fn_name(self, name: str | None) -> None:
    self._similarity_fn_name = similarity.checked(
        'cosine' if name is None else name)

  @property
  def long_texts(self) -> str:
    """What `encode` does with longer texts: 'cut' them, or average 'windows'."""
    return self._long_texts

  @long_texts.setter
  def long_texts(self, choice: str) -> None:
    self._long_texts = long_texts_checked(choice)

  @property
  def memory(self) -> memory_forecast.Forecast:
    """What encoding needs of the device, and how many texts of a length fit a step."""
    return memory_forecast.forecast(self.cfg, self.params, mesh=self.mesh)

  @property
  def device(self) -> str:
    """Where the model computes, as torch names it: cpu, cuda or tpu."""
    leaf = jax.tree.leaves(self.params)[0]
    platform = next(iter(leaf.devices())).platform
    return 'cuda' if platform == 'gpu' else platform

  def similarity(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Similarity of every pair, more is nearer.  a [n,d], b [m,d] -> [n,m] float32."""
    return similarity.matrix(self.similarity_fn_name, a, b)

  def similarity_pairwise(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Similarity row by row.  a, b [n,d] -> [n] float32; of two [d] a number."""
    return similarity.pairwise(self.similarity_fn_name, a, b)

  def fingerprint(self) -> str:
    """Digest of all that vectors and scores depend on: weights, settings, tokenizer,
    prompts."""
    return fingerprint.of_settings({
        'vectors': self.vector_fingerprint(), 'prompts': self.prompts,
        'default': self.default_prompt_name, 'truncate_dim': self.truncate_dim,
        'similarity': self.similarity_fn_name})

  def vector_fingerprint(self) -> str:
    """Digest of what the vector of a prompted text depends on."""
    cfg = dataclasses.asdict(self.cfg)
    # How, not what; vectors stored before these were fields have the same digest.
    del cfg['attention_impl'], cfg['pooling']['impl']
    if cfg['length'] is None:  # nor was this one a field
      del cfg['length']
    if self.long_texts != 'cut':
      cfg['long_texts'] = self.long_texts
    return fingerprint.of_settings({
        'params': fingerprint.of_params(self.params), 'cfg': cfg,
        'tokenizer': self.tokenizer.digest()})

  if not TYPE_CHECKING:  # to a checker, they would make every misspelt name right
    def __setattr__(self, name: str, value) -> None:
      if not (name.startswith('_') or name in _ATTRIBUTES or hasattr(type(self), name)):
        raise AttributeError(
            f'an Embedder has no attribute {name!r}, so setting it would change '
            f'nothing{drop_in.nearest(name, dir(self))}')
      object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
      instead = drop_in.ELSEWHERE.get(name)
      raise AttributeError(f'an Embedder has no {name!r}' + (
          f': {instead}' if instead else drop_in.nearest(name, dir(self))))

  def prompt_text(self, name: str | None, prompt: str | None) -> str:
    """The text that `encode` puts in front for these arguments; '' for none."""
    if prompt is not None:
      texts.check_text(prompt, 'the prompt')
      return prompt
    name = self.default_prompt_name if name is None else name
    if name is None:
      return ''
    # sentence-transformers knows these two in every model.
    if name not in self.prompts and name not in ('query', 'document'):
      raise ValueError(f'prompt {name!r} is unknown; this model has '
                       f'{sorted(self.prompts) or "no prompts"}. Give the text itself '
                       'as prompt=')
    return self.prompts.get(name) or ''
