"""Hands a model to PyTorch.

  python -m launch.convert --source=WORKDIR --target=DIR \\
      [--format=sentence-transformers|nv-embed|peft]

sentence-transformers  a folder that SentenceTransformer loads: reloaded in torch,
                       vectors compared (parity.json); it appears only if equal
nv-embed               NV-Embed's published layout, float16
peft                   the adapters alone, for peft.PeftModel

WORKDIR is a jaxembed workdir, or any folder that Embedder.load reads; adapters are
merged, except for peft. DIR must not exist.
"""

import pathlib

from absl import flags

from jaxembed import workdir
from jaxembed.convert import from_hf, nv_embed, peft, to_sentence_transformers
from jaxembed.embedder import Embedder
from jaxembed.models import lora
from launch import cli

_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_FORMAT = flags.DEFINE_enum(
    'format', 'sentence-transformers', ['sentence-transformers', 'nv-embed', 'peft'],
    'Layout of the folder.')


def export(source: str | pathlib.Path, target: str | pathlib.Path) -> dict:
  """Writes `source` as a sentence-transformers folder; the parity report."""
  model = Embedder.load(source)
  params, cfg = lora.merge(model.params, model.cfg)
  report = to_sentence_transformers.export(
      target, params, cfg, model.folder, prompts=model.prompts,
      default_prompt_name=model.default_prompt_name,
      similarity_fn_name=model.similarity_fn_name,
      original=None if workdir.is_workdir(source) else from_hf.locate(source))
  print(f'{target}: torch computes the same vectors, largest difference '
        f'{report["max_difference"]:.1e} over {len(report["cases"])} cases')
  return report


def main():
  source, target = _SOURCE.value, pathlib.Path(_TARGET.value)
  if _FORMAT.value == 'sentence-transformers':
    export(source, target)
    return
  model = Embedder.load(source)
  if _FORMAT.value == 'peft':
    peft.write(target, model.params, model.cfg, tokenizer=model.folder)
  else:
    nv_embed.write(target, *lora.merge(model.params, model.cfg), model.folder)
  print(f'wrote {target}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
