"""Pictures of a run's records: loss, scores, learning rate, throughput."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

Record = Mapping[str, Any]
# What held_out.scorer gives, and of it what is no score between 0 and 1.
_SCORES = ('eval/ndcg@10', 'eval/mrr@10', 'eval/recall@10', 'eval/recall@1')
_GEOMETRY = ('eval/alignment', 'eval/uniformity', 'eval/effective_rank')
_SHARE = 0.04  # of a curve, the width of its running mean
_POINTS = 2000  # of a curve at most, evenly spread


def series(records: Iterable[Record], name: str) -> tuple[list[int], list[float]]:
  """Steps and values of the records that have a finite value called `name`."""
  points = [(r['step'], r[name]) for r in records
            if isinstance(r.get(name), int | float) and math.isfinite(r[name])]
  points = points[::max(len(points) // _POINTS, 1)]
  return [step for step, _ in points], [value for _, value in points]


def smooth(values: Sequence[float] | np.ndarray, share: float = _SHARE) -> np.ndarray:
  """Mean of each value's neighbours by a Gaussian whose width is `share` of them all.
  """
  curve = np.asarray(values, np.float64)
  at = np.arange(len(curve))
  width = max(share * len(curve), 1e-9)
  weights = np.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
  return weights @ curve / weights.sum(-1)


def interval_name(score: str) -> str:
  """Name of the record that holds half of a score's 95% interval."""
  return f'ci95/{score.removeprefix("eval/")}'


def score_names(records: Iterable[Record]) -> list[str]:
  """Names of the scores that a run has: the usual ones, then an evaluation's own."""
  found = dict.fromkeys(name for r in records for name in r if name.startswith('eval/'))
  usual = [name for name in _SCORES if name in found]
  return usual + [n for n in found if n not in _SCORES and n not in _GEOMETRY]


def overview(records: Sequence[Record], title: str = '') -> Figure:
  """Loss and scores side by side."""
  figure = _figure(9, 3.6)
  loss, scores = figure.subplots(1, 2)
  draw_loss(loss, records)
  draw_scores(scores, records)
  figure.suptitle(title)
  return figure


def single(draw: Callable[[Axes, Sequence[Record]], None], records: Sequence[Record]
           ) -> Figure:
  """A figure of one of the pictures below."""
  figure = _figure(5.4, 3.1)
  draw(figure.subplots(), records)
  return figure


def draw_loss(axes: Axes, records: Sequence[Record]) -> None:
  """The training loss of every record, pale, and its running mean."""
  steps, values = series(records, 'train/loss')
  axes.plot(steps, values, color='C0', alpha=0.3, linewidth=1)
  axes.plot(steps, smooth(values), color='C0', linewidth=1.8,
            label='running mean' if len(values) > 1 else None)
  _finish(axes, 'training loss', legend=len(values) > 1)


def draw_scores(axes: Axes, records: Sequence[Record]) -> None:
  """Held-out scores, with their 95% intervals."""
  for number, name in enumerate(score_names(records)[:4]):
    steps, values = series(records, name)
    spread = {r['step']: r.get(interval_name(name)) for r in records if name in r}
    if steps:
      half = [spread.get(step) or 0.0 for step in steps]
      axes.errorbar(steps, values, half if any(half) else None, color=f'C{number}',
                    marker='o', markersize=3.5, linewidth=1.4, elinewidth=0.8,
                    capsize=2, label=name.removeprefix('eval/'))
  _finish(axes, 'held-out pairs', legend=bool(axes.lines))


def draw_rate(axes: Axes, records: Sequence[Record]) -> None:
  """The learning rate, and the norm of the gradient on an axis of its own."""
  axes.plot(*series(records, 'train/lr'), color='C2', linewidth=1.6)
  axes.set_ylabel('learning rate', color='C2')
  other = axes.twinx()
  steps, values = series(records, 'train/grad_norm')
  other.plot(steps, smooth(values, 0.01), color='C3', linewidth=1)
  other.set_ylabel('gradient norm', color='C3')
  other.spines['top'].set_visible(False)
  _finish(axes, None)


def draw_speed(axes: Axes, records: Sequence[Record]) -> None:
  """Tokens per second since the record before."""
  axes.plot(*series(records, 'train/tokens_per_s'), color='C4', linewidth=1.4)
  axes.set_ylim(bottom=0)
  _finish(axes, 'tokens per second')


def _figure(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def _finish(axes: Axes, label: str | None, legend: bool = False) -> None:
  axes.set_xlabel('step')
  if label:
    axes.set_ylabel(label)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  if legend:
    axes.legend(frameon=False, fontsize=8, ncols=4, loc='lower center',
                bbox_to_anchor=(0.5, 1), borderaxespad=0.2)
