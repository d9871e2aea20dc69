"""Gives a model a plain head that every server runs, in place of its own.

  jaxembed plain --source=RUN --target=DIR --texts=texts.jsonl --steps=200

Latent and layer attention need code of their own, which text-embeddings-inference,
vLLM and llama.cpp do not run. The mean of the tokens and a dense layer are fitted to
the model's own vectors of --texts (a text a line, or .jsonl with a field --field),
by least squares and then by --steps updates of all weights. What it costs is measured
on a tenth of the texts and told, here and in the card of every export.
"""

from absl import flags

from jaxembed import bundle, corpus
from jaxembed.reshaping import plain_head

from . import cli, step_flag

_STEP = step_flag.define()
_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_TEXTS = flags.DEFINE_string('texts', None, 'File of texts, as encode reads them.')
_FIELD = flags.DEFINE_string('field', 'text', 'Of .jsonl: where the text stands.')
_STEPS = flags.DEFINE_integer('steps', 0, 'Updates of all weights.', lower_bound=0)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts of an update.', lower_bound=1)
_RATE = flags.DEFINE_float('learning_rate', 5e-5, 'Of the updates.', lower_bound=0)


def main():
  found = plain_head.fit(
      bundle.open(cli.given(_SOURCE), step=_STEP()),
      list(corpus.read_texts(cli.given(_TEXTS), _FIELD.value or 'text')),
      plain_head.Options(steps=_STEPS.value or 0, batch_size=_BATCH.value or 32,
                         learning_rate=_RATE.value or 0.0))
  bundle.save(cli.given(_TARGET), found.model)
  print(f'{_TARGET.value}: ' + (
      'the head was the mean, and is written as that' if found.exact else
      f'mean cosine of new and old vectors {found.cosine:.4f}, least '
      f'{found.least:.4f}, on {found.texts} held-out texts'))


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target', 'texts'])
  cli.run(main)
