"""LoRA adapters on a few rows, merged, and used in sentence-transformers.

  python examples/lora_to_sentence_transformers.py --target=exports/colours
"""

import argparse

import numpy as np
from sentence_transformers import SentenceTransformer

import jaxembed

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--model', default='sentence-transformers/all-MiniLM-L6-v2')
parser.add_argument('--workdir', default='runs/colours')
parser.add_argument('--target', default='exports/colours')
parser.add_argument('--steps', type=int, default=20)

PROMPTS = {'query': 'Name the colour: '}
ROWS = [{'query': f'the colour of {thing}', 'positive': f'{colour} is a colour'}
        for thing, colour in {
            'a ripe tomato': 'Red', 'fresh snow': 'White', 'a clear sky': 'Blue',
            'a lemon': 'Yellow', 'coal': 'Black', 'grass in spring': 'Green',
            'a carrot': 'Orange', 'a ripe plum': 'Purple'}.items()]


def main():
  args = parser.parse_args()
  run = jaxembed.fit(args.model, ROWS, workdir=args.workdir, steps=args.steps,
                     batch_size=8, lora=8, learning_rate=1e-3, prompts=PROMPTS)
  report = jaxembed.export(run.model, args.target)  # compared in torch beforehand
  print(report['told'])

  ours, theirs = run.model, SentenceTransformer(args.target, device='cpu')
  questions = [row['query'] for row in ROWS]
  difference = np.abs(ours.encode_query(questions) - theirs.encode_query(questions))
  print(f'largest difference of a query, prompt included: {difference.max():.1e}')
  assert difference.max() < 1e-5


if __name__ == '__main__':
  main()
