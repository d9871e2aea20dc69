"""Report of a run: report.png, and report.html, a page that needs no other file."""

import functools
import pathlib

from jaxembed import workdir as workdir_lib
from jaxembed.files import checked_json, url
from jaxembed.files.url import Objects
from jaxembed.train import curves, metrics, report_page


def _at_url(draw):
  """`draw(workdir, ...)` for URLs too: what it reads is brought, and the page sent."""
  @functools.wraps(draw)
  def drawn(workdir, *args, **kwargs):
    where = url.of(workdir)
    if where is None:
      return draw(workdir, *args, **kwargs)
    here = workdir_lib.fetched(where, weights=False)
    found = draw(here, *args, **kwargs)
    for name in ('report.png', 'report.html'):
      if (here / name).exists():
        Objects(where).write(name, here / name)
    return found
  return drawn


@_at_url
def plot(workdir: str | pathlib.Path, title: str = '') -> pathlib.Path:
  """Draws training loss and evaluation scores over steps; returns the PNG."""
  path = pathlib.Path(workdir) / 'report.png'
  curves.overview(metrics.read(workdir), title).savefig(path, dpi=120)
  return path


@_at_url
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
