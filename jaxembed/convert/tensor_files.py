"""Reading and writing safetensors, one tensor (or some rows of one) at a time.

Files are read with plain positioned reads: no page of a mapped file stays
resident, so loading costs the memory of what is kept. Every length and offset of
the header is checked before a byte is trusted.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import math
import pathlib
import struct
from typing import Any, BinaryIO, TypeGuard

import ml_dtypes
import numpy as np

from jaxembed.files import checked_json
from jaxembed.files.checked_json import read as read_json
from jaxembed.files.folder import BadCheckpoint, inside, open_regular, short

__all__ = ['BadCheckpoint', 'Tensor', 'inside', 'open_folder', 'read_header',
           'read_json']

DTYPES = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16), 'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype(np.int64), 'I32': np.dtype(np.int32),
    'I16': np.dtype(np.int16), 'I8': np.dtype(np.int8), 'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes that are all ones in the exponent of Inf and NaN, as unsigned integers.
_EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
# Bytes of a JSON header; 100,000 tensors need fewer.
_MAX_HEADER = 20_000_000
_MAX_DIMS = 8
# Elements that are looked at in one go for what is not finite.
_CHUNK = 1 << 20
# Names of a long list that a message repeats.
_LISTED = 20
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies."""

  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # byte in the file
  name: str = ''

  @property
  def nbytes(self) -> int:
    """Bytes of the data."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Rows first:last along axis 0; the whole tensor by default.

    Raises:
      BadCheckpoint: a value that is not finite, or a type that is no floating-point
        one: nothing here computes with the integers of a file.
    """
    if not is_float(self.dtype):
      raise BadCheckpoint(
          f'{self.file}: {short(self.name)} is of type {_NAMES[self.dtype]}, not of a '
          'floating-point one')
    if not self.shape:
      return self._read(self.start, ())
    last = self.shape[0] if last is None else last
    row = self.nbytes // max(self.shape[0], 1)
    return self._read(self.start + first * row, (last - first, *self.shape[1:]))

  def read_numbers(self) -> np.ndarray:
    """The whole tensor, of integers too.  Raises BadCheckpoint as `read`."""
    return self._read(self.start, self.shape)

  def _read(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(shape, self.dtype)
    view = out.reshape(-1).view(np.uint8).data
    with open_regular(self.file, buffering=0) as f:
      f.seek(at)
      while view:
        count = f.readinto(view)
        if not count:
          raise BadCheckpoint(f'{self.file} ended early; download it again')
        view = view[count:]
    if not all_finite(out):
      raise BadCheckpoint(f'{self.file}: {short(self.name)} holds NaN or Inf; use a '
                          'checkpoint from before its training went wrong')
    return out


def is_float(dtype: np.dtype) -> bool:
  """Whether a dtype of DTYPES is a floating-point one."""
  return dtype.kind == 'f' or dtype == ml_dtypes.bfloat16


def all_finite(x: np.ndarray) -> bool:
  """False if a floating-point array of any size has a NaN or an Inf."""
  x = np.ascontiguousarray(x).reshape(-1)
  parts = (x[i:i + _CHUNK] for i in range(0, x.size, _CHUNK))
  if mask := _EXPONENTS.get(x.dtype):  # numpy has no fast test for these
    return not any(((p.view(np.uint16) & mask) == mask).any() for p in parts)
  return all(np.isfinite(p).all() for p in parts)


def open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
  """Every tensor of a folder's model, single file or shards, by name.

  Raises:
    BadCheckpoint: no safetensors, a truncated or corrupt file, an index that
      names a missing shard, a path outside the folder, or a tensor its shard
      does not hold.
  """
  weight_map = None
  if (folder / INDEX).is_file():
    weight_map = _weight_map(folder, folder / INDEX)
  # Before an index, as transformers does: one that lies beside it is of an older save.
  if (folder / SINGLE).is_file():
    return read_header(folder / SINGLE)
  if weight_map:
    return _open_shards(folder, folder / INDEX, weight_map)
  raise BadCheckpoint(_without_weights(folder))


def _without_weights(folder: pathlib.Path) -> str:
  """Why there is nothing to open, and what to do about it."""
  pickled = sorted(folder.glob('*.bin')) if folder.is_dir() else []
  if shards := sorted(p.name for p in folder.glob('model-*-of-*.safetensors')):
    return (f'{folder} holds {", ".join(shards[:_LISTED])} without {INDEX}, which says '
            'what lies in which; download it as well')
  if not pickled:
    return f'{folder} has neither {SINGLE} nor {INDEX}'
  file, single = pickled[0], folder / SINGLE
  remedy = ('from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')")
  if len(pickled) == 1:
    remedy = ('import torch, safetensors.torch as s; s.save_file({k: '
              f"v.clone() for k, v in torch.load('{file}', weights_only=True)"
              f".items()}}, '{single}')")
  return (f'{folder} holds only pickled weights '
          f'({", ".join(p.name for p in pickled[:_LISTED])}), which may run code when '
          f'read. Convert them once, with a source you trust: python -c "{remedy}"')


def _weight_map(folder: pathlib.Path, index: pathlib.Path) -> dict[str, str]:
  """The shard of each tensor; every name is that of a safetensors file in `folder`."""
  weight_map = checked_json.read(index, limit=_MAX_HEADER).get('weight_map')
  if (not isinstance(weight_map, dict) or not weight_map
      or not all(isinstance(name, str) for name in weight_map.values())):
    raise BadCheckpoint(f'{index} is no index of shards: its weight_map is '
                        f'{short(weight_map)}, not names of files by tensor')
  for name in sorted(set(weight_map.values())):
    if not inside(folder, name).name.endswith('.safetensors'):
      raise BadCheckpoint(f'{index} names the shard {short(name)}, which is no '
                          'safetensors file; download the folder again')
  return weight_map


def _open_shards(folder: pathlib.Path, index: pathlib.Path,
                 weight_map: dict[str, str]) -> dict[str, Tensor]:
  headers, problems = {}, []
  for name in sorted(set(weight_map.values())):
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
      problems.append(f'{name} does not hold {short(key)}')
  if problems:
    more = len(problems) - _LISTED
    raise BadCheckpoint(
        f'{index}: ' + '; '.join(problems[:_LISTED])
        + (f'; and {more} more' if more > 0 else '') + '; download the folder again')
  return tensors


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one safetensors file, which fill it without gap or overlap.

  Raises:
    BadCheckpoint: header or sizes that do not fit the file.
  """
  with open_regular(file) as f:
    size = f.seek(0, 2)
    f.seek(0)
    head = f.read(8)
    length = struct.unpack('<Q', head)[0] if len(head) == 8 else size
    if length > min(size - 8, _MAX_HEADER):
      raise BadCheckpoint(f'{file} is truncated or no safetensors file '
                          f'({size} bytes, header of {length})')
    header = checked_json.parse(f.read(length), f'the header of {file}')
  tensors = [_entry(file, name, item, 8 + length)
             for name, item in header.items() if name != '__metadata__']
  end = 8 + length
  for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
    if tensor.start != end:
      raise BadCheckpoint(
          f'{file}: {short(tensor.name)} begins at byte {tensor.start}, but what '
          f'stands before it ends at {end}')
    end += tensor.nbytes
  if end != size:
    raise BadCheckpoint(
        f'{file} is truncated or corrupt: its header describes {end} bytes, it has '
        f'{size}; download it again')
  return {tensor.name: tensor for tensor in tensors}


def _entry(file: pathlib.Path, name: str, item, base: int) -> Tensor:
  here = f'{file}: {short(name)}'
  if not isinstance(item, dict):
    raise BadCheckpoint(f'{here} is {short(item)}, not a tensor')
  kind, shape, offsets = (item.get(k) for k in ('dtype', 'shape', 'data_offsets'))
  if not isinstance(kind, str) or kind not in DTYPES:
    raise BadCheckpoint(f'{here} is of type {short(kind)}, which is not supported; '
                        f'known: {", ".join(DTYPES)}')
  if not _counts(shape) or len(shape) > _MAX_DIMS:
    raise BadCheckpoint(f'{here} has the shape {short(shape)}, not a list of at most '
                        f'{_MAX_DIMS} sizes')
  if not _counts(offsets) or len(offsets) != 2:
    raise BadCheckpoint(f'{here} has the data_offsets {short(offsets)}, not the first '
                        'and the last byte')
  tensor = Tensor(file, DTYPES[kind], tuple(shape), base + offsets[0], name)
  if offsets[1] - offsets[0] != tensor.nbytes:
    raise BadCheckpoint(f'{here} of shape {short(shape)} does not fill its bytes '
                        f'{offsets[0]}:{offsets[1]}')
  return tensor


def _counts(values: Any) -> TypeGuard[list[int]]:
  """Whether this is a list of integers that can be sizes in bytes."""
  return isinstance(values, list) and all(
      type(v) is int and 0 <= v < 2**63 for v in values)


# --- Writing -----------------------------------------------------------------


def header_bytes(shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
  """Length, JSON and padding of a file that holds `shapes`, sorted by name."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  at = 0
  for name in sorted(shapes):
    dtype, shape = shapes[name]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    header[name] = {'dtype': _NAMES[np.dtype(dtype)], 'shape': list(shape),
                    'data_offsets': [at, at + size]}
    at += size
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  return struct.pack('<Q', len(text)) + text


def write(file: pathlib.Path, shapes: Mapping[str, tuple],
          get: Callable[[str], np.ndarray]) -> None:
  """Writes `shapes` (name -> dtype, shape), asking `get` for one at a time.

  Raises:
    OSError: the disk is full, or another error of the system; it names the file.
  """
  with open(file, 'wb') as f:
    _into(f, header_bytes(shapes))
    for name in sorted(shapes):
      _into(f, np.ascontiguousarray(get(name)).reshape(-1).view(np.uint8).data)
    try:
      f.flush()
    except OSError as e:
      raise _named(e, f.name) from e


def _into(f: BinaryIO, data: bytes | memoryview) -> None:
  try:
    f.write(data)
  except OSError as e:
    raise _named(e, f.name) from e


def _named(e: OSError, file: str) -> OSError:
  """The same error with the file that it befell, which errors of writing lack."""
  return OSError(e.errno, e.strerror, str(file))


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
