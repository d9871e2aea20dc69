"""What the steps since the last record amount to, read without making them wait."""

from collections.abc import Callable, Sequence
import math
import time

import jax
import numpy as np

from jaxembed import types
from jaxembed.train import metrics


class Meter:
  """Reads each step's numbers one step late, so that the device never waits.

  A record holds the metrics of its step and, over the steps since the record
  before: tokens and pairs per second, the share of padding, loss_of/SOURCE (the
  mean loss of a source's rows) and, where `peak` is known, MFU.

  Args:
    flops: of the model on this process's part of a batch.
    peak: FLOP/s of all devices together; 0: unknown.
    parts: how many times this process's part the whole batch is.
  """

  def __init__(self, writer: metrics.Writer, bar, *, every: int, last: int,
               sources: Sequence[str], flops: Callable[[types.Batch], float],
               peak: float = 0.0, parts: float = 1.0):
    self._writer, self._bar, self._every, self._last = writer, bar, every, last
    self._sources, self._flops_of, self._peak = sources, flops, peak
    self._parts, self._pending = parts, None
    self._begin()

  def _begin(self):
    self._since = time.perf_counter()
    self._tokens = self._padded = self._pairs = self._flops = 0
    self._loss, self._rows = np.zeros((2, len(self._sources)))

  def read(self, now: int, values: types.Metrics, batch: types.Batch):
    """Remembers this step's numbers and settles the step before."""
    self.flush()
    self._pending = now, values, batch.pairing.query_id
    self._tokens += sum(int(m.sum()) for m in batch.masks) * self._parts
    self._padded += sum(m.size for m in batch.masks) * self._parts
    self._pairs += len(batch.pairing.query_id) * self._parts
    if self._peak:
      self._flops += self._flops_of(batch) * self._parts

  def flush(self):
    """Settles the step in flight: checks, counts, and writes it when due."""
    if self._pending is None:
      return
    now, values, ids = self._pending
    self._pending = None
    loss = float(values['train/loss'])
    if not math.isfinite(loss):
      raise FloatingPointError(
          f'loss is {loss} at step {now} (query ids {ids[:8].tolist()} ...); no '
          'checkpoint holds it. Lower optim.peak_lr, set optim.clip_norm, or look '
          'at these rows')
    self._loss += np.asarray(values.pop('sources/loss'))
    self._rows += np.asarray(values.pop('sources/rows'))
    self._bar.update()
    if now % self._every and now != self._last and now != 1:
      return
    rates = self._rates(time.perf_counter() - self._since)
    self._writer.write(now, jax.device_get(values) | rates)
    self._bar.set_postfix_str(
        f'loss {loss:.4f}, {rates["train/tokens_per_s"]:,.0f} tokens/s')
    self._begin()

  def _rates(self, seconds: float) -> dict[str, float]:
    rates = {'train/tokens_per_s': self._tokens / seconds,
             'train/pairs_per_s': self._pairs / seconds,
             'train/padding': 1 - self._tokens / self._padded}
    if self._peak:
      rates['train/mfu'] = self._flops / seconds / self._peak
    return rates | {
        f'loss_of/{name}': loss / rows
        for name, loss, rows in zip(self._sources, self._loss, self._rows) if rows}
