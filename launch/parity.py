"""Every supported family against PyTorch: prints a Markdown table.

  jaxembed parity

Random small checkpoints are built with transformers, loaded on both sides and run
on ragged batches. A figure is the largest difference of the last hidden states
over their largest value, in float32. Exits 1 when one exceeds the tolerance.
"""

import collections
import sys

from jaxembed.convert import parity_families

from . import cli, tables


def main():
  cells = collections.defaultdict(dict)
  for line in parity_families.report():
    cells[line.name][line.attention, line.padding] = line.difference
    print('.', end='', file=sys.stderr, flush=True)
  columns = [(mode, side) for mode in ('causal', 'bidirectional')
             for side in ('right', 'left')]
  print('\n' + tables.markdown([{'model': name} | {
      f'{mode}, {side} padding': f'{row[mode, side]:.1e}' if (mode, side) in row else ''
      for mode, side in columns} for name, row in cells.items()]))
  worst = max(v for row in cells.values() for v in row.values())
  print(f'\nlargest: {worst:.1e}; tolerance: {parity_families.TOLERANCE:.0e}')
  if worst > parity_families.TOLERANCE:
    raise ValueError('a family differs from torch by more than the tolerance')


if __name__ == '__main__':
  cli.run(main)
