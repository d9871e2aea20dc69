"""Published peak FLOP/s, memory and bandwidth of TPUs and GPUs."""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one device."""

  flops: float  # bfloat16, per second
  hbm: float  # bytes
  bandwidth: float  # of HBM, bytes per second
  # Times that a float32 product of each precision takes longer than a bfloat16 one:
  # passes of a TPU's matrix unit; TF32, and float32 outside of them, on a GPU.
  default: float = 1.0
  high: float = 3.0
  highest: float = 6.0

  def passes(self, precision: str) -> float:
    """How much longer products take; '': of 16 bits."""
    return getattr(self, precision) if precision else 1.0


CHIPS = {
    'v5e': Chip(197e12, 16 * GIB, 0.819e12),
    'v5p': Chip(459e12, 95 * GIB, 2.77e12),
    'v6e': Chip(918e12, 32 * GIB, 1.64e12),
    'h100': Chip(989e12, 80 * GIB, 3.35e12, 2.0, 2.0, 989 / 67),
    'h200': Chip(989e12, 141e9, 4.8e12, 2.0, 2.0, 989 / 67),
}
# What jax.Device.device_kind says of each. The PCIe H100 is a slower chip.
_KINDS = (
    (r'v5 ?lite|v5e', 'v5e'),
    (r'v5p?$', 'v5p'),
    (r'v6 ?lite|v6e', 'v6e'),
    (r'h100(?!.*pcie)', 'h100'),
    (r'h200', 'h200'),
)


def from_device_kind(device_kind: str) -> Chip | None:
  """The chip that JAX calls `device_kind`; None for one not in the table."""
  for pattern, name in _KINDS:
    if re.search(pattern, device_kind.lower()):
      return CHIPS[name]
  return None
