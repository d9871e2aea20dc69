"""Corpus encoding: a file of texts to a matrix of vectors on disk, resumable.

Every row is read and checked before the first is encoded. Vectors go part by part
into a file that the same call continues (jaxembed/files/vector_file.py).
"""

from collections.abc import Iterator
import gzip
import hashlib
import itertools
import os
import pathlib
import warnings
import zlib

import numpy as np
from tqdm import tqdm

from jaxembed import texts
from jaxembed.data import files
from jaxembed.embedder import Embedder
from jaxembed.files.vector_file import VectorFile

_PART = 16384  # rows between two notes of progress
_BOM = b'\xef\xbb\xbf'
_JSON = ('.jsonl', '.ndjson')
# Files whose lines are no texts.
_OTHERS = ('.json', '.csv', '.tsv', '.parquet', '.arrow', '.npy', '.npz', '.zip',
           '.zst', '.bz2', '.xz', '.xlsx', '.pdf')


def encode_file(embedder: Embedder, source: str | os.PathLike,
                target: str | os.PathLike, *, field: str = 'text',
                prompt: str | None = None, prompt_name: str | None = None,
                batch_size: int = 32, normalize: bool = False,
                truncate_dim: int | None = None, dtype: str = 'float32',
                overwrite: bool = False, part: int = _PART) -> np.ndarray:
  """Vectors of a file's texts, in its order: a read-only map [n, d] of `target`.

  Args:
    source: a text per line, or JSON objects per line (.jsonl, blank lines left out),
      maybe gzipped.
    target: .npy file to make.
    field: which field of the JSON objects is the text.
    prompt, prompt_name: put in front of every text, as in Embedder.encode: the text
      itself, or the name of a prompt of the model ('document' for a corpus).
    normalize: to length 1, whatever the model's modules say.
    dtype: float32, or float16 for half the disk.
    overwrite: replace a finished target, and drop unfinished work of another
      model, input or setting.
    part: rows between two notes of progress.

  Other arguments are those of Embedder.encode.

  Raises:
    FileExistsError: target is finished already.
    ValueError: a row without a text (before any is encoded), unfinished work that
      does not match, or a vector that `dtype` cannot hold.
    OSError: no room on the disk; what is done is kept.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  _check(target, field, batch_size, part, dtype, overwrite)
  try:
    width = embedder.width(truncate_dim)
    prompt = embedder.prompt_text(prompt_name, prompt)
  except ValueError as error:
    raise ValueError(f'target {target}: {error}') from None
  count, digest = _fingerprint(source, field)
  work = {'texts': count, 'sha256': digest, 'field': field, 'prompt': prompt,
          'model': embedder.vector_fingerprint(), 'width': width,
          'normalize': bool(normalize), 'dtype': dtype}
  found = VectorFile(target, work, count, width, dtype)
  rows = itertools.islice(_rows(source, field), found.open(overwrite), None)
  cut = empty = 0
  with tqdm(total=count, initial=found.done, unit='text', disable=None) as bar:
    while batch := list(itertools.islice(rows, part)):
      with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.* texts (are longer|leave no token)')
        vectors = embedder.encode(
            [text for text, _ in batch], prompt=prompt, batch_size=batch_size,
            normalize_embeddings=bool(normalize), truncate_dim=width,
            show_progress_bar=False)
      found.append(_stored(vectors, dtype, batch))
      cut, empty = cut + embedder.report.truncated, empty + embedder.report.empty
      bar.update(len(batch))
  found.finish()
  if cut or empty:
    warnings.warn(
        f'{source}: of the texts encoded now, {cut} were cut at '
        f'{embedder.max_seq_length} tokens and {empty} left no token to pool and have '
        'the vector of an empty text', stacklevel=2)
  return np.load(target, mmap_mode='r')


def read_texts(source: str | os.PathLike, field: str = 'text') -> Iterator[str]:
  """Yields the texts of a .txt or .jsonl file, either maybe gzipped.

  Raises:
    ValueError: a row without a text under `field`; names file, line and field.
  """
  return (text for text, _ in _rows(pathlib.Path(source), field))


def _check(target: pathlib.Path, field, batch_size, part, dtype: str, overwrite: bool):
  if target.suffix != '.npy':
    raise ValueError(f'target {target} must end in .npy')
  if dtype not in ('float32', 'float16'):
    raise ValueError(f'dtype {dtype!r} is not stored; choose float32 or float16')
  if not isinstance(field, str) or not field:
    raise ValueError(f'field is {field!r}; name the JSON field that is the text')
  for name, value in (('part', part), ('batch_size', batch_size)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} is {value!r}; it is a whole number from 1 on')
  if target.is_dir():
    raise IsADirectoryError(f'target {target} is a folder; choose another')
  if target.exists() and not overwrite:
    raise FileExistsError(f'{target} exists and is complete; load it with '
                          'numpy.load(mmap_mode="r"), or overwrite it')


def _fingerprint(source: pathlib.Path, field: str) -> tuple[int, str]:
  """(rows, sha256 of the lines), once every row has been found to hold a text."""
  digest = hashlib.sha256()
  count = sum(1 for _ in _rows(source, field, digest))
  if not count:
    raise ValueError(f'{source} is empty; there is nothing to encode')
  return count, digest.hexdigest()


def _rows(source: pathlib.Path, field: str, digest=None) -> Iterator[tuple[str, str]]:
  """(text, 'file:line') of every row; its bytes go into `digest`."""
  suffixes = [s.lower() for s in source.suffixes]
  kind = next((s for s in reversed(suffixes) if s != '.gz'), '')
  if kind in _OTHERS:
    raise ValueError(f'{source}: {kind} files are not read; give a text per line '
                     '(.txt) or JSON objects per line (.jsonl)')
  for number, line in enumerate(_lines(source), 1):
    if digest is not None:
      digest.update(line)
    where = f'{source}:{number}'
    line = line.removeprefix(_BOM) if number == 1 else line
    try:
      text = line.decode('utf-8').rstrip('\r\n')
    except UnicodeDecodeError as error:
      raise ValueError(f'{where}: not UTF-8 ({error}); convert the file') from None
    if kind in _JSON:
      if text.strip():
        yield _field(text, field, where), where
    else:
      yield text, where


def _field(line: str, field: str, where: str) -> str:
  row = files.parse_json(line, where)
  text = row.get(field) if isinstance(row, dict) else None
  if not isinstance(text, str):
    keys = sorted(row) if isinstance(row, dict) else type(row).__name__
    raise ValueError(f'{where}: field {field!r} holds no text; the row has {keys}')
  texts.check_text(text, f'{where}: field {field!r}')
  return text


def _lines(source: pathlib.Path) -> Iterator[bytes]:
  with source.open('rb') as file:
    if source.suffix.lower() != '.gz' and file.peek(2)[:2] != b'\x1f\x8b':
      yield from file
      return
    try:
      with gzip.open(file) as unpacked:
        yield from unpacked
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(f'{source}: not a whole gzip file ({error}); copy it '
                       'again') from None


def _stored(vectors: np.ndarray, dtype: str, batch: list[tuple[str, str]]
            ) -> np.ndarray:
  """`vectors` as they are stored; refuses what is not finite."""
  with np.errstate(over='ignore'):
    stored = vectors.astype(dtype)
  bad = np.flatnonzero(~np.isfinite(stored).all(-1))
  if bad.size:
    where = batch[bad[0]][1]
    if np.isfinite(vectors[bad[0]]).all():
      raise ValueError(f'{where}: its vector is beyond {dtype}; store float32, or '
                       'normalize')
    raise ValueError(f'{where}: its vector is not finite; the model cannot encode this '
                     'text')
  return stored
