"""Plot of a run's training loss and evaluation scores."""

import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxembed.train import metrics


def plot(workdir: str | pathlib.Path, title: str = '') -> pathlib.Path:
  """Draws training loss and evaluation scores over steps; returns the PNG."""
  records = metrics.read(workdir)
  figure = Figure(figsize=(9, 3.6), layout='constrained')
  FigureCanvasAgg(figure)
  loss, score = figure.subplots(1, 2)
  _line(loss, records, 'train/loss', marker='.')
  loss.set(xlabel='step', ylabel='training loss')
  _line(score, records, 'eval/ndcg@10', marker='o')
  score.set(xlabel='step', ylabel='nDCG@10, held-out pairs')
  for axes in (loss, score):
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  figure.suptitle(title)
  path = pathlib.Path(workdir) / 'report.png'
  figure.savefig(path, dpi=120)
  return path


def _line(axes, records, name, **style):
  points = [(r['step'], r[name]) for r in records if r.get(name) is not None]
  if points:
    axes.plot(*zip(*points), linewidth=1.2, **style)
