"""Scores of a task; of those by length and depth, the table and the picture."""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import flags

from jaxembed import embedder
from jaxembed.evaluation import long_texts, tasks


def run(task: str, model: embedder.Embedder, data: Any, options: tasks.Options,
        out: pathlib.Path | None) -> dict[str, float]:
  """The figures of a task. A table by length and depth is printed, and drawn beside
  `out`."""
  if task not in long_texts.TASKS:
    return tasks.run(task, model, data, options)
  grid = tasks.probed(task, model, data, options)
  print(f'{task}: queries whose document came first, in percent, by tokens of the '
        'document and depth\n' + grid.table())
  if out:
    grid.picture(out.with_suffix('.png'), f'{task}, {model.bundle.source}')
    print(f'drawn in {out.with_suffix(".png")}')
  return grid.scores


def define() -> dict[str, flags.FlagHolder]:
  """Defines the flags of passkey and needle alone."""
  of = 'of passkey and needle'
  return {'lengths': flags.DEFINE_list('lengths', None, f'Tokens of documents, {of}. '
                                       'Default: 256 to 32768, doubling.')} | {
      name: flags.DEFINE_integer(name, None, f'{what}, {of}. Default: {default}.')
      for name, what, default in (
          ('documents', 'Documents of each length', 100),
          ('queries', 'Queries of each length', 50),
          ('depths', 'Places of the sentence to find', 10), ('seed', 'Seed', 0))}


def given(found: Mapping[str, flags.FlagHolder]) -> dict[str, Any]:
  """The values of `define`'s flags, as tasks.Options takes them."""
  values: dict[str, Any] = {name: flag.value for name, flag in found.items()}
  if values['lengths'] is not None:
    try:
      values['lengths'] = tuple(map(int, values['lengths']))
    except ValueError:
      raise ValueError(f'--lengths={",".join(values["lengths"])}: give tokens, such as '
                       '512,1024') from None
  return values
