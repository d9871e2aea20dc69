"""Corpus encoding: a file of texts to vectors on disk, resumable.

Every row is read and checked before the first is encoded. Vectors go part by part
into a vector store, or a single file, that the same call continues (jaxembed/store).
"""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import itertools
import os
import pathlib
from typing import Any
import warnings

import numpy as np
from tqdm import tqdm

from jaxembed import store
from jaxembed.data import text_rows
from jaxembed.embedder import Embedder
from jaxembed.files import place, vector_file
from jaxembed.store import codes

_PART = 16384  # rows between two notes of progress
# What a folder is not called: somebody meant a file.
_FILES = ('.npz', '.bin', '.pt', '.safetensors', '.h5', '.csv', '.txt', '.jsonl')


@place.remote(reads=('source',), writes=('target',))
def encode_file(embedder: Embedder, source: str | os.PathLike,
                target: str | os.PathLike, *, field: str = 'text',
                id_field: str | None = None,
                prompt: str | None = None, prompt_name: str | None = None,
                batch_size: int = 32, normalize: bool = False,
                truncate_dim: int | None = None, dtype: str = 'float32',
                overwrite: bool = False, reuse: bool = False, part: int = _PART,
                shard_rows: int = store.SHARD_ROWS, host: tuple[int, int] = (0, 1)
                ) -> np.ndarray | store.VectorStore | None:
  """Vectors of a file's texts, in its order, on disk.

  A read-only map [n, d] of `target` if that ends in .npy; otherwise a vector store
  (jaxembed/store), or None while other hosts' shards are missing. The same call
  continues after a kill at any moment, and nothing that is on the disk is encoded
  again: the bytes are those of an uninterrupted call.

  Args:
    source: a text per line, or JSON objects per line (.jsonl, blank lines left out),
      maybe gzipped.
    target: .npy file to make, or folder of a vector store.
    field: which field of the JSON objects is the text.
    id_field: which is its id, kept in a store; None: _id or id if the first has one.
    prompt, prompt_name: put in front of every text, as in Embedder.encode: the text
      itself, or the name of a prompt of the model ('document' for a corpus).
    normalize: to length 1, whatever the model's modules say.
    dtype: float32, or float16 for half the disk; in a store also bfloat16, int8
      (a scale per row) and binary (a bit per dimension).
    overwrite: replace a finished target, and drop unfinished work of another
      model, input or setting.
    reuse: a finished store of this very work is returned as it is.
    part: rows between two notes of progress.
    shard_rows: rows of each file of a store.
    host: (which, of how many) hosts fill a store together, each calling this.

  Other arguments are those of Embedder.encode.

  Raises:
    BlockingIOError: another process writes this target.
    FileExistsError: target is finished already.
    ValueError: a row without a text (before any is encoded), unfinished work that
      does not match, or a vector that `dtype` cannot hold.
    OSError: no room on the disk; what is done is kept.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  single = target.suffix == '.npy'
  _check(target, field, batch_size, part, dtype, overwrite or reuse, host)
  try:
    width = embedder.width(truncate_dim)
    prompt = embedder.prompt_text(prompt_name, prompt)
  except ValueError as error:
    raise ValueError(f'target {target}: {error}') from None
  id_field = '' if single else text_rows.id_field(source, id_field)
  count, digest = _fingerprint(source, field, id_field)
  work = {'texts': count, 'sha256': digest, 'field': field, 'prompt': prompt,
          'model': embedder.vector_fingerprint(), 'width': width,
          'normalize': bool(normalize), 'dtype': dtype}
  if reuse and target.exists():
    return _reused(target, work | {'id_field': id_field})
  if single:
    writer = store.SingleFile(target, work, count, width, dtype, overwrite=overwrite)
  else:
    writer = store.Writer(target, work | {'id_field': id_field}, count, width, dtype,
                          shard_rows=shard_rows, host=host, overwrite=overwrite)

  def encode(texts_: list[str]) -> np.ndarray:
    return embedder.encode(
        texts_, prompt=prompt, batch_size=batch_size, truncate_dim=width,
        normalize_embeddings=bool(normalize), show_progress_bar=False)

  with writer:
    rows = text_rows.rows(source, field, id_field=id_field)
    cut, empty = fill(writer, embedder, encode, rows, part)
    whole = writer.finish()
  if cut or empty:
    warnings.warn(
        f'{source}: of the texts encoded now, {cut} were cut at '
        f'{embedder.max_seq_length} tokens and {empty} left no token to pool and have '
        'the vector of an empty text', stacklevel=2)
  if single:
    return np.load(target, mmap_mode='r')
  return store.open(target) if whole else None


def _reused(target: pathlib.Path, work: dict[str, Any]) -> store.VectorStore:
  found = store.open(target)
  if found.work != work:
    vector_file.refuse_other(f'{target} holds vectors', found.work, work)
  return found


def fill(writer: store.Writer | store.SingleFile, embedder: Embedder,
         encode: Callable[[list[str]], np.ndarray], rows: Iterator[text_rows.Text],
         part: int = _PART) -> tuple[int, int]:
  """Encodes what `writer` lacks of `rows`; returns (texts cut, texts left empty).

  The shapes that batches are padded to depend on those before them in their shard
  alone, whatever was encoded before and by whom.
  """
  cut = empty = at = 0
  compiled = set(embedder.shapes)
  with tqdm(total=writer.rows, unit='text', disable=None) as bar:
    for shard in writer.shards():
      _skip(rows, shard.first - at)
      ids = [row.id for row in itertools.islice(rows, shard.done)]
      bar.update(shard.first - at + shard.done)
      embedder.shapes = {tuple(shape) for shape in shard.note or ()}
      while batch := list(itertools.islice(rows, min(part, shard.rows - shard.done))):
        with warnings.catch_warnings():
          warnings.filterwarnings('ignore', '.* texts (are longer|leave no token)')
          vectors = encode([row.text for row in batch])
        compiled |= embedder.shapes
        shard.append(_stored(vectors, writer.dtype, batch),
                     note=sorted(embedder.shapes))
        ids += [row.id for row in batch]
        cut += embedder.report.truncated
        empty += embedder.report.empty
        bar.update(len(batch))
      shard.finish(ids if any(ids) else None)
      at = shard.first + shard.rows
  embedder.shapes = compiled
  return cut, empty


def encode_like(stored: store.VectorStore, embedder: Embedder, texts: list[str],
                batch_size: int = 32) -> np.ndarray:
  """Vectors of other texts, made as those of a store of `encode_file` were.  [n,d]"""
  return embedder.encode(
      texts, prompt=stored.work['prompt'], batch_size=batch_size,
      truncate_dim=stored.width, show_progress_bar=False,
      normalize_embeddings=stored.work['normalize'])


def read_texts(source: str | os.PathLike, field: str = 'text') -> Iterator[str]:
  """Yields the texts of a .txt or .jsonl file, either maybe gzipped.

  Raises:
    ValueError: a row without a text under `field`; names file, line and field.
  """
  return (row.text for row in text_rows.rows(pathlib.Path(source), field))


def _skip(rows: Iterator[text_rows.Text], count: int) -> None:
  next(itertools.islice(rows, count, count), None)


def _check(target: pathlib.Path, field, batch_size, part, dtype: str, overwrite: bool,
           host: tuple[int, int]):
  single = target.suffix == '.npy'
  if not single and target.suffix in _FILES:
    raise ValueError(f'target {target} must end in .npy, or be a folder for a vector '
                     'store')
  if single and dtype in ('bfloat16', 'int8', 'binary'):
    raise ValueError(f'dtype {dtype!r} is not stored in a .npy file; choose float32 or '
                     'float16, or a folder for a vector store')
  codes.check(dtype)
  if single and host[1] > 1:
    raise ValueError(f'target {target}: several hosts fill the folder of a vector '
                     'store, not one .npy file')
  if not isinstance(field, str) or not field:
    raise ValueError(f'field is {field!r}; name the JSON field that is the text')
  for name, value in (('part', part), ('batch_size', batch_size)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} is {value!r}; it is a whole number from 1 on')
  if not single:
    store.check_free(target, overwrite)
    return
  if target.is_dir():
    raise IsADirectoryError(f'target {target} is a folder; choose another')
  if target.exists() and not overwrite:
    raise FileExistsError(f'{target} exists and is complete; load it with '
                          'numpy.load(mmap_mode="r"), or overwrite it')


def _fingerprint(source: pathlib.Path, field: str, id_field: str = ''
                 ) -> tuple[int, str]:
  """(rows, sha256 of the lines), once every row has been found to hold a text."""
  digest = hashlib.sha256()
  count = sum(1 for _ in text_rows.rows(source, field, digest, id_field))
  if not count:
    raise ValueError(f'{source} is empty; there is nothing to encode')
  return count, digest.hexdigest()


def _stored(vectors: np.ndarray, dtype: str, batch: Sequence[text_rows.Text]
            ) -> np.ndarray:
  """`vectors` as they are stored; refuses what is not finite."""
  with np.errstate(over='ignore', invalid='ignore'):
    stored = codes.encode(vectors, dtype)
  real = np.asarray(np.isfinite(vectors).all(-1))
  bad = np.flatnonzero(~(real & codes.finite(stored, dtype)))
  if bad.size:
    where = batch[bad[0]].where
    if real[bad[0]]:
      raise ValueError(f'{where}: its vector is beyond {dtype}; store float32, or '
                       'normalize')
    raise ValueError(f'{where}: its vector is not finite; the model cannot encode this '
                     'text')
  return stored
