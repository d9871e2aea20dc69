"""Report of a run: report.png, and report.html, a page that needs no other file."""

import pathlib

from jaxembed.files import checked_json
from jaxembed.train import curves, metrics, report_page


def plot(workdir: str | pathlib.Path, title: str = '') -> pathlib.Path:
  """Draws training loss and evaluation scores over steps; returns the PNG."""
  path = pathlib.Path(workdir) / 'report.png'
  curves.overview(metrics.read(workdir), title).savefig(path, dpi=120)
  return path


def write(workdir: str | pathlib.Path, title: str = '') -> pathlib.Path:
  """Writes report.png and report.html of a run, finished or not; returns the page.

  The page holds the curves, the scores with their intervals, the data, the settings and
  the environment of every start.

  Raises:
    FileNotFoundError: `workdir` is no run.
  """
  folder = pathlib.Path(workdir)
  if not (folder / 'manifest.json').is_file():
    raise FileNotFoundError(f'{folder} is no run: it has no manifest.json; give the '
                            'workdir of one')
  plot(folder, title)
  path = folder / 'report.html'
  manifest = checked_json.read(folder / 'manifest.json', finite=False)
  path.write_text(report_page.render(
      manifest, metrics.read(folder), title or manifest['config']['name']), 'utf-8')
  return path
