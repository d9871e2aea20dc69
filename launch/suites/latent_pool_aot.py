"""The latent-attention head's feed-forward and sums, as libtpu's compiler schedules it.

Value and gradient of `geglu_sums` by the Pallas kernel and by blockwise, 4,096 tokens
of texts of 512 in bfloat16, for chips that are not here. 'forward' and 'all' are
bundles of instructions per token, the least cycles: for fusions of XLA those of a grid
step times the steps, for small ones the compiler's estimate. LayerNorm, in both, is
among them. On v5p two cores share the work. 'matrix unit' and 'spills' are of the
kernel, as in suite aot: above 100% its products are the least time. 'HBM bytes/token'
are the compiler's, in which each operand of a product counts once; the kernel's own
reads of the tokens, once per block of columns, stand beside it. No figure is a timing.
"""

from collections.abc import Iterator
import dataclasses
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp

from jaxembed.kernels import choices
from jaxembed.kernels.contrastive import tpu_call
from jaxembed.kernels.latent_pool import blockwise, tpu

from .. import bundles
from . import _tpu_compiler

_WIDTHS = (384, 768, 1024, 4096)
_TOKENS, _LENGTH = 4096, 512
_FUSION = re.compile(r'%([\w.-]+) = .*?op_name="([^"]*)".*?"estimated_cycles":"(\d+)"'
                     r',"iteration_bounds":\[([^\]]*)\]')


@dataclasses.dataclass(frozen=True)
class Program:
  """What a child compiles."""

  chip: str
  width: int
  impl: str


def run(repeats: int, small: bool) -> list[dict]:
  """A row per chip, width and implementation."""
  del repeats  # compilation is deterministic
  chips, widths = (('v6e',), (128,)) if small else (
      tuple(_tpu_compiler.TOPOLOGY), _WIDTHS)
  return [_row(Program(chip, width, impl)) for chip in chips for width in widths
          for impl in ('tpu', 'blockwise')]


def _row(program: Program) -> dict:
  return {'chip': program.chip, 'D': program.width, 'form': program.impl
          } | _tpu_compiler.in_child(__name__, program)


# --- In the child ------------------------------------------------------------


def _main(folder: pathlib.Path, program: Program) -> dict:
  where = _tpu_compiler.mesh(program.chip)
  with jax.set_mesh(where):
    step = jax.jit(jax.shard_map(
        _step(program.impl), in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
        ).lower(*_arguments(program.width, where)).compile()
    columns = tpu.block_columns(program.width, 4 * program.width, jnp.bfloat16)
    assert choices.chip() == program.chip
  memory, cost = step.memory_analysis(), step.cost_analysis()
  assert memory is not None and cost is not None
  seen = bundles.of_folder(folder)
  text = step.as_text()
  assert text is not None
  counted = dict(_bundles(text, seen))
  forward = sum(n for (_, is_forward), n in counted.items() if is_forward)
  out = {'temporaries MiB': memory.temp_size_in_bytes / 2**20}
  moved = cost['bytes accessed'] / _TOKENS
  if program.impl == 'tpu':
    (path,), = [paths for name, paths in seen.items() if 'geglu_sums' in name]
    blocks = 4 * program.width // columns
    again = (blocks - 1) * program.width * 2
    steps = blocks * _TOKENS // _LENGTH
    work = 2 * _LENGTH * program.width * columns / _tpu_compiler.RATE[program.chip]
    forward += path.bundles * steps / tpu_call.CORES.get(program.chip, 1)
    moved -= again
    out |= {'matrix unit': work / path.bundles, 'spills': path.spills / path.bundles,
            'read again, bytes/token': again}
  backward = sum(n for (_, is_forward), n in counted.items() if not is_forward)
  return {'forward': forward / _TOKENS, 'all': (forward + backward) / _TOKENS,
          'HBM bytes/token': moved} | out


def _bundles(text: str, seen: dict[str, list[bundles.Path]]
             ) -> Iterator[tuple[tuple[str, bool], float]]:
  """((fusion, whether of the forward pass), bundles of all its steps)."""
  for line in text[text.index('ENTRY'):].splitlines():
    if match := _FUSION.search(line):
      name, of, estimate, bounds = match.groups()
      steps = math.prod(int(x) for x in re.findall(r'\d+', bounds))
      found = seen.get(name)
      yield (name, 'transpose(' not in of), (
          found[0].bundles * steps if found else float(estimate))


def _step(impl):
  forms = {'tpu': (tpu.geglu_sums, False), 'blockwise': (blockwise.geglu_sums,)}
  form, *fixed = forms[impl]

  def step(norm, mlp, x, segments, cotangent):
    out, vjp = jax.vjp(lambda norm, mlp, x: form(
        *fixed, _TOKENS, 1, 1, norm, mlp, x, segments), norm, mlp, x)
    return out, vjp(cotangent)

  return step


def _arguments(width, where):
  def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(
        dims, dtype, sharding=jax.NamedSharding(where, jax.P()))

  texts, inner = _TOKENS // _LENGTH, 4 * width
  linear = {'kernel': shape(width, inner), 'bias': shape(inner)}
  return ({'scale': shape(width), 'bias': shape(width)},
          {'up': linear, 'gate': linear}, shape(texts, _LENGTH, width),
          shape(texts, _LENGTH, dtype=jnp.int32),
          shape(texts, 1, inner, dtype=jnp.float32))


if __name__ == '__main__':
  print(json.dumps(_main(pathlib.Path(sys.argv[1]),
                         Program(**json.loads(sys.argv[2])))))
