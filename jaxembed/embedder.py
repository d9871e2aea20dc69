"""The user's object: texts in, vectors out."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import os
import warnings

import jax
import numpy as np
from tqdm import tqdm

from jaxembed import bundle, sharding, types
from jaxembed.bundle import Bundle
from jaxembed.data import tokenise
from jaxembed.data.length_batches import length_batches, padding_share
from jaxembed.models import encoder

# Texts tokenised, sorted and batched at a time: enough for near-perfect batches,
# little enough that the host keeps ahead of the device in bounded memory.
_CHUNK = 16384
# Batches handed to the device before the oldest result is waited for.
_IN_FLIGHT = 8
_DOCUMENT_PROMPTS = ('document', 'passage', 'corpus')

_encode = jax.jit(encoder.encode, static_argnames='cfg')


@dataclasses.dataclass(frozen=True)
class EncodeReport:
  """What the last call of `encode` did."""

  texts: int
  tokens: int
  truncated: int  # texts cut to the model's max_length
  padding: float  # share of the computed tokens that were padding
  shapes: tuple[tuple[int, int], ...]  # (rows, tokens), each compiled once


class Embedder:
  """A model with its tokenizer and prompts.

  Attributes:
    cfg: its ModelConfig; `cfg.max_length` is where texts are cut.
    prompts: texts to put in front, by name.
    default_prompt_name: which of them `encode` uses when told nothing.
    similarity_fn_name: cosine, dot, euclidean or manhattan.
    bundle: the model as it was opened (jaxembed/bundle.py).
    folder: where the backbone's config.json lies; None for parts put together.
    report: EncodeReport of the last `encode`; None before.
  """

  def __init__(self, model: Bundle, *, mesh=None,
               tokenizer: tokenise.Tokenizer | None = None):
    """Takes a model; `load` opens one from a folder.

    Args:
      mesh: shares rows over its devices (sharding.make_mesh()); the parameters must
        live there. None: one device.
      tokenizer: instead of the one in the model's folder.

    Raises:
      FileNotFoundError: the model has no tokenizer, and none is given.
      ValueError: a tokenizer of another model.
    """
    tokenizer = tokenizer or model.load_tokenizer()
    tokenizer.check_table(model.cfg.backbone.vocab_size)
    self.bundle, self.tokenizer, self.mesh = model, tokenizer, mesh
    self.params, self.cfg = model.params, model.cfg
    self.prompts = dict(model.prompts)
    self.default_prompt_name = model.default_prompt_name
    self.similarity_fn_name = model.similarity_fn_name
    self.folder = model.config_folder
    self.report: EncodeReport | None = None
    self._shapes: set[tuple[int, int]] = set()

  @classmethod
  def load(cls, path: str | os.PathLike, *, mesh=None,
           dtype: str | None = None) -> 'Embedder':
    """Reads a jaxembed workdir, or the folder of a sentence-transformers model, a
    Hugging Face model or a PEFT adapter.

    A name that is no folder is looked up on the Hugging Face hub. `dtype`
    (float32, bfloat16 or float16) is that of parameters and activations; None
    keeps a workdir's own, and means float32 for a folder. NV-Embed folders bring
    their own rules for the end of a text and for instructions.

    Raises:
      FileNotFoundError: neither of these.
      ValueError: tensors missing, left over or mis-shaped, or a tokenizer of
        another model.
    """
    return cls(bundle.open(path, mesh=mesh, dtype=dtype), mesh=mesh)

  @property
  def embedding_dim(self) -> int:
    """E, the width of what `encode` returns without truncate_dim."""
    return self.cfg.embedding_dim

  def encode(self, inputs: str | Sequence[str], prompt_name: str | None = None,
             prompt: str | None = None, batch_size: int = 32, *,
             normalize: bool = True, truncate_dim: int | None = None,
             show_progress_bar: bool | None = None) -> np.ndarray:
    """One vector per text, in input order: float32 [n, d]; [d] for a single str.

    Texts longer than cfg.max_length tokens are cut there, with a warning that
    counts them. The vector of a text does not depend on its neighbours beyond
    float32 rounding.

    Args:
      inputs: a text or a sequence of texts.
      prompt_name: key of `prompts`, put in front of every text.
      prompt: the same, spelt out; beats `prompt_name`, which beats the default.
      batch_size: texts of about 64 tokens per step over all devices; batches of
        shorter texts are taller and of longer ones flatter.
      normalize: to length 1. False gives the pooled vector as it is.
      truncate_dim: keep the first so many dimensions (before normalising).
      show_progress_bar: None shows one on a terminal once it takes seconds.

    Raises:
      TypeError: an input that is not a string.
      ValueError: an unknown prompt_name, a truncate_dim outside 1 to d, or a text
        that leaves nothing to pool.
    """
    single = isinstance(inputs, str)
    texts = [inputs] if single else _as_list(inputs)
    prompt = self._prompt(prompt_name, prompt)
    dim = self.embedding_dim if truncate_dim is None else truncate_dim
    if not 1 <= dim <= self.embedding_dim:
      raise ValueError(f'truncate_dim is {dim}, but the model gives '
                       f'{self.embedding_dim} dimensions; choose 1 to that')
    vectors = np.empty((len(texts), dim), np.float32)
    quiet = None if show_progress_bar is None else not show_progress_bar
    with tqdm(total=len(texts), unit='text', desc='encode', disable=quiet,
              delay=3 if show_progress_bar is None else 0) as bar:
      for rows, found in self._run(texts, prompt, batch_size):
        found = np.asarray(found)[:len(rows), :dim]
        vectors[rows] = unit(found) if normalize else found
        bar.update(len(rows))
    if self.report.truncated:
      warnings.warn(
          f'{self.report.truncated} of {len(texts)} texts are longer than '
          f'{self.cfg.max_length} tokens and were cut there; split them, or raise '
          'max_length if the model allows it', stacklevel=2)
    return vectors[0] if single else vectors

  def encode_query(self, inputs: str | Sequence[str],
                   prompt_name: str | None = None, **kwargs) -> np.ndarray:
    """`encode` with the prompt called 'query', where there is one."""
    if prompt_name is None and 'query' in self.prompts:
      prompt_name = 'query'
    return self.encode(inputs, prompt_name, **kwargs)

  def encode_document(self, inputs: str | Sequence[str],
                      prompt_name: str | None = None, **kwargs) -> np.ndarray:
    """`encode` with the prompt 'document', else 'passage', else 'corpus'."""
    if prompt_name is None:
      prompt_name = next((p for p in _DOCUMENT_PROMPTS if p in self.prompts), None)
    return self.encode(inputs, prompt_name, **kwargs)

  def similarity(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Of every pair, more is nearer.  a [n,d], b [m,d] -> [n,m] float32."""
    a, b = _matrix(a), _matrix(b)
    if self.similarity_fn_name == 'cosine':
      return unit(a) @ unit(b).T
    if self.similarity_fn_name == 'dot':
      return a @ b.T
    return np.stack([self._pairwise(row[None], b) for row in a])

  def similarity_pairwise(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Row by row.  a, b [n,d] -> [n] float32."""
    a, b = _matrix(a), _matrix(b)
    if a.shape != b.shape:
      raise ValueError(f'rows are compared one to one, but {a.shape} is not {b.shape}')
    return self._pairwise(a, b)

  def _pairwise(self, a, b):
    if self.similarity_fn_name == 'manhattan':
      return -np.abs(a - b).sum(-1)
    if self.similarity_fn_name == 'euclidean':
      return -np.linalg.norm(a - b, axis=-1)
    if self.similarity_fn_name == 'cosine':
      a, b = unit(a), unit(b)
    return np.einsum('ND,ND->N', a, b)

  def _prompt(self, name: str | None, prompt: str | None) -> str:
    """The prompt to put in front; '' for none."""
    if prompt is not None:
      return prompt
    name = self.default_prompt_name if name is None else name
    if name is None:
      return ''
    if name not in self.prompts:
      raise ValueError(f'prompt {name!r} is unknown; this model has '
                       f'{sorted(self.prompts) or "no prompts"}. Give the text itself '
                       'as prompt=')
    return self.prompts[name]

  def _run(self, texts: list[str], prompt: str, batch_size: int):
    """Yields (rows, their vectors, still on the device, padded at the end)."""
    cfg = dataclasses.replace(self.cfg, normalize=False)
    pending = collections.deque()
    tally = _Tally()
    for start in range(0, len(texts), _CHUNK):
      ragged = self.tokenizer.encode(
          texts[start:start + _CHUNK], prompt, max_length=cfg.max_length)
      plan = length_batches(
          ragged.lengths, batch_size, cfg.max_length, known=self._shapes,
          row_multiple=self._row_multiple)
      tally.add(ragged, plan)
      for rows, height, length in plan:
        self._shapes.add((height, length))
        tokens = self.tokenizer.pad(ragged.take(rows), length, rows=height)
        pending.append((start + rows, self._dispatch(cfg, tokens)))
        if len(pending) > _IN_FLIGHT:
          yield pending.popleft()
    self.report = tally.report(len(texts))
    yield from pending

  @property
  def _row_multiple(self) -> int:
    if self.mesh is None:
      return 1
    return int(np.prod([self.mesh.shape[axis] for axis in sharding.BATCH]))

  def _dispatch(self, cfg, tokens: types.Tokens) -> jax.Array:
    """Starts one batch; returns at once."""
    if self.mesh is None:
      return _encode(self.params, cfg=cfg, tokens=tokens)
    rows = jax.NamedSharding(self.mesh, jax.P(sharding.BATCH, None))
    with jax.set_mesh(self.mesh):
      return _encode(self.params, cfg=cfg, tokens=jax.device_put(tokens, rows))


class _Tally:
  """Sums over the chunks of one call."""

  def __init__(self):
    self.lengths, self.plan, self.truncated = [], [], 0

  def add(self, ragged: tokenise.Ragged, plan):
    self.lengths.append(ragged.lengths)
    self.plan += plan
    self.truncated += int(ragged.truncated.sum())

  def report(self, texts: int) -> EncodeReport:
    lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, int)
    return EncodeReport(
        texts=texts, tokens=int(lengths.sum()), truncated=self.truncated,
        padding=padding_share(lengths, self.plan),
        shapes=tuple(sorted({(rows, length) for _, rows, length in self.plan})))


def unit(x: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1; a zero row stays zero.  [n,d] -> [n,d]."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _as_list(inputs) -> list[str]:
  if isinstance(inputs, bytes | Mapping) or not hasattr(inputs, '__iter__'):
    raise TypeError(f'inputs is {type(inputs).__name__}; give a str or a list of str')
  return list(inputs)


def _matrix(x) -> np.ndarray:
  return np.atleast_2d(np.asarray(x, np.float32))
