"""Vectors of training texts by a teacher, for losses that read them.

  jaxembed teach --config=configs/X.py --teacher=MODEL --target=runs/teacher

Encodes every query and passage of the experiment's sources (or of those that --sources
names) with MODEL, a folder, hub id or workdir, into the vector stores TARGET/queries
and TARGET/passages. SourceConfig.teacher=('runs/teacher',) then brings them to losses
such as embed_match and distill_batch, to InfoNCE's guide, and their cosines to losses
by scores. The same command continues where it was killed; with texts that are new it
takes --overwrite, and encodes all of them again.
"""


from absl import flags
from ml_collections import config_flags

from jaxembed import teach
from jaxembed.data import sources as data_sources
from jaxembed.embedder import Embedder

from . import cli

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file.')
_TEACHER = flags.DEFINE_string('teacher', None, 'The model that teaches.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_SOURCES = flags.DEFINE_list('sources', [], 'Names of sources; none: all.')
_QUERY = flags.DEFINE_string('query_prompt', None, 'In front of queries; without it '
                             "the teacher's own prompt for queries.")
_PASSAGE = flags.DEFINE_string('passage_prompt', None, 'In front of passages.')
_BATCH = flags.DEFINE_integer('batch_size', 32, 'See Embedder.encode.', lower_bound=1)
_DTYPE = flags.DEFINE_enum('dtype', 'float16', ['float32', 'float16', 'bfloat16'],
                           'Of the stored vectors.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace what TARGET holds.')


def main():
  cfg = _CONFIG.value
  sources = {s.name: s for stage in cfg.stages for s in stage.data.sources}
  if unknown := set(_SOURCES.value) - set(sources):
    raise ValueError(f'--sources: {sorted(unknown)[0]!r} is no source of the '
                     f'experiment; there are {", ".join(sources)}')
  chosen = [s for name, s in sources.items()
            if not _SOURCES.value or name in _SOURCES.value]
  texts = teach.texts(data_sources.load(s) for s in chosen)
  found = teach.encode(
      Embedder.load(cli.given(_TEACHER)), texts, cli.given(_TARGET),
      prompts={'queries': _QUERY.value, 'passages': _PASSAGE.value},
      batch_size=_BATCH.value, dtype=_DTYPE.value, overwrite=_OVERWRITE.value)
  for side, count in found.items():
    print(f'{_TARGET.value}/{side}: {count} texts')


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'teacher', 'target'])
  cli.run(main)
