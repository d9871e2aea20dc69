"""Rows of a conversion table: which tensor of a checkpoint is which parameter.

One row, one tensor. Names are those of the base model (AutoModel): no `model.`
prefix, no language-model head. `{l}` stands for the layer; our side stacks layers
on a leading axis. A matrix is stored [out, in] there and [in, out] here.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math

from jaxembed.config import BackboneConfig

LAYERS = 'backbone/layers/'


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of the checkpoint.

  Several paths: their matrices lie one after another along the tensor's first
  axis (a fused projection).
  """

  name: str
  paths: tuple[str, ...]
  transpose: bool = False
  out_axes: int = 1  # of a transposed kernel: how many axes form `out`
  skip_layers: tuple[int, ...] = ()  # layers that have no such tensor
  expert: int | None = None  # whose it is, of a parameter [L,E,...] of all experts


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one checkpoint layout.

  `prefixes` may stand before every name; `ignored` are patterns of tensors that
  no embedding uses (heads of other tasks, buffers).
  """

  rows: tuple[Row, ...]
  prefixes: tuple[str, ...] = ('model.',)
  ignored: tuple[str, ...] = ()


def norm(name: str, path: str, cfg: BackboneConfig,
         skip_layers: tuple[int, ...] = ()) -> Iterator[Row]:
  """Rows of an RMSNorm or LayerNorm: its scale, and its bias where cfg has them."""
  if cfg.norm_scale:
    yield Row(f'{name}.weight', (f'{path}/scale',), skip_layers=skip_layers)
  if cfg.norm_bias:
    yield Row(f'{name}.bias', (f'{path}/bias',), skip_layers=skip_layers)


def linear(name: str, bias: bool, *paths: str) -> Iterator[Row]:
  """Rows of a torch Linear that holds the projections `paths`, one after another."""
  yield Row(f'{name}.weight', tuple(f'{p}/kernel' for p in paths), transpose=True)
  if bias:
    yield Row(f'{name}.bias', tuple(f'{p}/bias' for p in paths))


def experts(name: str, path: str, count: int) -> Iterator[Row]:
  """Rows of one matrix of each expert; `{e}` in the name stands for its number."""
  for number in range(count):
    yield Row(name.replace('{e}', str(number)), (path,), transpose=True, expert=number)


def part(x, row: Row, layer: int | None):
  """What of a parameter is in one tensor of the file: a layer, and an expert's."""
  x = x if layer is None else x[layer]
  return x if row.expert is None else x[row.expert]


def part_shape(shape: tuple[int, ...], row: Row, layer: int | None
               ) -> tuple[int, ...]:
  """Shape, in the file, of `part` of a parameter of the given shape."""
  first = (layer is not None) + (row.expert is not None)
  return matrix_shape(shape[first:], row)


def joined_shape(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """Shape of the tensor in which such parts lie one after another, or one scalar."""
  return (sum(p[0] for p in parts), *parts[0][1:]) if parts[0] else ()


def expand(rows: tuple[Row, ...], layers: int) -> Iterator[tuple[Row, int | None]]:
  """Each row once per layer it stands for; None: it has no layers.

  Consecutive layered rows are walked layer by layer, the order of modules.
  """
  for layered, group in _runs(rows):
    for layer in range(layers) if layered else (None,):
      for row in group:
        if layer not in row.skip_layers:
          yield row, layer


def matrix_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
  """Shape of one layer's parameter as the file holds it: [out, in] of a kernel."""
  if not row.transpose:
    return tuple(shape)
  first_out = len(shape) - row.out_axes
  return math.prod(shape[first_out:]), math.prod(shape[:first_out])


def _runs(rows: tuple[Row, ...]) -> list[tuple[bool, list[Row]]]:
  """Consecutive rows that have layers, or have none."""
  runs: list[tuple[bool, list[Row]]] = []
  for row in rows:
    layered = '{l}' in row.name
    if not runs or runs[-1][0] != layered:
      runs.append((layered, []))
    runs[-1][1].append(row)
  return runs
