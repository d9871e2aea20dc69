"""Choice of a kernel's implementation by platform, and the error where none fits.

A kernel's public function takes `impl`. 'auto' is what the table of choices.py has for
this chip and may fall back; a named implementation that cannot run raises `Unsupported`
with the remedy, never something else instead.
"""

import jax

IMPLS = ('auto', 'reference', 'blockwise', 'tpu', 'gpu')


class Unsupported(NotImplementedError):
  """This implementation cannot run here; the message says why and what can."""


def check_impl(impl: str) -> str:
  """Returns `impl`, or raises ValueError naming the choices."""
  if impl not in IMPLS:
    raise ValueError(f'impl {impl!r} is unknown; choose one of {IMPLS}')
  return impl


def platform() -> str:
  """Where the computation being traced will run: 'cpu', 'gpu' or 'tpu'.

  The mesh in force decides, so that code lowered ahead of time for another
  machine picks that machine's kernel; without one, the default device does.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform is not None:
    name: str = device.platform
    return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)
  return jax.default_backend()
