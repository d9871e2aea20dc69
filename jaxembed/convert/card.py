"""What a model's card tells of its making: base, licence, data, training, scores."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import pathlib
import re
from typing import Any
import warnings

from jaxembed import workdir
from jaxembed.bundle import Bundle
from jaxembed.convert import model_card
from jaxembed.files import checked_json

_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
# The hub's word for the metric that a task is known by.
_MAIN = {'retrieval': 'ndcg@10', 'sts': 'spearman', 'classification': 'accuracy',
         'clustering': 'v_measure', 'pairs': 'ndcg@10'}
_TASKS = {'retrieval': 'information-retrieval', 'sts': 'semantic-similarity',
          'classification': 'text-classification', 'clustering': 'clustering',
          'pairs': 'information-retrieval'}


@dataclasses.dataclass(frozen=True)
class Facts:
  """What only its author knows of a model.

  Attributes:
    license: as the hub spells it (apache-2.0); '': that of the base model.
    languages: codes; (): those of the base model.
    results: what `jaxembed evaluate --out` wrote, parsed.
    notes: sentences for the card's top.
  """

  license: str = ''
  languages: tuple[str, ...] = ()
  results: tuple[Mapping[str, Any], ...] = ()
  notes: tuple[str, ...] = ()


NOTHING = Facts()


def read_results(files: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
  """The results in files that `jaxembed evaluate --out` wrote.

  Raises:
    ValueError: another file.
  """
  found = []
  for file in files:
    data = checked_json.read(pathlib.Path(file))
    if not isinstance(data.get('scores'), dict) or 'task' not in data:
      raise ValueError(f'{file} is no result of jaxembed evaluate --out: it has no '
                       'task and scores')
    found.append(data)
  return tuple(found)


def write(folder: pathlib.Path, name: str, format: str, model: Bundle,
          report: Mapping[str, Any], facts: Facts = NOTHING) -> None:
  """Writes README.md for the folder that will be called `name`.

  Who gives facts, and no licence where none is known, is told.
  """
  header = _header(name, model, facts)
  if facts is not NOTHING and 'license' not in header:
    warnings.warn('no licence of the model or of what it was made from is known; the '
                  'card has none. Name it (--license)', stacklevel=3)
  story = model_card.Story(
      header=header, training=_training(model), evaluation=_evaluation(facts.results),
      notes=(*model.card.get('notes', ()), *facts.notes))
  (folder / 'README.md').write_text(model_card.render(
      name, model.cfg, dict(model.prompts), model.cfg.prompt_pooling == 'include',
      report, story, format), 'utf-8')


def _header(name: str, model: Bundle, facts: Facts) -> dict[str, Any]:
  """Keys of the hub."""
  found = {k: v for k, v in model.card.items() if k != 'notes'}
  base = found.get('base_model')
  if not (isinstance(base, str) and _HUB_ID.fullmatch(base)) and not (
      isinstance(base, list)):
    found.pop('base_model', None)
  if facts.license:
    found = {k: v for k, v in found.items() if not k.startswith('license')}
    found['license'] = facts.license
  if facts.languages:
    found['language'] = list(facts.languages)
  if facts.results:
    found['model-index'] = [{'name': name, 'results': [
        _result(r) for r in facts.results]}]
  return found


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
  """One entry of model-index."""
  task, data = str(result['task']), pathlib.Path(str(result.get('data', ''))).name
  scores = {k: v for k, v in result['scores'].items()
            if isinstance(v, int | float) and math.isfinite(v)}
  return {'task': {'type': _TASKS.get(task, task)},
          'dataset': {'type': data, 'name': data, 'split': result.get('split', 'test')},
          'metrics': [{'type': k, 'value': round(float(v), 6)}
                      for k, v in scores.items()]}


def _evaluation(results: Sequence[Mapping[str, Any]]) -> str:
  if not results:
    return ''
  lines = ['| data | task | metric | score |', '| --- | --- | --- | --- |']
  for r in results:
    metric = _MAIN.get(str(r['task']), next(iter(r['scores']), ''))
    score = r['scores'].get(metric)
    told = '-' if score is None else f'{score:.4f}'
    lines.append(f'| {pathlib.Path(str(r.get("data", ""))).name} ({r.get("split")}) '
                 f'| {r["task"]} | {metric} | {told} |')
  return '\n'.join(lines) + '\n\nMeasured with `jaxembed evaluate` on the model as it '\
      'was before export.'


def _training(model: Bundle) -> str:
  """The manifest of the run as Markdown; '' where the model is of none."""
  path = pathlib.Path(model.source) / 'manifest.json'
  if not model.source or not workdir.is_workdir(model.source) or not path.is_file():
    return ''
  manifest = checked_json.read(path, finite=False)
  cfg, data = manifest.get('config', {}), manifest.get('data', {})
  lines = []
  if isinstance(base := model.card.get('base_model'), str):
    lines.append(f'From `{base}`, with jaxembed, {model.step} steps.\n')
  lines += ['| stage | steps | loss | peak learning rate | batch | lengths |',
            '| --- | --- | --- | --- | --- | --- |']
  for i, stage in enumerate(cfg.get('stages', ())):
    of, rows = stage.get('data', {}), stage.get('optim', {})
    lines.append(f'| {i} | {stage.get("steps")} | {stage.get("loss", {}).get("name")} '
                 f'| {rows.get("peak_lr")} | {of.get("batch_size")} | '
                 f'{_plain(of.get("query_lengths"))} / '
                 f'{_plain(of.get("passage_lengths"))} |')
  lines += ['', '| data | rows |', '| --- | --- |']
  lines += [f'| {name.partition("/")[2] or name} (stage '
            f'{"".join(re.findall(r"[0-9]+", name.partition("/")[0]))}) '
            f'| {mark.get("rows", "")} |' for name, mark in data.items()
            if isinstance(mark, dict)]
  return '\n'.join(lines)


def _plain(value: Any) -> str:
  return json.dumps(value).strip('[]')
