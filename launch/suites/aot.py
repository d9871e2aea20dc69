"""Kernels as libtpu's compiler schedules them, for chips that are not here.

A child process per program compiles it for a described topology and dumps the last
schedule of each kernel (launch/bundles.py). 'bundles' are those of a grid step, the
least cycles that it takes; 'matrix unit' is the share of them that the step's products
would keep it busy at its peak, an upper bound on what a run can reach. v5e's and v5p's
schedules leave waits for the matrix units to the hardware: above 100% the products are
the least time, not the bundles. 'spills' are stores of vectors for which there was no
register, per bundle. 'temporaries' and 'HBM bytes/score' are the compiler's figures for
the whole program, value and gradient. It counts a loop's body once: the kernels' groups
of rows are multiplied, and blockwise is counted at 8,192 x 8,192 scores, one tile.
'least' are inputs and results in float32 and, for a tile's 1,024 rows, one pass of the
other side's operands forward and one backward. No figure is a timing.
"""

from collections.abc import Callable, Iterator
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import config, sharding, types
from jaxembed.kernels.contrastive import MaskVectors, masked_lse, tpu_call
from jaxembed.losses import masks

from .. import bundles
from . import _tpu_compiler


@dataclasses.dataclass(frozen=True)
class Program:
  """What a child compiles. masks: none, step (as info_nce passes them) or all."""

  chip: str
  kernel: str
  impl: str = 'tpu'
  size: int = 8192  # rows and columns of scores
  dim: int = 768
  masks: str = 'step'
  bounded: bool = False


def run(repeats: int, small: bool) -> list[dict]:
  """A row per kernel of each program, and one for each whole program."""
  del repeats  # compilation is deterministic
  programs = [Program('v6e', 'contrastive', size=2048, dim=256)] if small else [
      p for chip in _tpu_compiler.TOPOLOGY for p in _programs(chip)]
  return [row for p in programs
          for row in _rows(p, _tpu_compiler.in_child(__name__, p))]


def _programs(chip: str) -> Iterator[Program]:
  for dim in (768, 1024):
    yield Program(chip, 'contrastive', dim=dim)
  yield Program(chip, 'contrastive', 'blockwise')
  yield Program(chip, 'contrastive', size=65536)
  if chip != 'v6e':  # the one whose matrix unit is hardest to keep busy
    return
  for dim, kind, bounded in (
      (384, 'step', False), (768, 'none', False), (768, 'step', True),
      (768, 'all', False), (4096, 'step', False)):
    yield Program(chip, 'contrastive', dim=dim, masks=kind, bounded=bounded)


def _rows(program: Program, found: dict) -> Iterator[dict]:
  told = {'chip': program.chip, 'D': program.dim}
  if program.kernel == 'contrastive':
    told |= {'B = N': program.size, 'masks': program.masks, 'bounded': program.bounded}
  for name, paths in sorted(found.get('kernels', {}).items()):
    work = found['work'][name] / _tpu_compiler.RATE[program.chip]
    for path in paths:
      yield {'what': name, **told, 'bundles': path['bundles'],
             'matrix unit': work / path['bundles'],
             'spills': path['spills'] / path['bundles']}
  yield {'what': f'{program.kernel} {program.impl}', **told} | {
      name: found[key] for name, key in (
          ('HBM bytes/score', 'bytes'), ('least', 'least'),
          ('temporaries MiB', 'temporaries'),
          ('note', 'note')) if key in found}


# --- In the child ------------------------------------------------------------


def _main(folder: pathlib.Path, program: Program) -> dict:
  where = _tpu_compiler.mesh(program.chip)
  with jax.set_mesh(where):
    loss, args, work = _contrastive(program)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.NamedSharding(where, jax.P())), args)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*placed).compile()
    memory, cost = step.memory_analysis(), step.cost_analysis()
    assert memory is not None
    out = {'temporaries': memory.temp_size_in_bytes / 2**20, 'work': work}
    if program.kernel == 'contrastive' and cost:
      out |= _traffic(program, cost['bytes accessed'])
  return out | {'kernels': {
      name: [dataclasses.asdict(path) for path in paths]
      for name, paths in bundles.of_folder(folder).items()
      if name.startswith('contrastive')}}


def _traffic(program: Program, accessed: float) -> dict[str, float]:
  n, d = program.size, program.dim
  least = 4 * 4 * n * d + 2 * 2 * d * n * (n / 1024)
  if program.impl == 'tpu':
    cut = _tiling(program, gradients=True)
    accessed += (cut.groups - 1) * cut.moved(d, 2, 2)
  elif n > 8192:
    return {'least': least / n**2}
  return {'bytes': accessed / n**2, 'least': least / n**2}


def _shape(*dims: int, dtype: Any = jnp.int32) -> Any:
  return jax.ShapeDtypeStruct(dims, dtype)


def _contrastive(program: Program) -> tuple[Callable, tuple, dict[str, int]]:
  n, d = program.size, program.dim
  made = {'bounded': program.bounded, 'impl': program.impl, 'dtype': 'bfloat16'}
  # Multiply-adds of a grid step: all products of its tile.
  work = {'contrastive_' + name: d * products * math.prod(
      _tiling(program, gradients=products > 1).block)
      for name, products in (('sums', 1), ('gradients', 3))}
  x = _shape(n, d, dtype=jnp.float32)
  if program.masks == 'step':
    pairing = types.Pairing(
        owner=_shape(n), is_positive=_shape(n, dtype=bool), query_id=_shape(n),
        passage_id=_shape(n), group=_shape(n), in_batch=_shape(n, dtype=bool))
    side = pairing
  else:
    side = MaskVectors() if program.masks == 'none' else MaskVectors(
        ids=(_shape(n),) * 3, owner=_shape(n), group=_shape(n),
        threshold=_shape(n, dtype=jnp.float32), bias=_shape(n, dtype=jnp.float32))

  def sides(side):
    if program.masks != 'step':
      return side, side
    lay = masks.layout(side, config.LossConfig())
    return lay.row, lay.col

  directions = ('row', 'col') if program.masks == 'all' else ('row',)

  def loss(q, k, side):
    row, col = sides(side)
    found = masked_lse(q, k, scale=20.0, row=row, col=col, directions=directions,
                       axes=sharding.BATCH, **made)
    return sum(s.lse.sum() for s in found if s is not None)

  return loss, (x, x, side), work


def _tiling(program: Program, gradients: bool) -> tpu_call.Tiling:
  vectors = {'none': 0, 'step': 5, 'all': 7}[program.masks] + 2 * gradients
  return tpu_call.tiling(program.size, program.size, program.dim, 2, vectors,
                         gradients=gradients)


if __name__ == '__main__':
  print(json.dumps(_main(pathlib.Path(sys.argv[1]),
                         Program(**json.loads(sys.argv[2])))))
