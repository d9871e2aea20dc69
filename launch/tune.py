"""Times the kernels on this machine and writes which one impl='auto' is to take.

  jaxembed tune --out=kernels.json
  JAXEMBED_KERNELS=kernels.json jaxembed train --config=...

Each operation runs by every implementation that this device has, value and gradient,
alternating, at a few shapes; the fastest median of a shape stands for its class. The
file is read where JAXEMBED_KERNELS names it, by every command, or by
jaxembed.kernels.choices.use(FILE); nothing else looks for it.
"""

import datetime
import functools
import pathlib
import statistics

from absl import flags
import jax

from jaxembed.files import url
from jaxembed.kernels import choices, dispatch

from . import cli, tables, timing
from .suites import contrastive, latent_pool

_OUT = flags.DEFINE_string('out', None, 'The file to write; it must not exist.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Counted repeats.', lower_bound=1)
_SMALL = flags.DEFINE_bool('small', False, 'Tiny shapes, to see that it runs.')
flags.mark_flag_as_required('out')


def main():
  url.local(cli.given(_OUT), 'give a local --out')
  path = pathlib.Path(cli.given(_OUT))
  if path.exists():
    raise ValueError(f'--out={path} exists; name another file, or remove it')
  entries = []
  for operation, suite in (('contrastive', contrastive), ('latent_pool', latent_pool)):
    shapes = suite.tuned(_SMALL.value)
    bounds = _classes([(rows, width) for rows, width, _ in shapes])
    for (rows, width, dtype), (span, widths) in zip(shapes, bounds, strict=True):
      impl, reason = _fastest(suite, rows, width, dtype)
      entries.append(choices.Choice(
          operation, choices.chip(), dtype, impl, reason, span, widths))
  note = (f'{jax.devices()[0].device_kind}, jax {jax.__version__}, '
          f'{datetime.date.today()}')
  path.write_text(choices.as_json(entries, note))
  print(f'{note}\n\n{tables.markdown(choices.rows_of(entries))}\n\nwritten to {path}; '
        f'JAXEMBED_KERNELS={path} puts it into effect')


def _classes(shapes):
  """(rows, width) spans around each shape: up to the next larger one."""
  def span(x, all_of_them):
    known = sorted(set(all_of_them))
    at = known.index(x)
    low = 0 if at == 0 else known[at - 1] + 1
    return low, choices.LARGEST if x == known[-1] else x

  rows, widths = zip(*shapes)
  return [(span(r, rows), span(w, widths)) for r, w in shapes]


def _fastest(suite, rows: int, width: int, dtype: str) -> tuple[str, str]:
  """(implementation, reason) by the medians of alternating runs."""
  steps = {}
  for impl in dict.fromkeys(('blockwise', dispatch.platform())):
    if impl not in dispatch.IMPLS:
      continue
    try:
      step, args = suite.step(impl, rows, width, dtype)
      jax.block_until_ready(step(*args))
      steps[impl] = functools.partial(step, *args)
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
      print(f'{suite.__name__.rpartition(".")[2]} {rows} x {width}: {impl} cannot run: '
            f'{str(error).splitlines()[0]}')
  times = timing.alternating(steps, _REPEATS.value)
  medians = {impl: 1e3 * statistics.median(x) for impl, x in times.items()}
  told = ', '.join(f'{impl} {ms:.3g} ms' for impl, ms in medians.items())
  return min(medians, key=medians.__getitem__), f'timed at {rows} x {width}: {told}'


if __name__ == '__main__':
  cli.run(main)
