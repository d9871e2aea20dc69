"""Scores a model on a task and writes the figures as JSON.

  jaxembed evaluate --model=PATH --task=retrieval --data=FOLDER \\
      [--split=test] [--out=scores.json]
  jaxembed evaluate --model=PATH --task=sts --data=FILE.tsv
  jaxembed evaluate --model=PATH --task=classification --data=FOLDER   or clustering
  jaxembed evaluate --model=PATH --task=passkey --data=FILLER.txt \\
      [--length=grouped:target=4096] [--lengths=512,1024] [--out=F.json]

PATH is a jaxembed workdir, a sentence-transformers or Hugging Face folder, or a
hub id. A retrieval FOLDER has BEIR's form: corpus.jsonl, queries.jsonl,
qrels/SPLIT.tsv; the others have train.jsonl (for classification) and SPLIT.jsonl,
with rows of text and label. The TSV has the columns score, sentence1 and sentence2.
FILLER.txt, of passkey or needle, is any text; F.png shows scores by length and depth.
Texts stand behind the model's own prompts unless others are named.
"""

import json
import math
import time
from typing import Any

from absl import flags

from jaxembed import embedder, sharding
from jaxembed.evaluation import metrics, tasks
from jaxembed.files import whole_file

from . import cli, length_flags, length_grid, step_flag

_STEP = step_flag.define()
_LENGTH = length_flags.define()
_MODEL = flags.DEFINE_string('model', None, 'Folder or hub id of the model.')
_TASK = flags.DEFINE_enum('task', None, tasks.NAMES, 'What to score.')
_DATA = flags.DEFINE_string('data', None, 'Folder, or file (sts).')
_OPTIONS = {
    'split': flags.DEFINE_string('split', 'test', 'Which qrels or rows to score.'),
    'cutoffs': flags.DEFINE_multi_integer('k', list(metrics.CUTOFFS),
                                          'Ranks to cut at.'),
    'drop_same_id': flags.DEFINE_bool(
        'drop_same_id', True, "Leave the document whose id is the query's own out of "
        'its ranking, as BEIR does.'),
    'batch_size': flags.DEFINE_integer('batch_size', 32, 'Texts a step, all devices.'),
    'truncate_dim': flags.DEFINE_integer('truncate_dim', None,
                                         'Use the first so many dimensions.'),
} | {name: flags.DEFINE_string(name, None, help_) for name, help_ in (
    ('query_prompt', 'Text in front of queries (retrieval).'),
    ('query_prompt_name', "The model's prompt for queries, by name."),
    ('document_prompt', 'Text in front of documents (retrieval).'),
    ('document_prompt_name', "The model's prompt for documents, by name."),
    ('prompt', 'Text in front of texts (other tasks).'),
    ('prompt_name', "The model's prompt for texts, by name."))}
_PROBES = length_grid.define()
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --out.')
flags.mark_flags_as_required(['model', 'task', 'data'])


def main():
  out = cli.written(_OUT)
  if out:
    whole_file.refuse_existing(out, _OVERWRITE.value,
                               'pass --overwrite or another --out')
    out.parent.mkdir(parents=True, exist_ok=True)  # or an error, before any work
  options = _options()
  options.check(cli.given(_TASK))
  mesh = sharding.mesh_of_several()
  model = embedder.Embedder.load(cli.given(_MODEL), mesh=mesh, step=_STEP(),
                                 length=_LENGTH.method())
  _LENGTH.apply(model)
  begun = time.perf_counter()
  try:
    scores = length_grid.run(cli.given(_TASK), model, _DATA.value, options, out)
  except ModuleNotFoundError as error:
    raise ValueError(f'--task={_TASK.value} needs {error.name}, which is not here; '
                     "pip install 'jaxembed[evaluation]'") from error
  seconds = time.perf_counter() - begun
  for name, score in scores.items():
    print(f'{name:>12} {score:.4f}')
  given = {name: flag.value for name, flag in _OPTIONS.items()
           if 'prompt' in name and flag.value is not None}
  result = {'model': _MODEL.value, 'task': _TASK.value, 'data': _DATA.value,
            'split': options.split, 'similarity': model.similarity_fn_name, **given,
            # JSON has no NaN: a figure that does not exist is null.
            'scores': {k: v if math.isfinite(v) else None for k, v in scores.items()},
            'seconds': round(seconds, 1), 'padding': round(model.report.padding, 4)}
  if out:
    out.write_text(json.dumps(result, indent=2) + '\n')
  print(f'{seconds:.0f} s, padding {model.report.padding:.1%} of the last batch of '
        f'texts{f", written to {out}" if out else ""}')


def _options() -> tasks.Options:
  given: dict[str, Any] = {name: flag.value for name, flag in _OPTIONS.items()}
  return tasks.Options(**given, **length_grid.given(_PROBES))


if __name__ == '__main__':
  cli.run(main)
