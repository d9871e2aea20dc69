"""The whole way on a real model: evaluate, train, evaluate, export, search.

  jaxembed quickstart --workdir=DIR [--config.stages[0].steps=20 ...]

Run again with the same workdir, it resumes what was interrupted and repeats
nothing that is finished.
"""

import json
import pathlib
import time

from absl import flags
from ml_collections import config_flags

from jaxembed import bundle, search
from jaxembed.convert import exporters
from jaxembed.data import sources
from jaxembed.embedder import Embedder
from jaxembed.evaluation import held_out
from jaxembed.train import loop, metrics

from . import cli

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment file or recipe.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/quickstart', 'Folder of the run.')

SEARCHES = ('copy a directory tree recursively',
            'parse a date written as text',
            'split a string into words, keeping quoted parts together')


def main():
  begun = time.perf_counter()
  cfg, folder = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  loop.train(cfg, folder, evaluate=held_out.scorer(cfg.eval, cfg.stages),
             should_stop=cli.stop_on_signals())
  scores = [r['eval/ndcg@10'] for r in metrics.read(folder) if 'eval/ndcg@10' in r]

  exported = folder / 'sentence-transformers'
  if not exported.exists():
    exporters.export(bundle.open(folder), exported)
  parity = json.loads((exported / 'parity.json').read_text())

  show_searches(Embedder.load(folder), cfg)
  print(f'\nnDCG@10 on held-out functions: {scores[0]:.4f} before, '
        f'{scores[-1]:.4f} after ({scores[-1] - scores[0]:+.4f})\n'
        f'largest difference to torch:   {parity["max_difference"]:.1e}\n'
        f'time:                          {(time.perf_counter() - begun) / 60:.1f} min'
        f'\n\nrun         {folder}\npicture     {folder / "report.png"}\n'
        f'exported    {exported}\n'
        'next        SentenceTransformer(folder, trust_remote_code=True), or '
        f"jaxembed.Embedder.load('{folder}')")


def show_searches(embedder: Embedder, cfg, top: int = 3):
  """Prints the best functions for a few plain-language descriptions."""
  rows = sources.load(cfg.eval.source)
  count = min(len(rows), cfg.eval.limit)
  code = [rows[i].positives[0].text for i in range(count)]
  vectors = embedder.encode(code, show_progress_bar=False)
  values, hits = search.top_k(
      embedder.encode(list(SEARCHES)), vectors, k=min(top, len(code)),
      similarity=embedder.similarity_fn_name)
  for query, value, hit in zip(SEARCHES, values, hits):
    print(f'\n"{query}"  ({len(code)} functions)')
    for score, i in zip(value, hit):
      print(f'  {score:.3f}  {" ".join(code[i].split())[:88]}')


if __name__ == '__main__':
  cli.run(main, 'quickstart')
