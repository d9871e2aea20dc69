"""Which implementation of a kernel runs where.

A kernel's public function takes `impl`. 'auto' asks the kernel for its
preference on this platform and may fall back; a named implementation that
cannot run raises `Unsupported` with the remedy, never something else instead.
"""


class Unsupported(NotImplementedError):
  """This implementation cannot run here; the message says why and what can."""
