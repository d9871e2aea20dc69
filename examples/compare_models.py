"""Two models on the same queries: is the difference more than luck?

  python examples/compare_models.py A B --data=pairs.jsonl

Every query ranks the positives of all rows. The interval is of the mean difference of
reciprocal ranks, by 10,000 draws of queries (paired bootstrap).
"""

import argparse

import numpy as np

import jaxembed
from jaxembed import config, data

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('models', nargs=2, help='hub ids, folders or runs')
parser.add_argument('--data', default='', help="pairs; '': installed Python code")
parser.add_argument('--limit', type=int, default=500)


def reciprocal_ranks(model: jaxembed.Embedder, rows) -> np.ndarray:
  """Of every query: 1 over the place of its own positive.  -> [Q]"""
  passages = list(dict.fromkeys(row.positives[0].text for row in rows))
  place = {text: i for i, text in enumerate(passages)}
  scores = model.similarity(model.encode_query([row.query for row in rows]),
                            model.encode_document(passages))
  own = scores[np.arange(len(rows)), [place[row.positives[0].text] for row in rows]]
  return 1 / (scores >= own[:, None]).sum(1)


def main():
  args = parser.parse_args()
  source = (config.SourceConfig(name='pairs', path=args.data) if args.data else
            config.SourceConfig(name='python', kind='installed_code', split='test'))
  loaded = data.load(source)
  rows = [loaded[i] for i in range(min(args.limit, len(loaded)))]
  first, second = (reciprocal_ranks(jaxembed.Embedder.load(name), rows)
                   for name in args.models)
  drawn = np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))
  low, high = np.quantile((second - first)[drawn].mean(1), [0.025, 0.975])
  for name, ranks in zip(args.models, (first, second)):
    print(f'MRR {ranks.mean():.4f}  {name}')
  print(f'difference {np.mean(second - first):+.4f}, 95% of draws in '
        f'[{low:+.4f}, {high:+.4f}]: '
        + ('more than luck' if low > 0 or high < 0 else 'these queries cannot tell'))


if __name__ == '__main__':
  main()
