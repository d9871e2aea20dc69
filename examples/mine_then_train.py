"""Mine hard negatives with a model, then train it on them.

  python examples/mine_then_train.py --limit=2000 --steps=60

Docstrings look for functions of the installed packages. What scores above 95% of a
positive's score may be an answer too, and is left out (NV-Retriever's rule).
"""

import argparse
import pathlib

import jaxembed
from jaxembed import config, data
from jaxembed.mining import inputs, miner
from jaxembed.mining.rules import Rules

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--model', default='sentence-transformers/all-MiniLM-L6-v2')
parser.add_argument('--workdir', type=pathlib.Path, default='runs/mine_then_train')
parser.add_argument('--limit', type=int, default=2000, help='rows')
parser.add_argument('--negatives', type=int, default=3)
parser.add_argument('--steps', type=int, default=60)
parser.add_argument('--batch_size', type=int, default=16)


def main():
  args = parser.parse_args()
  rows = config.SourceConfig(name='python', kind='installed_code', limit=args.limit)
  mined = args.workdir / 'mined'
  texts = inputs.collect(mined, rows)
  table = miner.mine(texts, {'first': lambda: jaxembed.Embedder.load(args.model)},
                     depth=min(50, args.limit))
  miner.write_rows(texts, table, Rules(share=0.95, num_negatives=args.negatives),
                   overwrite=True, say=print)

  loaded = data.load(config.SourceConfig(
      name='held_out', kind='installed_code', split='test', limit=args.limit // 4))
  held_out = [{'query': row.query, 'positive': row.positives[0].text} for row in loaded]
  run = jaxembed.fit(
      args.model, config.SourceConfig(name='mined', rows='mined', path=str(mined)),
      eval_data=held_out, workdir=args.workdir / 'run', steps=args.steps,
      batch_size=args.batch_size, max_length=128)
  scores = [record['eval/ndcg@10'] for record in run.metrics
            if 'eval/ndcg@10' in record]
  print(f'nDCG@10 of {len(held_out)} queries that were not trained on: '
        f'{scores[0]:.4f} before, {scores[-1]:.4f} after')


if __name__ == '__main__':
  main()
