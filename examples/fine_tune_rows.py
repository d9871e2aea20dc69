"""Fine-tune on rows in memory: Python functions, found by their docstrings.

  python examples/fine_tune_rows.py --steps=60
"""

import argparse
import ast
import pathlib
import sysconfig

import jaxembed

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--model', default='sentence-transformers/all-MiniLM-L6-v2')
parser.add_argument('--workdir', default='runs/fine_tune_rows')
parser.add_argument('--steps', type=int, default=60)
parser.add_argument('--batch_size', type=int, default=32)
parser.add_argument('--limit', type=int, default=2000)


def functions(limit: int):
  """Rows of the standard library: a docstring's first line, and the function's code."""
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  for path in sorted(folder.glob('*.py')):
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      said = isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
      if said and len(node.body) > 1 and len(said.split('\n')[0]) > 20 and limit > 0:
        limit -= 1
        node.body = node.body[1:]  # without the docstring
        yield {'query': said.split('\n')[0], 'positive': ast.unparse(node)[:1000]}


def main():
  args = parser.parse_args()
  rows = list(functions(args.limit))
  held_out, train = rows[::5], [row for i, row in enumerate(rows) if i % 5]
  before = jaxembed.evaluate(args.model, held_out)
  run = jaxembed.fit(args.model, train, eval_data=held_out, workdir=args.workdir,
                     steps=args.steps, batch_size=args.batch_size, max_length=128)
  after = jaxembed.evaluate(run.model, held_out)
  print(f'{len(train)} rows, {len(held_out)} held out; nDCG@10 '
        f'{before["ndcg@10"]:.4f} before, {after["ndcg@10"]:.4f} after')
  print(f'picture {run.report().path}')


if __name__ == '__main__':
  main()
