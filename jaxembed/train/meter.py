"""Throughput and loss statistics of training, read one step late."""

import collections
from collections.abc import Callable, Mapping, Sequence
import math
import time

import jax
import numpy as np

from jaxembed import types
from jaxembed.train import metrics, progress


class Meter:
  """Reads each step's numbers one step late, so that the device never waits.

  A record holds the metrics of its step and, over the steps since the record
  before: tokens and pairs per second, the share of padding, loss_of/SOURCE (the
  mean loss of a source's rows), the updates left out (train/skipped) and, where `peak`
  is known, MFU; and what became of texts (data/truncated_queries, ...), counted.

  Args:
    flops: of the model on this process's part of a batch.
    peak: FLOP/s of all devices together; 0: unknown.
    parts: how many times this process's part the whole batch is.
    max_skipped: so many updates in a row may be left out.

  Attributes:
    totals: over all steps read, of queries, passages and what became of texts.
    last_good: the newest step whose loss and update were finite; 0: none yet.
    in_a_row: the updates after it that were left out.
  """

  def __init__(self, writer: metrics.Writer, bar: progress.Progress, *, every: int,
               last: int, sources: Sequence[str],
               flops: Callable[[types.Batch], float],
               peak: float = 0.0, parts: float = 1.0, max_skipped: int = 0):
    self._writer, self._bar, self._every, self._last = writer, bar, every, last
    self._sources, self._flops_of, self._peak = sources, flops, peak
    self._parts, self._pending = parts, None
    self._max_skipped, self.in_a_row, self._told = max_skipped, 0, False
    self.totals, self.last_good = collections.Counter(), 0
    self._begin()

  def _begin(self):
    self._since = time.perf_counter()
    self._tokens = self._padded = self._pairs = self._flops = 0
    self._loss, self._rows = np.zeros((2, len(self._sources)))
    self._skipped, self._counts = 0, collections.Counter()

  def read(self, now: int, values: types.Metrics, batch: types.Batch,
           counts: Mapping[str, int] | None = None) -> None:
    """Remembers this step's numbers and settles the step before.

    counts: of this process's texts, by what became of them.
    """
    self.flush()
    self._pending = now, values, batch.pairing.query_id
    self._counts.update({k: v * self._parts for k, v in (counts or {}).items()})
    self._tokens += sum(int(m.sum()) for m in batch.masks) * self._parts
    self._padded += sum(m.size for m in batch.masks) * self._parts
    self._pairs += len(batch.pairing.query_id) * self._parts
    self.totals.update({
        'queries': len(batch.pairing.query_id) * self._parts,
        'passages': int((batch.pairing.owner >= 0).sum()) * self._parts,
        } | {k: v * self._parts for k, v in (counts or {}).items()})
    if self._peak:
      self._flops += self._flops_of(batch) * self._parts

  def flush(self) -> None:
    """Settles the step in flight: checks, counts, and writes it when due."""
    if self._pending is None:
      return
    now, values, ids = self._pending
    self._pending = None
    loss, skipped = jax.device_get(
        (values['train/loss'], values.pop('train/skipped', 0)))
    self._check(now, float(loss), bool(skipped), values, ids)
    self._loss += np.asarray(values.pop('sources/loss'))
    self._rows += np.asarray(values.pop('sources/rows'))
    self._bar.update()
    if (not self._every or now % self._every) and now != self._last and now != 1:
      return
    self._tell_idle(now, float(values.get('loss/rows_without_negatives', 0)))
    rates = self._rates(time.perf_counter() - self._since)
    self._writer.write(now, jax.device_get(values) | rates)
    self._bar.set_postfix_str(
        f'loss {loss:.4f}, {rates["train/tokens_per_s"]:,.0f} tokens/s')
    self._begin()

  def _check(self, now: int, loss: float, skipped: bool, values, ids):
    """Counts an update that was left out; raises where that is not the end of it."""
    where = f'step {now} (query ids {ids[:8].tolist()} ...)'
    remedy = ('Lower optim.peak_lr or set optim.clip_norm and give the same command '
              'again: it goes on from the last good state; or look at these rows')
    if not math.isfinite(loss):
      raise FloatingPointError(
          f'loss is {loss} at {where}; no checkpoint holds it. {remedy}')
    self._skipped += skipped
    self.in_a_row = self.in_a_row + 1 if skipped else 0
    if not skipped:
      self.last_good = now
      return
    norm = float(values['train/grad_norm'])
    problem = (f'the gradient has norm {norm}' if not math.isfinite(norm) else
               'an embedding is not finite')
    self._bar.write(f'skipped    {where}: {problem}; the update was left out')
    if self.in_a_row > self._max_skipped:
      raise FloatingPointError(
          f'{problem} at {where}, and {self.in_a_row} updates in a row were left out '
          f'(optim.max_skipped={self._max_skipped}); no checkpoint holds them. '
          f'{remedy}')

  def _tell_idle(self, now: int, share: float):
    """Tells, once, that most rows have nothing to be told apart from."""
    if share >= 0.5 and not self._told:
      self._told = True
      self._bar.write(
          f'note       step {now}: {share:.0%} of the rows have no negative and teach '
          'nothing; texts may be equal once they are cut, or batches too small')

  def _rates(self, seconds: float) -> dict[str, float]:
    rates = {'train/tokens_per_s': self._tokens / seconds,
             'train/pairs_per_s': self._pairs / seconds,
             'train/padding': 1 - self._tokens / self._padded,
             'train/skipped': self._skipped}
    rates |= {f'data/{name}': float(n) for name, n in self._counts.items()}
    if self._peak:
      rates['train/mfu'] = self._flops / seconds / self._peak
    return rates | {
        f'loss_of/{name}': loss / rows
        for name, loss, rows in zip(self._sources, self._loss, self._rows) if rows}


def texts(totals: Mapping[str, float]) -> str:
  """What became of the texts of a stage, in words; '': all were taken whole."""
  told = []
  for side in ('queries', 'passages'):
    if cut := totals.get(f'truncated_{side}'):
      told.append(f'{cut:.0f} of {totals[side]:.0f} {side} were longer than '
                  f'{"query" if side == "queries" else "passage"}_lengths allow '
                  'and were cut')
  told += [f'{name.replace("_", " ")}: {n:.0f}' for name, n in totals.items()
           if n and name not in ('queries', 'passages')
           and not name.startswith('truncated_')]
  return '; '.join(told)
