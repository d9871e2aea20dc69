"""Scores a model on a task and writes the figures as JSON.

  python -m launch.evaluate --model=PATH --task=retrieval --data=FOLDER \\
      [--split=test] [--out=scores.json]
  python -m launch.evaluate --model=PATH --task=sts --data=FILE.tsv
  python -m launch.evaluate --model=PATH --task=classification --data=FOLDER
  python -m launch.evaluate --model=PATH --task=clustering --data=FOLDER

PATH is a jaxembed workdir, a sentence-transformers or Hugging Face folder, or a
hub id. A retrieval FOLDER has BEIR's form: corpus.jsonl, queries.jsonl,
qrels/SPLIT.tsv; the others have train.jsonl (for classification) and SPLIT.jsonl,
with rows of text and label. The TSV has the columns score, sentence1 and sentence2.
"""

import json
import pathlib
import time

from absl import flags
import jax

from jaxembed import embedder, sharding
from jaxembed.data import beir
from jaxembed.evaluation import classification, clustering, metrics, retrieval, sts
from launch import cli

_MODEL = flags.DEFINE_string('model', None, 'Folder or hub id of the model.')
_TASK = flags.DEFINE_enum(
    'task', None, ['retrieval', 'sts', 'classification', 'clustering'],
    'What to score.')
_DATA = flags.DEFINE_string('data', None, 'Folder, or file (sts).')
_SPLIT = flags.DEFINE_string('split', 'test', 'Which qrels or rows to score.')
_CUTOFFS = flags.DEFINE_multi_integer('k', list(metrics.CUTOFFS), 'Ranks to cut at.')
_DROP = flags.DEFINE_bool('drop_same_id', False, 'Ignore the document whose id is '
                          "the query's own.")
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts per step, all devices.')
_DIM = flags.DEFINE_integer('truncate_dim', None, 'Use the first so many dimensions.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --out.')
flags.mark_flags_as_required(['model', 'task', 'data'])


def main():
  out = pathlib.Path(_OUT.value) if _OUT.value else None
  if out and out.exists() and not _OVERWRITE.value:
    raise FileExistsError(f'{out} exists; pass --overwrite or another --out')
  mesh = sharding.make_mesh() if jax.device_count() > 1 else None
  model = embedder.Embedder.load(_MODEL.value, mesh=mesh)
  begun = time.perf_counter()
  try:
    scores = _RUNNERS[_TASK.value](model)
  except ModuleNotFoundError as error:
    raise ValueError(f'--task={_TASK.value} needs {error.name}, which is not here; '
                     "pip install 'jaxembed[evaluation]'") from error
  seconds = time.perf_counter() - begun
  for name, score in scores.items():
    print(f'{name:>12} {score:.4f}')
  result = {'model': _MODEL.value, 'task': _TASK.value, 'data': _DATA.value,
            'split': _SPLIT.value, 'scores': scores, 'seconds': round(seconds, 1),
            'padding': round(model.report.padding, 4)}
  if out:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + '\n')
  print(f'{seconds:.0f} s, padding {model.report.padding:.1%} of the last batch of '
        f'texts{f", written to {out}" if out else ""}')


def _retrieval(model):
  task = beir.load(_DATA.value, _SPLIT.value)
  return retrieval.evaluate(
      model, task.corpus, task.queries, task.qrels, cutoffs=_CUTOFFS.value,
      batch_size=_BATCH.value, truncate_dim=_DIM.value, drop_same_id=_DROP.value)


def _sts(model):
  pairs = beir.load_scored(_DATA.value)
  return sts.evaluate(model, pairs.first, pairs.second, pairs.scores,
                      batch_size=_BATCH.value, truncate_dim=_DIM.value)


def _classification(model):
  train = beir.load_labelled(_DATA.value, 'train')
  test = beir.load_labelled(_DATA.value, _SPLIT.value)
  return classification.evaluate(
      model, train.texts, train.labels, test.texts, test.labels,
      batch_size=_BATCH.value, truncate_dim=_DIM.value)


def _clustering(model):
  task = beir.load_labelled(_DATA.value, _SPLIT.value)
  return clustering.evaluate(model, task.texts, task.labels,
                             batch_size=_BATCH.value, truncate_dim=_DIM.value)


_RUNNERS = {'retrieval': _retrieval, 'sts': _sts, 'classification': _classification,
            'clustering': _clustering}

if __name__ == '__main__':
  cli.run(main)
