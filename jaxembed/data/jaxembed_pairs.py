"""Builder of a TensorFlow Datasets set from a folder of rows.

  from jaxembed.data import jaxembed_pairs
  jaxembed_pairs.build(FOLDER, WHERE)

or, where TensorFlow is installed, which the command line of TFDS imports:

  tfds build PATH/TO/jaxembed/data/jaxembed_pairs.py --manual_dir=FOLDER \\
      --file_format=array_record --data_dir=WHERE

FOLDER holds files of rows in any shape that records.from_row reads, of any kind that
SourceConfig.kind knows by its name (jsonl, csv, tsv, parquet, arrow, packed or not).
Each file whose name begins with the name of a split (train, validation, test) is part
of it, all others are of train. The set is then a source: kind='tfds',
path='jaxembed_pairs', data_dir=WHERE.
"""

from collections.abc import Iterator
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxembed.config import SourceConfig
from jaxembed.config.source import FILES, kind_of
from jaxembed.data import readers, records
from jaxembed.files import place

_SPLITS = ('train', 'validation', 'test')


@place.remote(reads=('folder',))
def build(folder: str | os.PathLike, data_dir: str | os.PathLike) -> None:
  """Makes the set of a folder of rows in `data_dir`, without TensorFlow.

  Raises:
    BadRow: a row cannot be used, with its file and line.
    FileNotFoundError: the folder has no files of rows.
  """
  builder = JaxembedPairs(data_dir=str(data_dir), file_format='array_record')
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
      manual_dir=str(pathlib.Path(folder).absolute())))


class JaxembedPairs(tfds.core.GeneratorBasedBuilder):
  """Queries with their positives and negatives."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'manual_dir is a folder of files of rows'

  def _info(self) -> tfds.core.DatasetInfo:
    text, numbers = tfds.features.Text(), tfds.features.Sequence(np.float64)
    passages = tfds.features.Sequence({'docid': text, 'text': text})
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        'query_id': text, 'query': text, 'instruction': text,
        'passage_instruction': text, 'type': text, 'score': text,
        'positive_passages': passages, 'negative_passages': passages,
        'pos_scores': numbers, 'neg_scores': numbers}))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager
                        ) -> dict[str, Iterator]:
    files = {}
    for path in sorted(pathlib.Path(dl_manager.manual_dir).iterdir()):
      if kind_of(path.name):
        split = next((s for s in _SPLITS if path.name.startswith(s)), 'train')
        files.setdefault(split, []).append(path)
    if not files:
      raise FileNotFoundError(f'{dl_manager.manual_dir} has no files of rows '
                              f'(.{", .".join(FILES)})')
    return {split: self._generate_examples(paths) for split, paths in files.items()}

  def _generate_examples(self, paths: list[pathlib.Path]
                         ) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
      for row, where in readers.open_rows(SourceConfig(name='rows', path=str(path))):
        yield where, _columns(records.from_row(row, where))


def _columns(row: records.Example) -> dict[str, Any]:
  """An Example as columns that from_row reads into the same one."""
  if row.interchangeable:
    raise records.BadRow(f'{row.where}: a set of texts has no query, and no place in '
                         'this dataset; write pairs')

  def passages(found):
    return [{'docid': p.id, 'text': p.text} for p in found]

  def scores(found):
    if any(p.score is None for p in found):
      return []
    return [p.score for p in found]

  return {'query_id': row.query_id, 'query': row.query, 'instruction': row.instruction,
          'passage_instruction': row.passage_instruction, 'type': row.type,
          'score': '' if row.score is None else repr(row.score),
          'positive_passages': passages(row.positives),
          'negative_passages': passages(row.negatives),
          'pos_scores': scores(row.positives), 'neg_scores': scores(row.negatives)}
