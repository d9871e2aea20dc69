"""Status of a run, read from its workdir: step, loss, time left, last save, stalled."""

import datetime
import os
import pathlib
import time
from typing import Any

from jaxembed import checkpoint, workdir
from jaxembed.files import alone, checked_json, place, remote_lock, url
from jaxembed.files.url import Objects
from jaxembed.train import metrics, pulse

# Without a sign for so long, in units of a step and in seconds, steps are stalled; what
# is done beside steps (compiling, evaluating, saving) may take longer.
_STEPS, _LEAST, _BESIDE = 10, 60.0, 1800.0


def of(where: str | os.PathLike, *, now: float | None = None) -> dict[str, Any]:
  """What is known of the run in a folder or at a URL, as plain data.

  state: running, stalled, ended, stopped, failed, or killed (nobody works on it, and it
  has not said that it ended). left: seconds to the end. hosts: a dict per process.

  Raises:
    FileNotFoundError: it is no run.
  """
  folder, held = _here(where)
  file = folder / 'manifest.json'
  if not file.is_file():
    raise FileNotFoundError(f'{where} is no run: it has no manifest.json; give the '
                            'workdir of one')
  manifest = checked_json.read(file, finite=False)
  signs, records = pulse.read(folder), metrics.read(folder)
  first = signs.get(0, {})
  last = sum(stage['steps'] for stage in manifest['config']['stages'])
  losses = [r for r in records if r.get('train/loss') is not None]
  step = first.get('step', records[-1]['step'] if records else 0)
  now = time.time() if now is None else now
  age = max(now - first['time'], 0.0) if first else None  # clocks may go backwards
  each, steps = first.get('step_seconds'), workdir.steps(where)
  return {
      'name': manifest['config']['name'], 'step': step, 'last': last,
      'state': _state(first, held, age), 'phase': first.get('phase', ''),
      'stage': first.get('stage', ''), 'sign_age': age,
      'loss': losses[-1]['train/loss'] if losses else None,
      'scores': {k: v for r in records for k, v in r.items() if k.startswith('eval/')},
      'saved': steps,
      'best': (checkpoint.best(folder / 'checkpoints') or {}).get('step'),
      'step_seconds': each, 'left': each * (last - step) if each else None,
      'goodput': first['productive'] / max(now - first['started'], 1e-9)
                 if first.get('phase') == 'training' else None,
      'starts': len(manifest['starts']),
      'hosts': [sign | {'number': n} for n, sign in sorted(signs.items())]}


def _here(where: str | os.PathLike) -> tuple[pathlib.Path, bool | None]:
  """The run's small files on this machine; whether a process works on it."""
  if (there := url.of(where)) is not None:
    objects = Objects(there)
    if not objects.head('manifest.json'):
      raise FileNotFoundError(f'{there} is no run: it has no manifest.json')
    copy = place.fetched(there, ['*.json', '*.jsonl', 'checkpoints/best.json'])
    return copy, bool(remote_lock.holder(objects, 'run.lock'))
  folder = pathlib.Path(where)
  try:
    alone.refuse_held(folder / 'run.lock', '', '')
  except alone.Held:
    return folder, True
  except OSError:  # no right to lock
    return folder, None
  return folder, False


def _state(sign: dict[str, Any], held: bool | None, age: float | None) -> str:
  phase = sign.get('phase', '')
  if phase in ('ended', 'stopped', 'failed'):
    return phase
  if held is False:
    return 'killed'
  limit = _BESIDE if phase != 'training' else max(
      _LEAST, _STEPS * (sign.get('step_seconds') or 0.0))
  return 'stalled' if age is not None and age > limit else 'running'


def text(found: dict[str, Any]) -> str:
  """The status in lines for people."""
  name = lambda seconds: str(datetime.timedelta(seconds=round(seconds)))
  lines = [f'run        {found["name"]}: {found["state"]}'
           + (f', {found["phase"]} ({found["stage"]})'
              if found['state'] in ('running', 'stalled') else ''),
           f'step       {found["step"]} of {found["last"]}'
           + (f', {name(found["left"])} left at {found["step_seconds"]:.3g} s a step'
              if found['left'] and found['state'] == 'running' else '')]
  if found['loss'] is not None:
    lines.append(f'loss       {found["loss"]:.4f}')
  lines += [f'score      {k.removeprefix("eval/")} {v:.4f}'
            for k, v in found['scores'].items() if isinstance(v, int | float)]
  lines.append(f'saved      steps {", ".join(map(str, found["saved"])) or "none"}'
               + (f'; the best is {found["best"]}' if found['best'] else ''))
  if found['sign_age'] is not None:
    lines.append(f'last sign  {name(found["sign_age"])} ago; {found["starts"]} starts'
                 + (f'; goodput {found["goodput"]:.1%}' if found['goodput'] else ''))
  return '\n'.join([*lines, *_hosts(found['hosts'])])


def _hosts(hosts: list[dict[str, Any]]) -> list[str]:
  """A line per process; the one that waits longest for its data holds up all others."""
  waits = [h.get('data_seconds') or 0.0 for h in hosts]
  lines = []
  for host, wait in zip(hosts, waits):
    usual = sorted(waits)[(len(waits) - 1) // 2]
    slow = len(hosts) > 1 and wait == max(waits) > 2 * usual
    memory = [m for m in host.get('memory', ()) if m]
    lines.append(
        f'host {host["number"]:<6}{host["host"]} (process {host["process"]}): step '
        f'{host["step"]}, {wait:.3f} s a step for data'
        + (f', {max(memory) / 1e9:.1f} GB on a device' if memory else '')
        + (': a straggler' if slow else ''))
  return lines
