"""Finds hard negatives for rows of queries and answers; the same command resumes.

  jaxembed mine --model=PATH --data=rows.jsonl --workdir=DIR \\
      [--corpus=texts.jsonl] [--depth=100] [--share=0.95] [--num_negatives=7]
  jaxembed mine --workdir=DIR --margin=0.1 --take=sample --out=other.jsonl

The texts are encoded once and searched once; DIR keeps vectors and candidates, and
rules are applied to these as often as one likes. DIR/mined.jsonl (or --out) gets a row
per query with its negatives and scores; a source of rows='mined' and path=DIR trains on
it. A second --model scores what the first one finds; --scores=NAME:FILE.jsonl takes
scores of any other teacher for the pairs that --export_pairs=FILE.jsonl wrote.
--export_errors=FILE.jsonl asks a language model for more of what goes wrong.
"""

import pathlib

from absl import flags

from jaxembed.config import SourceConfig
from jaxembed.mining import candidates, collection, inputs, miner, pairs
from jaxembed.mining.rules import Rules

from . import cli, named_models, synthetic_flags, typed_flags

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the mining run.')
_MODEL = flags.DEFINE_multi_string(
    'model', [], 'Folder or hub id of a model, or NAME=PATH; repeatable. The first one '
    'searches, all of them score.')
_DATA = flags.DEFINE_string('data', None, 'Rows to mine negatives for: a file, folder '
                            'or glob of .jsonl or .tsv.')
_KIND = flags.DEFINE_string('kind', 'jsonl', "What --data is, as in a source's kind.")
_COLUMNS = flags.DEFINE_list('columns', [], 'Columns of query, positive and negatives.')
_CORPUS = flags.DEFINE_string(
    'corpus', None, "More documents to find: .txt or .jsonl. The rows' own positives "
    'and negatives are always among them.')
_FIELD = flags.DEFINE_string('field', 'text', "The field of --corpus' rows; a title "
                             'beside it stands in front.')
_DEPTH = flags.DEFINE_integer('depth', 100, 'Candidates of each query.')
_PROMPTS = {name: flags.DEFINE_string(f'{name}_prompt', None, f'In front of {plural}, '
            "instead of the models' own.") for name, plural in (
                ('query', 'queries'), ('document', 'documents'))}
_DTYPE = flags.DEFINE_enum('dtype', 'float32', miner.DTYPES, 'Of vectors on disk.')
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts per step, all devices.')
_MEMORY = flags.DEFINE_float('memory_gib', 1.0, 'For blocks of a search.')
_SCORES = flags.DEFINE_multi_string('scores', [], 'NAME:FILE of scores; repeatable.')
_PAIRS = flags.DEFINE_string('export_pairs', None, 'File to write every pair to, for '
                             'another teacher to score.')
_RULES = typed_flags.define(Rules)
_WRITTEN = flags.DEFINE_string('written', '', 'The teacher whose scores rows get; '
                               'default: the one that rules compare.')
_OUT = flags.DEFINE_string('out', None, 'Rows to write; default: mined.jsonl of '
                           '--workdir.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace rows of other rules.')
flags.mark_flag_as_required('workdir')


def main():
  rules = _RULES()
  texts = _collection(cli.written(_WORKDIR))
  print(f'texts      {len(texts.queries)} queries, {len(texts.documents)} documents')
  models = dict(named_models.opened_later(model) for model in _MODEL.value)
  if models:
    prompts = miner.Prompts(**{name: flag.value for name, flag in _PROMPTS.items()})
    miner.mine(texts, models, depth=_DEPTH.value, dtype=_DTYPE.value,
               prompts=dict.fromkeys(models, prompts), batch_size=_BATCH.value,
               memory=int(_MEMORY.value * 2**30))
  for given in _SCORES.value:
    name, _, file = given.partition(':')
    pairs.read_scores(texts, name, file)
  table = candidates.Table.load(texts)
  print(f'candidates {table.rows.shape[1]} of each query, by {table.teacher}; scores '
        f'of {", ".join(table.scores)}')
  if _PAIRS.value:
    count = pairs.export(texts, table, _PAIRS.value, overwrite=_OVERWRITE.value)
    print(f'pairs      {count} written to {_PAIRS.value}')
    return
  if synthetic_flags.asked():
    synthetic_flags.run(texts, table, models, _OUT.value, _OVERWRITE.value)
    return
  miner.write_rows(texts, table, rules, _OUT.value, written=_WRITTEN.value,
                   overwrite=_OVERWRITE.value, say=print)
  print(f'written    {_OUT.value or texts.folder / miner.ROWS}')


def _collection(folder: pathlib.Path) -> collection.Collection:
  if not _DATA.value:
    return collection.load(folder)
  cfg = SourceConfig(name='rows', kind=_KIND.value, path=_DATA.value,
                     columns=tuple(_COLUMNS.value))
  return inputs.collect(folder, cfg, _CORPUS.value, _FIELD.value)


if __name__ == '__main__':
  cli.run(main)
