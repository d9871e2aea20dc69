"""Programs timed in turn."""

from collections.abc import Callable, Mapping
import time

import jax


def alternating(programs: Mapping[str, Callable[[], object]], repeats: int
                ) -> dict[str, list[float]]:
  """Seconds of every run of each program, results on a device waited for.

  The programs alternate: a noisy moment meets all of them.
  """
  times: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(repeats):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program())
      times[name].append(time.perf_counter() - start)
  return times
