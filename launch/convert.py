"""Hands a model to PyTorch: writes a folder, reloads it there, compares vectors.

  python -m launch.convert --source=WORKDIR --target=DIR \\
      [--format=sentence-transformers]

WORKDIR is a jaxembed workdir, or any folder that Embedder.load reads. DIR must
not exist; it appears only if torch computes the same vectors (parity.json).
"""

import pathlib

from absl import flags

from jaxembed.convert import to_sentence_transformers
from jaxembed.embedder import Embedder
from launch import cli

_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_FORMAT = flags.DEFINE_enum('format', 'sentence-transformers',
                            ['sentence-transformers'], 'Layout of the folder.')


def export(source: str | pathlib.Path, target: str | pathlib.Path) -> dict:
  """Writes `source` as a sentence-transformers folder; the parity report."""
  model = Embedder.load(source)
  report = to_sentence_transformers.export(
      target, model.params, model.cfg, model.folder, prompts=model.prompts,
      default_prompt_name=model.default_prompt_name,
      similarity_fn_name=model.similarity_fn_name)
  print(f'{target}: torch computes the same vectors, largest difference '
        f'{report["max_difference"]:.1e} over {len(report["cases"])} cases')
  return report


def main():
  export(_SOURCE.value, _TARGET.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
