"""Configuration changes that a run may resume with.

Steps that are done keep their meaning. So without a word may change: everything while
no step is done; how often to log, evaluate and save, on which mesh, in which chunks,
how the loss is computed, how many rows to check and whether bad ones are skipped;
stages that have not begun; the number of steps of the stage under way; where the same
data lies; and what the run's own end advised (its optimiser after a loss that was not
finite). The data, loss, rate and schedule of the stage under way may change when asked
for (--extend). The model and the stages that are done cannot.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import re
from typing import Any

from jaxembed import config
from jaxembed.files import checked_json, whole_json

_FREE = re.compile(
    r'config\.(name|log_every|eval|checkpoint|mesh|repeats)\b')
# Of a stage: how long it is, and what costs time or memory without another result.
_SAME = ('.steps', '.epochs', '.name', '.token_budget', '.chunk_remat',
         '.optim.max_skipped', '.data.prefetch', '.data.check_rows',
         *(f'.loss.{f.name}' for f in dataclasses.fields(config.LossComputing)))
# And where the same rows lie, and what is to become of bad ones.
_MOVED = re.compile(
    r'\.sources\[\d+\]\.(path|paths(\[\d+\])?|data_dir|cache_dir|on_bad_row)$')


@dataclasses.dataclass(frozen=True)
class Change:
  """A leaf of two JSON values that is not the same in both."""

  path: str  # 'stages[0].optim.peak_lr'
  was: Any
  now: Any

  def __str__(self) -> str:
    return f'{self.path} was {self.was!r:.200}, is {self.now!r:.200}'


def check(folder: pathlib.Path, cfg: config.Config, done: int, *,
          extend: bool = False, diverged: bool = False) -> list[str]:
  """What differs between `cfg` and the configuration of the run in `folder`.

  done: steps of its newest checkpoint. extend: changes of the stage under way are
  asked for. diverged: the run ended because its loss or gradients were not finite.

  Raises:
    ValueError: something changes that cannot, or that was not asked for.
  """
  file = folder / 'config.json'
  if not file.exists():
    return []
  raw, wanted = checked_json.read(file, finite=False), _plain(cfg)
  stored = _filled(raw)
  if 'lora' not in raw.get('model', {}):  # from before fields could ask for nothing
    model = {k: v for k, v in wanted['model'].items() if k != 'lora' or v}
    wanted = _filled(wanted | {'model': model})
  found = [c for c in differences(stored, wanted, 'config')
           if not _FREE.match(c.path)]
  if not done:
    return [str(c) for c in found]
  for change in found:
    if why := _impossible(change, stored, cfg, done, folder, extend):
      raise ValueError(f'{folder} holds a run of {done} steps with another '
                       f'configuration: {change}. {why}')
  asked = [c for c in found if not _harmless(c, stored, cfg, done, diverged)]
  if asked and not extend:
    more = f' (and {len(asked) - 4} more)' if len(asked) > 4 else ''
    raise ValueError(
        f'{folder} holds a run of {done} steps with another configuration: '
        f'{"; ".join(map(str, asked[:4]))}{more}. Give --extend (extend=True) to go on '
        'from there with it, which manifest.json records; or use a fresh --workdir, or '
        'the configuration in its config.json')
  return [str(c) for c in found]


def write(folder: pathlib.Path, cfg: config.Config) -> None:
  """Makes `cfg` the configuration of the run in `folder`."""
  folder.mkdir(parents=True, exist_ok=True)
  whole_json.write(folder / 'config.json', _plain(cfg))


def _impossible(change: Change, stored: dict, cfg: config.Config, done: int,
                folder: pathlib.Path, extend: bool) -> str:
  """Why the run cannot go on with this change; '': it can."""
  if change.path.startswith('config.model.'):
    if change.path in ('config.model.source', 'config.model.fallback'):
      if extend or _same_model(cfg.model.source, folder):
        return ''
      return ('The run goes on with its own weights, whatever the source: give '
              '--extend if the model only moved; train another in a fresh --workdir')
    return ('The model of a run stays as it is; to change it, train in a fresh '
            f'--workdir with config.model.source={str(folder)!r}')
  if (i := _stage(change.path)) is None:
    return ''
  first, last = _span(stored, i)
  if i >= len(cfg.stages):
    return 'Steps of this stage are done; keep it' if first < done else ''
  if last < done and change.path.endswith('].steps'):
    return 'All steps of this stage are done; put more into the stages after it'
  if first < done and first + cfg.stages[i].steps < min(done, last):
    return f'{min(done, last) - first} steps of this stage are done; give no fewer'
  return ''


def _harmless(change: Change, stored: dict, cfg: config.Config, done: int,
              diverged: bool) -> bool:
  """Whether what is done means the same as before."""
  if change.path.startswith('config.model.'):
    return True
  if (i := _stage(change.path)) is None:
    return False
  first, last = _span(stored, i)
  if first >= done or i >= len(stored['stages']):
    return True  # not begun
  rest = change.path.split(']', 1)[1]
  if rest in _SAME or _MOVED.search(rest):
    return True  # whether the data is the same is for the manifest to say
  return diverged and last >= done and rest.startswith('.optim.')


def _same_model(source: str, folder: pathlib.Path) -> bool:
  """Whether a folder has the configuration that this run's model came with."""
  kept = folder / 'model'
  names = [n for n in ('config.json', 'modules.json', 'adapter_config.json')
           if (kept / n).is_file()]
  here = pathlib.Path(source)
  return bool(names) and all(
      (here / n).is_file() and (here / n).read_bytes() == (kept / n).read_bytes()
      for n in names)


def _stage(path: str) -> int | None:
  found = re.match(r'config\.stages\[(\d+)\]', path)
  return int(found[1]) if found else None


def _span(stored: dict, index: int) -> tuple[int, int]:
  """Steps done when the stored stage `index` begins, and when it ends."""
  steps = [s['steps'] for s in stored['stages']]
  return sum(steps[:index]), sum(steps[:index + 1])


def _plain(cfg: config.Config) -> dict:
  return json.loads(json.dumps(config.to_dict(cfg)))


def _filled(stored: dict) -> dict:
  """A stored configuration with the defaults of fields that came after it."""
  try:
    return _plain(config.from_dict(config.Config, stored))
  except ValueError:  # a field that is gone: the differences name it
    return stored


def differences(a: Any, b: Any, path: str) -> Iterator[Change]:
  """Every leaf of two JSON values that differs; stages are compared one by one."""
  if isinstance(a, dict) and isinstance(b, dict):
    for key in sorted(a.keys() | b.keys()):
      yield from differences(a.get(key), b.get(key), f'{path}.{key}')
  elif isinstance(a, list) and isinstance(b, list) and (
      len(a) == len(b) or path == 'config.stages'):
    for i in range(max(len(a), len(b))):
      yield from differences(a[i] if i < len(a) else None,
                              b[i] if i < len(b) else None, f'{path}[{i}]')
  elif a != b:
    yield Change(path, a, b)
