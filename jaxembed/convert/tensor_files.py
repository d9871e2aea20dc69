"""Reading and writing safetensors, one tensor (or some rows of one) at a time.

Files are read with plain positioned reads: no page of a mapped file stays
resident, so loading costs the memory of what is kept. Every length and offset of
the header is checked before a byte is trusted.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16), 'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype(np.int64), 'I32': np.dtype(np.int32),
    'I16': np.dtype(np.int16), 'I8': np.dtype(np.int8), 'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The format's own limit on its JSON header.
_MAX_HEADER = 100_000_000
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'


class BadCheckpoint(ValueError):
  """Weights that cannot be used; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies."""

  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # byte in the file

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

  def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Rows first:last along axis 0; the whole tensor by default."""
    if not self.shape:
      return self._read(self.start, ())
    last = self.shape[0] if last is None else last
    row = self.nbytes // max(self.shape[0], 1)
    return self._read(self.start + first * row, (last - first, *self.shape[1:]))

  def _read(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(shape, self.dtype)
    view = memoryview(out.reshape(-1).view(np.uint8))
    with open(self.file, 'rb', buffering=0) as f:
      f.seek(at)
      while view:
        count = f.readinto(view)
        if not count:
          raise BadCheckpoint(f'{self.file} ended early; download it again')
        view = view[count:]
    return out


def open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
  """Every tensor of a folder's model, single file or shards, by name.

  Raises:
    BadCheckpoint: no safetensors, a truncated or corrupt file, an index that
      names a missing shard, a path outside the folder, or a tensor its shard
      does not hold.
  """
  index = folder / INDEX
  if index.is_file():
    return _open_shards(folder, index)
  if (folder / SINGLE).is_file():
    return read_header(folder / SINGLE)
  pickled = sorted(p.name for p in folder.glob('*.bin')) if folder.is_dir() else []
  if pickled:
    raise BadCheckpoint(
        f'{folder} holds only pickled weights ({", ".join(pickled)}), which may run '
        'code when read. Convert them once, with a source you trust: python -c '
        '"from transformers import AutoModel; AutoModel.from_pretrained('
        f"'{folder}').save_pretrained('NEW_FOLDER')\"")
  raise BadCheckpoint(f'{folder} has neither {SINGLE} nor {INDEX}')


def _open_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Tensor]:
  try:
    weight_map = json.loads(index.read_text('utf-8'))['weight_map']
    names = sorted(set(weight_map.values()))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise BadCheckpoint(f'{index} is no index of shards: {e!r}') from e
  headers, problems = {}, []
  for name in names:
    file = inside(folder, name)
    if file.is_file():
      headers[name] = read_header(file)
    else:
      problems.append(f'shard {name} is missing')
  tensors = {}
  for key, name in weight_map.items():
    if name not in headers:
      continue
    if key in headers[name]:
      tensors[key] = headers[name][key]
    else:
      problems.append(f'{name} does not hold {key}')
  if problems:
    raise BadCheckpoint(f'{index}: ' + '; '.join(problems)
                        + '; download the folder again')
  return tensors


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """folder/name.

  Raises:
    BadCheckpoint: it would lie outside the folder. Links are not followed: hub
      caches link their files to a store beside the folder.
  """
  path = pathlib.Path(os.path.normpath(folder / str(name)))
  if not path.is_relative_to(os.path.normpath(folder)):
    raise BadCheckpoint(f'{name!r} lies outside {folder}; refused')
  return path


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one safetensors file.

  Raises:
    BadCheckpoint: header or sizes that do not fit the file.
  """
  size = file.stat().st_size
  with open(file, 'rb') as f:
    head = f.read(8)
    length = struct.unpack('<Q', head)[0] if len(head) == 8 else size
    if length > min(size - 8, _MAX_HEADER):
      raise BadCheckpoint(f'{file} is truncated or no safetensors file '
                          f'({size} bytes, header of {length})')
    try:
      header = json.loads(f.read(length))
      entries = [_entry(file, name, item, 8 + length)
                 for name, item in header.items() if name != '__metadata__']
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      if isinstance(e, BadCheckpoint):
        raise
      raise BadCheckpoint(f'{file} has a corrupt header: {e!r}') from e
  end = max((t.start + t.nbytes for _, t in entries), default=8 + length)
  if end != size:
    raise BadCheckpoint(
        f'{file} is truncated or corrupt: its header describes {end} bytes, it has '
        f'{size}; download it again')
  return dict(entries)


def _entry(file, name: str, item, base: int) -> tuple[str, Tensor]:
  if item['dtype'] not in DTYPES:
    raise BadCheckpoint(
        f'{file}: {name} is of type {item["dtype"]}, which is not supported; known: '
        f'{", ".join(DTYPES)}')
  first, last = item['data_offsets']
  tensor = Tensor(file, DTYPES[item['dtype']], tuple(item['shape']), base + first)
  if min(tensor.shape, default=0) < 0 or last - first != tensor.nbytes or first < 0:
    raise BadCheckpoint(f'{file}: {name} of shape {list(tensor.shape)} does not fill '
                        f'its bytes {first}:{last}')
  return name, tensor


def read_json(file: pathlib.Path, kind: type = dict) -> Any:
  """Parsed JSON.

  Raises:
    BadCheckpoint: the file is no JSON, or not of `kind`.
  """
  try:
    data = json.loads(file.read_text('utf-8'))
  except (ValueError, OSError) as e:
    raise BadCheckpoint(f'{file} is no readable JSON: {e}') from e
  if not isinstance(data, kind):
    raise BadCheckpoint(f'{file} holds no JSON {kind.__name__}')
  return data


# --- Writing -----------------------------------------------------------------


def header_bytes(shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
  """Length, JSON and padding of a file that holds `shapes`, sorted by name."""
  header, at = {'__metadata__': {'format': 'pt'}}, 0
  for name in sorted(shapes):
    dtype, shape = shapes[name]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    header[name] = {'dtype': _NAMES[np.dtype(dtype)], 'shape': list(shape),
                    'data_offsets': [at, at + size]}
    at += size
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  return struct.pack('<Q', len(text)) + text


def write(file: pathlib.Path, shapes, get: Callable[[str], np.ndarray]) -> None:
  """Writes `shapes` (name -> dtype, shape), asking `get` for one at a time."""
  with open(file, 'wb') as f:
    f.write(header_bytes(shapes))
    for name in sorted(shapes):
      f.write(np.ascontiguousarray(get(name)).reshape(-1).view(np.uint8).data)


def split(sizes: Iterable[tuple[str, int]], limit: int) -> list[list[str]]:
  """Names in order, a new shard where the next tensor would exceed `limit`."""
  shards, used = [[]], 0
  for name, size in sizes:
    if shards[-1] and used + size > limit:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  return shards
