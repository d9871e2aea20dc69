"""Exports a model: sentence-transformers, NV-Embed or PEFT.

  jaxembed convert --source=WORKDIR --target=DIR \\
      [--format=sentence-transformers|nv-embed|peft]

sentence-transformers  a folder that SentenceTransformer loads: reloaded in torch,
                       vectors compared (parity.json); it appears only if equal
nv-embed               NV-Embed's published layout, float16
peft                   the adapters alone with the head, prompts and tokenizer, for
                       peft.PeftModel and SentenceTransformer; they name their base
                       model, which is that of the run or the one of --base

WORKDIR is a jaxembed workdir, or any folder that Embedder.load reads; adapters are
merged, except for peft. DIR must not exist; it appears whole and checked, or not at
all.
"""

from absl import flags

from jaxembed import bundle
from jaxembed.convert import exporters

from . import cli, step_flag

_STEP = step_flag.define()
_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_FORMAT = flags.DEFINE_enum(
    'format', 'sentence-transformers', list(exporters.FORMATS), 'Layout of the folder.')
_BASE = flags.DEFINE_string('base', '', 'Of peft: the weights beneath the adapters.')


def main():
  report = exporters.export(
      bundle.open(cli.given(_SOURCE), step=_STEP()), cli.given(_TARGET),
      _FORMAT.value or 'sentence-transformers', _BASE.value or '')
  print(f'{_TARGET.value}: {report["told"]}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
