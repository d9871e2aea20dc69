"""Measures a suite and prints its rows as a Markdown table for BENCHMARKS.md.

  jaxembed bench --suite=encode [--repeats=5] [--small] [--out=rows.json]

A suite is a module of launch/suites with `run(repeats, small) -> rows`; a row is
a dict of printable values. Peers are timed in the same process run, alternating,
and medians are compared: ratios outlive a noisy machine, absolute times do not.
`--small` shrinks shapes to see that a suite runs; its figures mean nothing.
"""

import importlib
import json
import pathlib
import platform

from absl import flags
import jax

from jaxembed.files import url
from jaxembed.kernels import choices

from . import cli, tables

SUITES = tuple(sorted(
    p.stem for p in (pathlib.Path(__file__).parent / 'suites').glob('[a-z]*.py')))
_OF_KERNELS = 'aot', 'contrastive', 'latent_pool'

_SUITE = flags.DEFINE_enum('suite', None, SUITES, 'What to measure.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Counted repeats.', lower_bound=1)
_SMALL = flags.DEFINE_bool('small', False, 'Tiny shapes, to see that it runs.')
_OUT = flags.DEFINE_string('out', None, 'Also write the rows here, as JSON.')
flags.mark_flag_as_required('suite')


def main():
  if _OUT.value:
    url.local(_OUT.value, 'give a local --out')
    pathlib.Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
  suite = importlib.import_module(
      f'.suites.{_SUITE.value}', __package__)
  rows = suite.run(repeats=_REPEATS.value, small=_SMALL.value)
  print(f'\n{jax.devices()[0].device_kind} x {jax.device_count()}, jax '
        f'{jax.__version__}, Python {platform.python_version()}, '
        f'{_REPEATS.value} repeats\n')
  print(tables.markdown(rows))
  if _SUITE.value in _OF_KERNELS:
    print(f"\nimpl='auto' takes:\n\n{tables.markdown(choices.in_force())}")
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  cli.run(main)
