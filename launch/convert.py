"""Exports a model: sentence-transformers, ONNX, static, Hugging Face, NV-Embed, PEFT.

  jaxembed convert --source=WORKDIR --target=DIR --format=sentence-transformers \\
      [--license=apache-2.0 --language=en --results=scores.json] [--push=org/name]

sentence-transformers  a folder that SentenceTransformer loads: reloaded in torch,
                       vectors compared (parity.json); it appears only if equal
sentence-transformers-new  the same in the layout of sentence-transformers 5.4
onnx                   the same with onnx/model.onnx, the whole model as a graph,
                       compared in onnxruntime; --int8 adds an 8-bit form
static                 a vector per token (model2vec); --dims, 256
huggingface            backbone and tokenizer alone, for AutoModel
nv-embed               NV-Embed's published layout, float16
peft                   the adapters alone with the head, prompts and tokenizer, for
                       peft.PeftModel and SentenceTransformer; they name their base
                       model, which is that of the run or the one of --base

WORKDIR is a jaxembed workdir, or any folder that Embedder.load reads; adapters are
merged, except for peft. DIR must not exist; it appears whole and checked, or not at
all. README.md tells base model, licence, data and training as far as they are known;
--results, of jaxembed evaluate --out, become its scores. --push uploads DIR to the hub.
"""

from absl import flags

from jaxembed import bundle
from jaxembed.convert import card, exporters, push

from . import cli, step_flag

_STEP = step_flag.define()
_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_FORMAT = flags.DEFINE_enum(
    'format', 'sentence-transformers', list(exporters.FORMATS), 'Layout of the folder.')
_BASE = flags.DEFINE_string('base', '', 'Of peft: the weights beneath the adapters.')
_DTYPE = flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16', 'float16'],
                           "Of the weights; none: a run's own, float32 of folders.")
_DIMS = flags.DEFINE_integer('dims', None, 'Of static: numbers of a vector.')
_INT8 = flags.DEFINE_bool('int8', None, 'Of onnx: write an 8-bit form too.')
_LICENSE = flags.DEFINE_string('license', '', "Of the card; '': the base model's.")
_LANGUAGE = flags.DEFINE_list('language', [], "Of the card; none: the base model's.")
_RESULTS = flags.DEFINE_multi_string('results', [], 'Files of jaxembed evaluate --out.')
_NOTE = flags.DEFINE_multi_string('note', [], "Sentences for the card's top.")
_PUSH = flags.DEFINE_string('push', '', 'org/name on the hub to upload to.')
_PRIVATE = flags.DEFINE_bool('private', False, 'Of --push: a private repository.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Of --push: one that holds files.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Of --push: say what would be uploaded.')


def main():
  if _PUSH.value and not _DRY_RUN.value:
    push.check(_PUSH.value)
  facts = card.Facts(
      license=_LICENSE.value or '', languages=tuple(_LANGUAGE.value or ()),
      results=card.read_results(_RESULTS.value or ()), notes=tuple(_NOTE.value or ()))
  options = {name: flag.value for name, flag in (('dims', _DIMS), ('int8', _INT8))
             if flag.value is not None}
  report = exporters.export(
      bundle.open(cli.given(_SOURCE), step=_STEP(), dtype=_DTYPE.value),
      cli.given(_TARGET), _FORMAT.value or 'sentence-transformers', _BASE.value or '',
      facts=facts, **options)
  print(f'{_TARGET.value}: {report["told"]}')
  if _PUSH.value and _DRY_RUN.value:
    for name, size in push.files(cli.given(_TARGET)):
      print(f'would upload {size:>12,} bytes  {name}')
  elif _PUSH.value:
    print(push.push(cli.given(_TARGET), _PUSH.value, private=bool(_PRIVATE.value),
                    overwrite=bool(_OVERWRITE.value)))


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
