"""Writer and reader of a run's metrics: metrics.jsonl and TensorBoard."""

from collections.abc import Callable
import json
import math
import pathlib

import jax
import numpy as np
import tensorboardX

from jaxembed.files import place, url, whole_file

# on_metrics(step, values): told every record.
OnMetrics = Callable[[int, dict[str, float]], None]


class Writer:
  """Appends scalars to workdir/metrics.jsonl and workdir/tensorboard.

  `start_step` is where the run continues: records after it, left by a run that
  was killed between a checkpoint and its death, are cut off, so that no step is
  ever there twice. Only process 0 writes, and tells `on_metrics`.
  """

  def __init__(self, workdir: str | pathlib.Path, start_step: int = 0,
               on_metrics: OnMetrics | None = None):
    self._on_metrics = on_metrics
    self.first: dict[str, float | None] = {}  # by name, the run's first value
    self._silent = jax.process_index() > 0
    if self._silent:
      return
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    kept = [r for r in read(workdir) if r['step'] <= start_step]
    for record in kept:
      self.first = record | self.first
    with whole_file.opened(self.path) as part:
      part.writelines(json.dumps(r) + '\n' for r in kept)
    self._file = self.path.open('a')
    self._board = tensorboardX.SummaryWriter(
        str(pathlib.Path(workdir) / 'tensorboard'), purge_step=start_step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One record; values are scalars, non-finite ones become null in JSON."""
    if self._silent:
      return
    try:
      values = {k: float(np.asarray(v)) for k, v in values.items()}
    except (AttributeError, TypeError, ValueError):
      raise ValueError(f'step {step}: {values!r:.200} are no scores; give a number by '
                       'each name') from None
    record = {k: v if math.isfinite(v) else None for k, v in values.items()}
    self.first = record | self.first
    self._file.write(json.dumps({'step': step} | record) + '\n')
    self._file.flush()
    for name, value in values.items():
      if math.isfinite(value):  # it complains of others, and draws none
        self._board.add_scalar(name.replace('@', '_at_'), value, step)
    if self._on_metrics:
      self._on_metrics(step, values)

  def close(self) -> None:
    """Closes both files."""
    if self._silent:
      return
    self._file.close()
    self._board.close()


def read(workdir: str | pathlib.Path) -> list[dict]:
  """Records of a run, in order; lines that are none are dropped.

  Such as a last one that was cut short by a kill.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if where := url.of(path):
    try:
      path = place.fetched(where)
    except FileNotFoundError:
      return []
  text = path.read_text('utf-8', 'replace') if path.exists() else ''
  records = []
  for line in text.split('\n'):
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict) and isinstance(record.get('step'), int):
      records.append(record)
  return records
