"""The table of kernels that this machine's own timings made, if a file is named."""

import os
import sys


def use() -> None:
  """Follows the file that JAXEMBED_KERNELS names (`jaxembed tune`), and says so."""
  if path := os.environ.get('JAXEMBED_KERNELS'):
    from jaxembed.kernels import choices  # brings jax with it
    count = len(choices.use(path))
    print(f'note: kernels by {path} (JAXEMBED_KERNELS), {count} choices',
          file=sys.stderr)
