"""Opening of a run, new or to go on with: checked and told before it trains."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

import jax

from jaxembed import bundle, checkpoint, config, data, losses, types
from jaxembed.train import (
    changes,
    checks,
    forecast,
    hosts,
    manifest,
    remine,
    start,
    step,
)
from jaxembed.train.stages import stages


def opened(cfg: config.Config, folder: pathlib.Path, saved: checkpoint.Checkpoints,
           mesh: jax.sharding.Mesh, log: Callable[[str], None], extend: bool,
           loss: losses.Loss | None, rows: Mapping[str, Any] | None
           ) -> tuple[bundle.Bundle, types.TrainState | None, list[data.Mixture]]:
  """The model of a run that begins or goes on, its newest state, if any, and the
  mixture of every stage; none where no step is left to train.

  The folder is this run's afterwards: what differs from its last start was checked,
  told, and written down.
  """
  newest = max(saved.steps(), default=0)
  resumed = newest > 0
  changed = changes.check(folder, cfg, newest, extend=extend,
                          diverged=manifest.last_stop(folder) == 'diverged')
  found = (start.resume(folder, mesh) if resumed  # without weights, either way
           else start.resolve(cfg.model, tokenizer=False))
  checks.model_fits(cfg, found.model)
  remine.check(cfg.stages)
  unfinished = newest < stages(cfg)[-1].last
  mixtures, notes = [], []
  if unfinished:
    mixtures = data.open_stages(cfg.stages, rows)
    hosts.compare('data', lambda: manifest.fingerprints(cfg, mixtures))
    tokenizer = found.load_tokenizer() if resumed else start.tokenizer(cfg.model)
    checks.data_fits(cfg, mixtures, tokenizer, loss)
    notes = list(checks.notes(cfg, found.model, mixtures, loss))  # or a refusal
  initial = found if resumed else start.start(cfg.model, cfg.seed, mesh)
  if mixtures:
    log(forecast.describe(cfg, initial.model, initial.params, mesh, mixtures))
    for line in notes:
      log(f'note       {line}')
  state = _restore(cfg, initial, saved, mesh, log) if resumed else None
  if unfinished:
    for line in manifest.record(folder, cfg, mesh, newest, changed=changed,
                                extend=extend, mixtures=mixtures):
      log(f'differs    {line}')
  if not resumed:
    for line in start.changes(cfg.model):
      log(line)
    initial = start.with_prompts(initial, cfg.stages, log)
    bundle.save_model(folder, initial, cfg.model.append_token)
  if jax.process_index() == 0:
    changes.write(folder, cfg)
  return initial, state, mixtures


def _restore(cfg, initial: bundle.Bundle, saved, mesh, log) -> types.TrainState:
  """The newest good checkpoint, on this mesh."""
  def like(at: int) -> types.TrainState:
    stage = next(s for s in stages(cfg) if at <= s.last)
    return step.abstract_state(initial.params, stage.cfg, mesh, initial.model)

  state, _ = saved.restore(like, log=log)
  hosts.compare('checkpoint', lambda: {'step': int(state.step)})
  log(f'resumed    at step {int(state.step)}')
  return state
