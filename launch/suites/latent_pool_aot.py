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
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from jaxembed import sharding
from jaxembed.kernels import choices
from jaxembed.kernels.latent_pool import blockwise, tpu

from .. import bundles

_FLAGS = ('--xla_jf_dump_to={} --xla_jf_dump_llo_text=true '
          '--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*')
_TOPOLOGY = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
_RATE = {'v5e': 65536, 'v5p': 65536, 'v6e': 262144}  # see suite aot
_CORES = {'v5p': 2}
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
  chips, widths = (('v6e',), (128,)) if small else (tuple(_TOPOLOGY), _WIDTHS)
  return [_row(Program(chip, width, impl)) for chip in chips for width in widths
          for impl in ('tpu', 'blockwise')]


def _row(program: Program) -> dict:
  """Compiled in a process of its own, for the compiler's flags."""
  with tempfile.TemporaryDirectory() as folder:
    env = {**os.environ, 'LIBTPU_INIT_ARGS': _FLAGS.format(folder),
           'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true', 'JAX_PLATFORMS': 'cpu',
           'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    done = subprocess.run(
        [sys.executable, '-m', __name__, folder,
         json.dumps(dataclasses.asdict(program))],
        env=env, capture_output=True, text=True, check=False)
  told = {'chip': program.chip, 'D': program.width, 'form': program.impl}
  if done.returncode:
    return told | {'note': next((line for line in reversed(done.stderr.splitlines())
                                 if 'Error' in line), 'failed')[:100]}
  return told | json.loads(done.stdout.splitlines()[-1])


# --- In the child ------------------------------------------------------------


def _main(folder: pathlib.Path, program: Program) -> dict:
  described = topologies.get_topology_desc(
      platform='tpu', topology_name=_TOPOLOGY[program.chip])
  where = sharding.make_mesh((1, 1, 1), described.devices[:1])
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
    work = 2 * _LENGTH * program.width * columns / _RATE[program.chip]
    forward += path.bundles * steps / _CORES.get(program.chip, 1)
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
