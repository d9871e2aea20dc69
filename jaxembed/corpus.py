"""A file of texts to a memory-mapped matrix of vectors, surviving any kill.

Vectors go straight into TARGET.partial, an ordinary .npy file of the final size.
After every part TARGET.progress.json says how many rows are safely on disk, and
for which texts, model and settings; the same call continues there. The last step
renames the file: a TARGET that exists is complete.
"""

from collections.abc import Iterator
import gzip
import hashlib
import itertools
import json
import os
import pathlib

import numpy as np
from tqdm import tqdm

from jaxembed import checkpoint, workdir
from jaxembed.embedder import Embedder

_PART = 16384  # rows between two notes of progress


def encode_file(embedder: Embedder, source: str | os.PathLike,
                target: str | os.PathLike, *, field: str = 'text',
                prompt: str = '', batch_size: int = 32, normalize: bool = True,
                truncate_dim: int | None = None, dtype: str = 'float32',
                overwrite: bool = False, part: int = _PART) -> np.ndarray:
  """Vectors of a file's texts, in its order: a read-only map [n, d] of `target`.

  Args:
    source: a text per line, or JSON objects per line (.jsonl), maybe gzipped.
    target: .npy file to make.
    field: which field of the JSON objects is the text.
    prompt: put in front of every text.
    dtype: float32, or float16 for half the disk.
    overwrite: replace a finished target, and drop unfinished work of another
      model, input or setting.
    part: rows between two notes of progress.

  Other arguments are those of Embedder.encode.

  Raises:
    FileExistsError: target is finished already.
    ValueError: a row without a text, or unfinished work that does not match.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if target.suffix != '.npy':
    raise ValueError(f'target {target} must end in .npy')
  if dtype not in ('float32', 'float16'):
    raise ValueError(f'dtype {dtype!r} is not stored; choose float32 or float16')
  if target.exists() and not overwrite:
    raise FileExistsError(f'{target} exists and is complete; load it with '
                          'numpy.load(mmap_mode="r"), or overwrite it')
  width = truncate_dim or embedder.embedding_dim
  count, digest = _fingerprint(source)
  work = {'texts': count, 'sha256': digest, 'field': field, 'prompt': prompt,
          'model': checkpoint.fingerprint(embedder.params), 'width': width,
          'normalize': normalize, 'dtype': dtype}
  partial, progress = _beside(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  done = _resume(partial, progress, work, overwrite)
  vectors = np.lib.format.open_memmap(
      partial, mode='r+' if done else 'w+', dtype=dtype, shape=(count, width))
  rows = itertools.islice(read_texts(source, field), done, None)
  with tqdm(total=count, initial=done, unit='text', disable=None) as bar:
    for batch in _batched(rows, part):
      vectors[done:done + len(batch)] = embedder.encode(
          batch, prompt=prompt, batch_size=batch_size, normalize=normalize,
          truncate_dim=truncate_dim, show_progress_bar=False)
      vectors.flush()
      done += len(batch)
      workdir.write_json(progress, work | {'done': done})
      bar.update(len(batch))
  partial.replace(target)
  progress.unlink(missing_ok=True)
  return np.load(target, mmap_mode='r')


def read_texts(source: str | os.PathLike, field: str = 'text') -> Iterator[str]:
  """Yields the texts of a .txt or .jsonl file, either maybe gzipped.

  Raises:
    ValueError: a JSON row without a string under `field`; names file and line.
  """
  source = pathlib.Path(source)
  is_json = '.jsonl' in source.suffixes
  with _open(source) as lines:
    for number, line in enumerate(lines, 1):
      line = line.decode('utf-8').rstrip('\r\n')
      yield _text(line, field, f'{source}:{number}') if is_json else line


def _text(line: str, field: str, where: str) -> str:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as e:
    raise ValueError(f'{where}: not a JSON object ({e}); one object per line') from e
  text = row.get(field) if isinstance(row, dict) else None
  if not isinstance(text, str):
    keys = sorted(row) if isinstance(row, dict) else type(row).__name__
    raise ValueError(f'{where}: field {field!r} holds no text; the row has {keys}')
  return text


def _open(source: pathlib.Path):
  return gzip.open(source) if source.suffix == '.gz' else source.open('rb')


def _fingerprint(source: pathlib.Path) -> tuple[int, str]:
  """(rows, sha256 of the content) in one pass."""
  count, digest = 0, hashlib.sha256()
  with _open(source) as lines:
    for line in lines:
      count += 1
      digest.update(line)
  if not count:
    raise ValueError(f'{source} is empty; there is nothing to encode')
  return count, digest.hexdigest()


def _beside(target: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  return (target.with_name(target.name + '.partial'),
          target.with_name(target.name + '.progress.json'))


def _resume(partial, progress, work: dict, overwrite: bool) -> int:
  """How many rows of this very work are on disk."""
  if not (partial.exists() and progress.exists()):
    return 0
  stored = json.loads(progress.read_text())
  done = stored.pop('done')
  if stored == work:
    return done
  if overwrite:
    return 0
  differ = [f'{k} was {stored.get(k)!r}, is {v!r}' for k, v in work.items()
            if stored.get(k) != v]
  raise ValueError(
      f'{partial} holds {done} rows of other work: {"; ".join(differ)}. Call with '
      'the same settings to continue it, overwrite, or choose another target')


def _batched(rows: Iterator[str], size: int) -> Iterator[list[str]]:
  while batch := list(itertools.islice(rows, size)):
    yield batch
