"""A trace of a few steps, for TensorBoard's profile tab, Perfetto or XProf."""

import pathlib

import jax

from jaxembed import types


class Profiler:
  """Traces the steps first to last, both included, into `folder`; or, None, none."""

  def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None):
    self._folder, self._steps, self._open = folder, steps, False

  def before(self, now: int) -> None:
    """To be called before step `now`."""
    if self._steps and not self._open and self._steps[0] <= now <= self._steps[1]:
      jax.profiler.start_trace(str(self._folder))
      self._open = True

  def after(self, now: int, state: types.TrainState) -> None:
    """And after it; waits for `state` when the trace ends here."""
    if self._open and self._steps and now >= self._steps[1]:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is under way."""
    if self._open:
      self._open = False
      jax.profiler.stop_trace()
