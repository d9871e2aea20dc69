"""Which implementation impl='auto' takes: a table, chip x shape class -> why.

An entry is timed on the hardware, or argued from what the compiler schedules and moves:
instruction bundles and bytes of HBM (BENCHMARKS.md, suite aot). What no entry names is
blockwise. `use` puts a machine's own measurements before the table (`jaxembed tune`
writes them); nothing is measured or stored while a program runs.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax

from jaxembed.kernels import dispatch

LARGEST = 2**31 - 1
OPERATIONS = ('contrastive', 'latent_pool')


@dataclasses.dataclass(frozen=True)
class Choice:
  """An implementation for a class of shapes on one chip, and the evidence for it.

  chip: v5e, v5p, v6e, or a device kind as JAX tells it; '*': any. dtype: of the
  products' operands. rows: of the smaller side of the scores, or tokens; width: of
  the vectors or states; both bounds included.
  """

  operation: str
  chip: str
  dtype: str
  impl: str
  reason: str
  rows: tuple[int, int] = (0, LARGEST)
  width: tuple[int, int] = (0, LARGEST)

  def __post_init__(self):
    if self.operation not in OPERATIONS or self.impl not in dispatch.IMPLS[1:]:
      raise ValueError(f'{self.operation!r} by {self.impl!r} is no choice; operations '
                       f'are {OPERATIONS}, implementations {dispatch.IMPLS[1:]}')


def _contrastive(chip: str) -> Choice:
  return Choice('contrastive', chip, 'bfloat16', 'tpu', _COMPILED, rows=(1024, LARGEST),
                width=(128, 4096))


def _latent_pool(chip: str, width: tuple[int, int]) -> Choice:
  return Choice('latent_pool', chip, 'bfloat16', 'tpu', _IN_FEWER,
                rows=(1024, LARGEST), width=width)


_COMPILED = ('compiled, not timed: the matrix unit is busy in most bundles of both '
             'kernels, and neither scores nor their gradient go to HBM')
_IN_FEWER = ("compiled, not timed: blockwise's products and backward pass; LayerNorm, "
             'GEGLU and its sums are made beside the products, in fewer bundles')
TABLE = (
    _contrastive('v5e'),
    _contrastive('v5p'),
    _contrastive('v6e'),
    _latent_pool('v5e', (384, 4096)),
    _latent_pool('v6e', (384, 4096)),
    _latent_pool('v5p', (384, 768)),
    _latent_pool('v5p', (4096, 4096)),
    Choice('latent_pool', 'v5p', 'bfloat16', 'blockwise',
           "compiled, not timed: at width 1,024 the backward pass of the kernel's "
           'program has more bundles than its forward pass saves', width=(769, 4095)),
)
_OTHERWISE = 'not timed, and not compiled to bundles: plain XLA'
_CHIPS = {'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p',
          'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e'}
_own: list[Choice] = []
_VMEM = {'v5e': 128 << 20, 'v6e': 128 << 20}
_LEAST_VMEM = 64 << 20  # v5p


def chip() -> str:
  """The chip that the computation being traced will run on, as the table calls it."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = None if device is None else device.device_kind
  kind = kind or jax.devices()[0].device_kind
  return _CHIPS.get(str(kind), str(kind))


def vmem() -> int:
  """Bytes of VMEM of a core of the TPU that the computation being traced will run on;
  of one that is not known, or another device, the least."""
  return _VMEM.get(chip(), _LEAST_VMEM)


def choose(operation: str, *, rows: int, width: int, dtype: Any, chip: str
           ) -> Choice:
  """The first entry that fits, the machine's own before the table's."""
  kind = str(jax.numpy.dtype(dtype))
  for entry in (*_own, *TABLE):
    if (entry.operation == operation and entry.chip in (chip, '*')
        and entry.dtype in (kind, '*') and _within(rows, entry.rows)
        and _within(width, entry.width)):
      return entry
  return Choice(operation, chip, kind, 'blockwise', _OTHERWISE)


def use(path: str | pathlib.Path) -> list[Choice]:
  """Puts the choices of a file that `jaxembed tune` wrote before the table's.

  Programs that are traced from here on follow them. Those of an earlier call are
  forgotten. Returns them.

  Raises:
    ValueError: the file is no such table; it is named.
  """
  try:
    read = json.loads(pathlib.Path(path).read_text('utf-8'))
    found = [Choice(**entry | {name: tuple(entry[name]) for name in ('rows', 'width')
                               if name in entry}) for entry in read['choices']]
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(f'{path} is no table of kernels ({e}); write one with jaxembed '
                     'tune --out=FILE') from e
  _own[:] = found
  return found


def as_json(choices: Sequence[Choice], note: str) -> str:
  """The text of a file that `use` reads. note: where and when it was measured."""
  return json.dumps({'note': note, 'choices': [
      dataclasses.asdict(entry) for entry in choices]}, indent=2) + '\n'


def in_force() -> list[dict[str, object]]:
  """What 'auto' follows here, as rows of a table to print: first what `use` read."""
  return rows_of([*_own, *TABLE])


def rows_of(entries: Sequence[Choice]) -> list[dict[str, object]]:
  """The entries as rows of a table to print."""
  def span(low, high):
    return f'{low}+' if high == LARGEST else f'{low} to {high}'

  return [{'operation': c.operation, 'chip': c.chip, 'operands': c.dtype,
           'rows': span(*c.rows), 'width': span(*c.width), 'implementation': c.impl,
           'because': c.reason} for c in entries]


def _within(x, bounds):
  return bounds[0] <= x <= bounds[1]
