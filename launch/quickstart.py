"""The whole way on a real model: score, train, score again, export, search.

  jaxembed quickstart --workdir=DIR [--config.stages[0].steps=20 ...]

Run again with the same workdir, it resumes what was interrupted and repeats
nothing that is finished.
"""

import json
import sys
import time

from absl import flags
from ml_collections import config_flags

from jaxembed import bundle, config, search
from jaxembed.convert import exporters
from jaxembed.data import sources
from jaxembed.embedder import Embedder
from jaxembed.files import url
from jaxembed.train import fit, metrics, report_page, stages

from . import cli, commands, tables

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/quickstart', 'Folder of the run.')

SEARCHES = ('copy a directory tree recursively',
            'parse a date written as text',
            'split a string into words, keeping quoted parts together')
_WHAT_COMES = """\
What comes, in about {minutes} minutes on two free CPU cores:
  1  functions and docstrings of the installed Python packages are read
  2  all-MiniLM-L6-v2 with a new head is scored on {held_out} held-out functions
  3  it is trained for {steps} steps, and scored again
  4  it is exported for sentence-transformers, and its vectors compared in torch
  5  a few searches, the scores before and after, where everything lies
Ctrl-C saves; the same command continues."""


def main():
  begun = time.perf_counter()
  cfg, folder = _CONFIG.value, url.local(_WORKDIR.value, 'give a local --workdir')
  stop = cli.stop_on_signals()
  steps = sum(stage.steps for stage in cfg.stages)
  print(_WHAT_COMES.format(steps=steps, held_out=cfg.eval.limit,
                           minutes=round(2 + steps / 20)), flush=True)
  state, _ = fit.run(cfg, folder, should_stop=stop)
  if stop() and int(state.step) < stages.stages(cfg)[-1].last:
    sys.exit(stop())

  exported = folder / 'sentence-transformers'
  if not exported.exists():
    exporters.export(bundle.open(folder), exported)
  parity = json.loads((exported / 'parity.json').read_text())

  show_searches(Embedder.load(folder), cfg)
  minutes = (time.perf_counter() - begun) / 60
  print(f'\n{tables.aligned(report_page.scores(metrics.read(folder)))}\n\n'
        f'run         {folder}, {minutes:.1f} min\n'
        f'report      {folder / "report.html"}\n'
        f'exported    {exported}: its vectors in torch differ by '
        f'{parity["max_difference"]:.1e} at most\n'
        f"next        jaxembed.Embedder.load('{folder}'), or in sentence-transformers\n"
        f"            SentenceTransformer('{exported}', trust_remote_code=True)\n"
        '            jaxembed train --help, for data of your own'
        f'{commands.where()}')


def show_searches(embedder: Embedder, cfg: config.Config, top: int = 2):
  """Prints the best functions for a few plain-language descriptions."""
  assert cfg.eval.source is not None  # the recipe names one
  rows = sources.load(cfg.eval.source)
  count = min(len(rows), cfg.eval.limit)
  code = [rows[i].positives[0].text for i in range(count)]
  vectors = embedder.encode(code, show_progress_bar=False)
  values, hits = search.top_k(
      embedder.encode(list(SEARCHES), show_progress_bar=False), vectors,
      k=min(top, len(code)), similarity=embedder.similarity_fn_name)
  print(f'searches   of {len(code)} functions')
  for query, value, hit in zip(SEARCHES, values, hits):
    print(f'"{query}"')
    for score, i in zip(value, hit):
      print(f'  {score:.3f}  {" ".join(code[i].split())[:76]}')


if __name__ == '__main__':
  cli.run(main, 'quickstart')
