"""Cuts a smaller model out of one: fewer layers, shorter vectors; a new workdir.

  jaxembed cut --source=RUN --target=DIR --layers=6 --width=256

--layers=6 keeps the first six, --layers=0,2,4 those three. --width=256 keeps the first
256 numbers of a vector. What Matryoshka training made usable is a model of its own
then: trained on, evaluated and exported like any run. Of others the quality falls;
evaluate before and after.
"""

from absl import flags

from jaxembed import bundle
from jaxembed.reshaping import cut

from . import cli, step_flag

_STEP = step_flag.define()
_SOURCE = flags.DEFINE_string('source', None, 'Workdir or folder of the model.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_LAYERS = flags.DEFINE_list('layers', [], 'How many layers, or which.')
_WIDTH = flags.DEFINE_integer('width', 0, 'Numbers of a vector; 0: all.')


def main():
  model = bundle.open(cli.given(_SOURCE), step=_STEP())
  if not _LAYERS.value and not _WIDTH.value:
    raise ValueError('nothing is to be cut; give --layers, --width or both')
  if _LAYERS.value:
    model = cut.layers(model, _kept(_LAYERS.value))
  if _WIDTH.value:
    model = cut.width(model, _WIDTH.value)
  bundle.save(cli.given(_TARGET), model)
  print(f'written    {_TARGET.value}: {model.cfg.backbone.num_layers} layers, vectors '
        f'of {model.cfg.embedding_dim} numbers')


def _kept(given: list[str]) -> list[int]:
  try:
    numbers = [int(n) for n in given]
  except ValueError:
    raise ValueError(f'--layers={",".join(given)} are not whole numbers; give how '
                     'many, or which, such as 0,2,4') from None
  return list(range(numbers[0])) if len(numbers) == 1 else numbers


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
