"""Merges models that were trained from the same weights into a new workdir.

  jaxembed merge --source=RUN1 --source=RUN2 --target=DIR --method=slerp --base=START

soup             the weighted mean of the weights
slerp            a point on the arc between two models (more are folded in turn); with
                 --base the arc is between what training changed
task_arithmetic  base + scale x the weighted sum of what training changed
ties             the same, of the largest entries alone, where signs agree
position         Self Positioning: the angles and the length of what training changed
                 are learned on the rows of --probe

A source is whatever Embedder.load reads; adapters are folded in. The result is
evaluated, exported and trained from like any run.
"""

from absl import flags

from jaxembed import bundle
from jaxembed.merging import arithmetic, merge, position

from . import cli

_SOURCES = flags.DEFINE_multi_string('source', None, 'A model to merge; repeatable.')
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_METHOD = flags.DEFINE_enum('method', 'soup', [*arithmetic.METHODS, 'position'],
                            'How to merge.')
_BASE = flags.DEFINE_string('base', '', 'The model that training began from.')
_WEIGHTS = flags.DEFINE_list('weights', [], 'One number per source; equal by default.')
_DENSITY = flags.DEFINE_float('density', 1.0, 'Of ties: the share of entries kept.')
_SCALE = flags.DEFINE_float(
    'scale', 1.0, 'Factor on what training changed (ties, task_arithmetic).')
_WHOLE = flags.DEFINE_bool('whole', False, 'Of slerp: one angle for the whole model.')
_PROBE = flags.DEFINE_multi_string(
    'probe', [], 'Of position: files of training rows, one a task.')
_STEPS = flags.DEFINE_integer('steps', 500, 'Of position: updates.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch_size', 256, 'Of position: rows of an update.',
                              lower_bound=2)
_RATE = flags.DEFINE_float('learning_rate', 1e-2, 'Of position.', lower_bound=0)


def main():
  models = [bundle.open(source) for source in cli.given(_SOURCES)]
  base = bundle.open(_BASE.value) if _BASE.value else None
  if _METHOD.value == 'position':
    merged = _positioned(models, base)
  else:
    merged = merge.merge(
        models, _METHOD.value or 'soup', base=base, options=arithmetic.Options(
            weights=_weights(), density=_DENSITY.value, scale=_SCALE.value,
            whole=_WHOLE.value))
  bundle.save(cli.given(_TARGET), merged)
  print(f'written    {_TARGET.value}: {len(models)} models, {_METHOD.value}')


def _positioned(models, base):
  if base is None or not _PROBE.value:
    raise ValueError('position needs --base, the model that training began from, and '
                     '--probe, rows of each task to learn on')
  found = position.learn(
      models, base, position.probe(base, _PROBE.value, _BATCH.value),
      position.Options(steps=_STEPS.value, learning_rate=_RATE.value))
  print(f'position   {found.told}')
  return found.model


def _weights() -> tuple[float, ...]:
  try:
    return tuple(float(w) for w in _WEIGHTS.value or ())
  except ValueError:
    raise ValueError(f'--weights={",".join(_WEIGHTS.value or ())} are not numbers; '
                     'give one per --source, such as 0.7,0.3') from None


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'target'])
  cli.run(main)
