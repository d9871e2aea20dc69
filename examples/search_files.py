"""Search your files: paragraphs to vectors, a question to the nearest of them.

  python examples/search_files.py 'how is a checkpoint verified' --folder=docs
"""

import argparse
import pathlib

import jaxembed

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('question')
parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('docs'))
parser.add_argument('--ending', default='.md')
parser.add_argument('--model', default='sentence-transformers/all-MiniLM-L6-v2')
parser.add_argument('--top', type=int, default=3)


def paragraphs(folder: pathlib.Path, ending: str):
  """(file, paragraph) of every text of at least 40 characters."""
  for path in sorted(folder.rglob(f'*{ending}')):
    for part in path.read_text('utf-8', errors='replace').split('\n\n'):
      if len(part.strip()) >= 40:
        yield path, ' '.join(part.split())


def main():
  args = parser.parse_args()
  found = list(paragraphs(args.folder, args.ending))
  if not found:
    parser.error(f'no text in files *{args.ending} below {args.folder}')
  model = jaxembed.Embedder.load(args.model)
  vectors = model.encode_document([text for _, text in found])
  scores, rows = jaxembed.top_k(
      model.encode_query([args.question]), vectors, k=min(args.top, len(found)),
      similarity=model.similarity_fn_name)
  for score, row in zip(scores[0], rows[0]):
    path, text = found[row]
    print(f'{score:.3f}  {path}\n       {text[:160]}')


if __name__ == '__main__':
  main()
