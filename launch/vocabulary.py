"""Gives a model new tokens, tokens for tasks, or another model's tokenizer.

  jaxembed vocabulary --source=RUN --target=DIR --tokens=tokens.txt --init=pieces
  jaxembed vocabulary --source=RUN --target=DIR --tasks=sts=[STS],retrieval=[RET]
  jaxembed vocabulary --source=RUN --target=DIR --tokenizer=OTHER_MODEL

tokens.txt has a token a line. Their vectors begin in the convex hull of those there:
the mean of the pieces a token was split into (pieces), of all tokens (mean), or a
random point (hull). A task's token is the prompt of the task's name. --tokenizer takes
the tokenizer of another model, with vectors made by orthogonal matching pursuit over
the tokens that both have. The result is a workdir, to be trained on.
"""

import pathlib
import tempfile

from absl import flags

from jaxembed import bundle
from jaxembed.files import place
from jaxembed.reshaping import transplant, vocabulary

from . import cli, step_flag

_STEP = step_flag.define()
_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_TOKENS = flags.DEFINE_string('tokens', '', 'File of new tokens, one a line.')
_INIT = flags.DEFINE_enum('init', 'pieces', vocabulary.INITS, 'Where vectors begin.')
_SPECIAL = flags.DEFINE_bool('special', False, 'New tokens are special ones.')
_TASKS = flags.DEFINE_list('tasks', [], 'NAME=TOKEN of tasks.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'The model whose tokenizer to take.')
_ATOMS = flags.DEFINE_integer('atoms', 64, 'Of --tokenizer: shared tokens per new one.',
                              lower_bound=1)


def main():
  model = bundle.open(cli.given(_SOURCE), step=_STEP())
  asked = [bool(x) for x in (_TOKENS.value, _TASKS.value, _TOKENIZER.value)]
  if sum(asked) != 1:
    raise ValueError('give one of --tokens, --tasks and --tokenizer; for more, run it '
                     'again on what it wrote')
  with tempfile.TemporaryDirectory() as folder:
    made = _made(model, pathlib.Path(folder) / 'tokenizer')
    bundle.save(cli.given(_TARGET), made)
  print(f'written    {_TARGET.value}: {made.cfg.backbone.vocab_size} token vectors, '
        f'{model.cfg.backbone.vocab_size} before')


def _made(model: bundle.Bundle, folder: pathlib.Path) -> bundle.Bundle:
  if _TOKENIZER.value:
    return transplant.transplant(model, bundle.open(_TOKENIZER.value), folder,
                                 _ATOMS.value or 64)
  if _TASKS.value:
    pairs = [pair.partition('=') for pair in _TASKS.value]
    if wrong := next((p for p in pairs if not all(p)), None):
      raise ValueError(f'--tasks has {"".join(wrong)!r}; it lists NAME=TOKEN, such as '
                       'sts=[STS]')
    return vocabulary.for_tasks(model, {name: token for name, _, token in pairs},
                                folder)
  lines = place.fetched(_TOKENS.value or '').read_text('utf-8').splitlines()
  return vocabulary.add(model, [line for line in lines if line], folder,
                        _INIT.value or 'pieces', special=bool(_SPECIAL.value))


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
