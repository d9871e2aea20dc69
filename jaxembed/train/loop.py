"""Training loop: stages, evaluation, checkpoints, resuming.

The loop never waits for the device it feeds: the numbers of a step are read
while the next one runs. A batch is a function of (seed, step) and so is dropout;
state and step are all a resumed run needs to repeat the uninterrupted one bit
for bit.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax

from jaxembed import (
    bundle,
    checkpoint,
    config,
    data,
    former,
    losses,
    sharding,
    types,
    workdir,
)
from jaxembed.files import url
from jaxembed.train import (
    best,
    checks,
    chips,
    compiled,
    cost,
    hosts,
    manifest,
    meter,
    metrics,
    opening,
    profiler,
    progress,
    pulse,
    remine,
    remote_run,
    report,
    start,
    step,
)
from jaxembed.train.stages import Stage, stages, with_epochs

# evaluate(params, model, tokenizer, mesh) -> scores by name, 'eval/...'
Evaluate = Callable[..., dict[str, float]]
# Embeddings that keep a smaller share of their effective rank have collapsed.
_KEPT_RANK = 0.25


@former.keywords(say='log', stop='should_stop', watch='on_metrics')
def train(cfg: config.Config, folder: str | os.PathLike, *,
          evaluate: Evaluate | None = None, log: Callable[[str], None] = print,
          should_stop: Callable[[], bool | int] = lambda: False,
          profile: tuple[int, int] | None = None,
          on_metrics: metrics.OnMetrics | None = None,
          loss: losses.Loss | None = None, extend: bool = False,
          rows: Mapping[str, Any] | None = None
          ) -> tuple[types.TrainState, config.ModelConfig]:
  """Runs, or resumes, the experiment in `folder`, which may be a URL (gs://, s3://);
  returns the final state. An error or Ctrl-C saves what was trained.

  `evaluate` scores the parameters before, during (config.eval.every) and after; the
  checkpoint that is best by config.checkpoint.best is kept, and config.eval.patience
  ends the run early. Once `should_stop()` is true (a preemption notice), the state is
  saved after the step in flight, and the run returns. `profile`: the first and the last
  step to trace into folder/profile. `on_metrics` is told every record of metrics.
  `loss`, a losses.Loss, takes the place of StageConfig.loss.name in every stage.
  `extend`: go on from the newest checkpoint with what `cfg` changes of the stage under
  way (train/changes.py). `rows`: of sources of kind 'memory', by name (data/memory.py).

  Raises:
    ValueError: the configuration, the data or the folder do not fit; before any
      work is done.
    data.BadRow: a row cannot be used; once it is mended the run goes on.
    FloatingPointError: the loss, or too many updates in a row, are not finite.
  """
  cfg, told = with_epochs(config.validate(cfg), rows)
  for line in told:
    log(line)
  mesh = sharding.make_mesh(cfg.mesh.sizes)
  checks.stages_fit(cfg, mesh)
  if url.of(folder):
    with remote_run.opened(folder, log) as run:
      return train(cfg, run.folder, evaluate=evaluate, log=log,
                   should_stop=lambda: should_stop() or run.failed, profile=profile,
                   on_metrics=on_metrics, loss=loss, extend=extend, rows=rows)
  folder = pathlib.Path(folder).absolute()
  if not workdir.is_workdir(folder):
    workdir.check_free(folder)
    # What is wrong with the model is told before a folder is made.
    checks.model_fits(cfg, start.resolve(cfg.model).cfg)
  names = hosts.compare('configuration, versions and devices',
                        lambda: manifest.facts(cfg, remote_run.name(folder), mesh))
  with (hosts.watched(names, log), jax.set_mesh(mesh), workdir.alone(folder),
        compiled.kept(folder), checkpoint.Checkpoints(
            folder / 'checkpoints', keep=cfg.checkpoint.keep,
            may_drop=remote_run.may_drop(folder)) as saved):
    initial, state, mixtures = opening.opened(
        cfg, folder, saved, mesh, log, extend, loss, rows)
    done, last = int(state.step) if state else 0, stages(cfg)[-1].last
    tokenizer = bundle.open(folder, weights=False).load_tokenizer()
    writer = metrics.Writer(folder, done if state else -1, on_metrics)
    trace = profiler.Profiler(folder / 'profile', profile)
    signs = pulse.Pulse(folder, done, last, log)
    run = _Run(cfg, folder, initial.model, saved, evaluate, tokenizer, mesh, log,
               hosts.agreed(should_stop), trace, loss, writer, best.of_records(
                   cfg.checkpoint.best, metrics.read(folder)), rows, signs)
    patience = cfg.eval.patience
    try:
      if state is not None:
        run.catch_up(state)
      if state is not None and (done == last or run.best.ended(patience)):
        signs.phase('ended')
        if jax.process_index() == 0 and not (folder / 'report.html').exists():
          report.write(folder, cfg.name)
        log(f'finished   {done} steps were done before; nothing to train. Give more '
            'steps to go on, or a fresh --workdir to train again')
        return state, initial.model
      mixtures = mixtures or data.open_stages(cfg.stages, rows)
      for stage in stages(cfg):
        if done >= stage.last:
          continue
        if state is None or done == stage.first:
          params = initial.params if state is None else state.averaged
          keep = stage.cfg.optim.keep_optimizer_state
          state = step.init_state(params, stage.cfg, stage.first,
                                  state.opt_state if state and keep else None,
                                  model=initial.model, seed=cfg.seed)
        state = run.stage(stage, state, mixtures[stage.index])
        done = int(state.step)
        if run.best.ended(patience):
          log(f'stopped    early after step {done}: {patience} evaluations in a row '
              f'were no better than the best')
          break
        if done < stage.last:
          signs.phase('stopped')
          log(f'stopped    after step {done}, saved; the same command continues')
          return state, initial.model
    except BaseException:
      signs.phase('failed')
      raise
    finally:
      trace.close()
      writer.close()
    assert state is not None  # a stage had a step left
    saved.trim()
    signs.phase('ended')
    if run.best.step is not None:
      log(f'best       {run.best}')
    if jax.process_index() == 0:
      log(f'trained    {done} steps; {report.write(folder, cfg.name)}')
    return state, initial.model


@dataclasses.dataclass(frozen=True)
class _Run:
  """What stays the same from stage to stage."""

  cfg: config.Config
  folder: pathlib.Path
  model: config.ModelConfig
  saved: checkpoint.Checkpoints
  evaluate: Evaluate | None
  tokenizer: data.Tokenizer
  mesh: jax.sharding.Mesh
  log: Callable[[str], None]
  should_stop: Callable[[int], bool]
  trace: profiler.Profiler
  loss: losses.Loss | None
  writer: metrics.Writer
  best: best.Best
  rows: Mapping[str, Any] | None
  signs: pulse.Pulse

  def catch_up(self, state: types.TrainState):
    """What a kill left undone: the evaluation that was due, the mark of the best."""
    if self.best.step in self.saved.steps():
      self.saved.keep_best(self.best.step, self.best.metric, self.best.score)
    now = int(state.step)
    stage = next(s for s in stages(self.cfg) if now <= s.last)
    if self._due(now, stage, self.cfg.eval.every) and not any(
        r['step'] == now and any(k.startswith('eval/') for k in r)
        for r in metrics.read(self.folder)):
      self._score(now, state, stage, self.log)

  def stage(self, stage: Stage, state: types.TrainState, mixture: data.Mixture
            ) -> types.TrainState:
    """Trains from wherever `state` stands to the end of the stage."""
    start_step = int(state.step)
    bar = progress.Progress(stage.cfg.name, start_step, stage.last, self.log,
                            silent=jax.process_index() > 0)
    stats = self._meter(stage, bar)
    try:
      state = self._steps(stage, state, mixture, stats, bar)
      bar.close()
      self.saved.wait()
    finally:
      bar.close()
    if told := meter.texts(stats.totals):
      self.log(f'texts      {stage.cfg.name}: {told}')
    return state

  def _steps(self, stage: Stage, state: types.TrainState, mixture: data.Mixture,
             stats: meter.Meter, bar) -> types.TrainState:
    start_step = now = int(state.step)
    update = step.make_update(
        self.model, stage.cfg, seed=self.cfg.seed, first_step=stage.first,
        loss=self.loss)
    batches = self._batches(stage, mixture, start_step, lambda: state.averaged)
    try:
      if start_step == 0:
        self._score(0, state, stage, bar.write)
      self.signs.phase('training', stage.cfg.name)
      for now, (batch, info) in self.signs.waits(batches):
        self.trace.before(now)
        state, values = update(state, sharding.to_global(self.mesh, batch))
        self.trace.after(now, state)
        self.signs.done(now)
        stats.read(now, values, batch, _counts(info))
        stopping = self.should_stop(now)
        if stopping or self._due(now, stage, self.cfg.checkpoint.every):
          stats.flush()  # a state is saved only once its loss was seen to be finite
          if stopping or now == stage.last or not stats.in_a_row:
            self.saved.save(now, state)
        if stopping:
          asked = time.perf_counter()
          self.saved.wait()
          took = time.perf_counter() - asked
          self.log(f'saved      step {now}, {took:.1f} s after the notice')
          break
        if self._due(now, stage, self.cfg.eval.every):
          stats.flush()
          self._score(now, state, stage, bar.write)
          if self.best.ended(self.cfg.eval.patience):
            self.saved.save(now, state)
            break
    except FloatingPointError as e:
      self._go_back(now, max(start_step, stats.last_good), e)
      raise
    except BaseException as e:  # a bad row, Ctrl-C: no step that was done is lost
      self._save_what_is_good(stage, state, start_step, stats, e)
      raise
    return state

  def _batches(self, stage: Stage, mixture: data.Mixture, done: int,
               params: Callable[[], types.Params]):
    """(step, batch and what is known of it) of every step that follows `done`.

    Where negatives are mined anew in between, by `params()` of that moment.
    """
    for mined, first, last in remine.spans(stage, done):
      if mined > stage.first:
        mixture = remine.mixture(stage, mined, self.folder, params(), self.tokenizer,
                                 self.mesh, self.log, self.rows)
      yield from zip(range(first + 1, last + 1), data.batches(
          mixture, self.tokenizer, seed=self.cfg.seed + stage.index,
          start_step=first - stage.first,
          local_rows=sharding.local_rows(self.mesh, stage.cfg.data.batch_size),
          shards=sharding.batch_shards(self.mesh)))

  def _go_back(self, now: int, good: int, error: FloatingPointError):
    """Sets aside the states that led to numbers that are not finite.

    A state is known to be good once the step after it was; `good` is the last step
    that was.
    """
    with contextlib.suppress(OSError):
      self.saved.wait()
    for at in [s for s in self.saved.steps() if s >= good]:
      name = self.saved.set_aside(at, f'diverged-{at}')
      self.log(f'diverged   the step after checkpoint {at} is not finite; set aside as '
               f'{name}')
    manifest.stopped(self.folder, now, 'diverged', error)

  def _save_what_is_good(self, stage: Stage, state: types.TrainState, start_step: int,
                         stats: meter.Meter, error: BaseException):
    if isinstance(error, data.BadRow):
      manifest.stopped(self.folder, stats.last_good, 'bad row', error)
    whole = not any(x.is_deleted() for x in jax.tree.leaves(state))
    # Several processes would have to agree that all of them save.
    if not whole or jax.process_count() > 1:
      return
    try:
      stats.flush()
      now = int(state.step)
      if now > start_step:
        self.saved.save(now, state)
        self.saved.wait()
        self.log(f'saved      step {now}, which the same command continues from')
    except (FloatingPointError, OSError) as e:
      self.log(f'not saved  {e}')

  def _meter(self, stage: Stage, bar) -> meter.Meter:
    chip = chips.from_device_kind(self.mesh.devices.flat[0].device_kind)
    total = stage.cfg.data.batch_size
    return meter.Meter(
        self.writer, bar, every=self.cfg.log_every, last=stage.last,
        sources=[s.name for s in stage.cfg.data.sources],
        flops=lambda batch: cost.model_flops(
            self.model, batch, stage.cfg.optim.freeze),
        peak=chip.flops * self.mesh.size if chip else 0.0,
        parts=total / len(sharding.local_rows(self.mesh, total)),
        max_skipped=stage.cfg.optim.max_skipped)

  def _due(self, now: int, stage: Stage, every: int) -> bool:
    return now == stage.last or (bool(every) and now % every == 0)

  def _score(self, now: int, state: types.TrainState, stage: Stage, log):
    """Evaluates; keeps the state that is the best so far."""
    if not self.evaluate:
      return
    with self.signs.during('evaluating'):
      scores = self.evaluate(state.averaged, self.model, self.tokenizer, self.mesh)
    self.writer.write(now, scores)
    shown = {k: v for k, v in scores.items() if not k.startswith('ci95/')}
    log(f'step {now}: ' + '  '.join(f'{k} {v:.4f}' for k, v in shown.items()))
    if not now and self.best.name not in scores and self.best.name:
      log(f'note       no score is called {self.best.name} (checkpoint.best); no best '
          f'checkpoint is kept. There are: {", ".join(shown)}')
    if self.best.see(now, scores):
      self.saved.save(now, state)
      self.saved.keep_best(now, self.best.metric, self.best.score)
    rank, first = (s.get('eval/effective_rank') or 0.0
                   for s in (scores, self.writer.first))
    if rank < _KEPT_RANK * first:
      log(f'collapse   effective rank fell from {first:.1f} to {rank:.1f}: '
          'different texts get ever the same vector; lower optim.peak_lr, or '
          'look at the data')


def _counts(info: data.BatchInfo) -> dict[str, int]:
  """What became of a batch's texts, by name."""
  return {k: v for k, v in dataclasses.asdict(info.counts).items()
          if isinstance(v, int)}
