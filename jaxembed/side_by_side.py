"""Programs of the model that share all cores of a CPU, or take one core each.

The threads of one program wait for each other after every product. Several batches at
a time, each on a core of its own and started by a thread of its own, do not: on two
cores that is a tenth to a half faster (BENCHMARKS.md).
"""

from collections.abc import Callable
import os
from typing import Any

import jax

# What XLA's documentation of its flags calls the way to a single thread.
_ONE_CORE = {'xla_cpu_multi_thread_eigen': False}


def program(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`f` compiled, with cfg static, and one more argument, `one_core`: whether a CPU
  computes it in one thread, beside others."""
  all_cores = jax.jit(f, static_argnames='cfg')
  alone = jax.jit(f, static_argnames='cfg', compiler_options=_ONE_CORE)

  def run(*args: Any, one_core: bool = False, **kwargs: Any) -> jax.Array:
    return (alone if one_core else all_cores)(*args, **kwargs)

  return run


def cores() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
