"""Training from the first batch to the last checkpoint.

The loop never waits for the device it feeds: the numbers of a step are read
while the next one runs. A batch is a function of (seed, step) and so is dropout;
state and step are all a resumed run needs to repeat the uninterrupted one bit
for bit.
"""

from collections.abc import Callable
import dataclasses
import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import tqdm

from jaxembed import bundle, checkpoint, config, data, losses, sharding, types, workdir
from jaxembed.config.check import divides
from jaxembed.data import lengths
from jaxembed.models import encoder
from jaxembed.train import (
    chips,
    manifest,
    meter,
    metrics,
    optim,
    plan,
    profiler,
    report,
    start,
    step,
)

# evaluate(params, model, tokenizer, mesh) -> scores by name, 'eval/...'
Evaluate = Callable[..., dict[str, float]]
# Share of a bare matmul's speed that a whole step reaches, for the forecast.
_EFFICIENCY = 0.5
# Embeddings that keep a smaller share of their effective rank have collapsed.
_KEPT_RANK = 0.25


@dataclasses.dataclass(frozen=True)
class Stage:
  """A StageConfig with its place in the run."""

  index: int
  first: int  # steps done when it begins
  last: int  # and when it ends
  cfg: config.StageConfig


def stages(cfg: config.Config) -> list[Stage]:
  ends = list(itertools.accumulate(s.steps for s in cfg.stages))
  return [Stage(i, end - s.steps, end, s)
          for i, (s, end) in enumerate(zip(cfg.stages, ends))]


def describe(cfg: config.Config, model: config.ModelConfig,
             params: types.Params, mesh) -> str:
  """The plan, in words, before anything is spent."""
  size = sum(x.size for x in jax.tree.leaves(params))
  dense = sum(x.size for path, x in jax.tree.leaves_with_path(params)
              if 'kernel' in jax.tree_util.keystr(path))
  b = model.backbone
  lines = [
      f'run        {cfg.name}: {cfg.model.source or cfg.model.preset}',
      f'model      {b.num_layers} layers x {b.dim}, {model.attention}, '
      f'{model.pooling.kind} pooling, {size / 1e6:.1f} M parameters',
      f'mesh       {dict(mesh.shape)} on {mesh.size} x '
      f'{jax.devices()[0].device_kind}, activations {model.dtype}'
      + (f', products {model.precision}' if model.dtype == 'float32' else '')]
  flops = 0
  for s in stages(cfg):
    d = s.cfg.data
    group = 1 + d.num_negatives
    pairs = sum(len(data.load(source)) for source in d.sources)
    tokens = d.batch_size * (d.query_lengths[-1] + group * d.passage_lengths[-1])
    flops += 6 * dense * tokens * s.cfg.steps
    lines.append(
        f'stage      {s.cfg.name}: {s.cfg.steps} steps of {d.batch_size} queries out '
        f'of {pairs} pairs; {d.batch_size * group} candidates per query, '
        f'{d.batch_size * (1 + group)} texts or at most {tokens} tokens per step')
  minutes = flops / (mesh.size * _matmul_rate() * _EFFICIENCY) / 60
  lines.append(f'time       about {minutes:.0f} min at most, and compilation '
               f'({flops:.1e} FLOP, half the speed of a bare matmul)')
  return '\n'.join(lines)


def _matmul_rate(width: int = 1024) -> float:
  """FLOP/s of one device on a float32 product, measured now."""
  x = jnp.ones((width, width), out_sharding=sharding.spec(None, None))
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  begun = time.perf_counter()
  for _ in range(3):
    x = product(x)
  x.block_until_ready()
  return 3 * 2 * width**3 / (time.perf_counter() - begun)


def train(cfg: config.Config, folder: str | pathlib.Path, *,
          evaluate: Evaluate | None = None, say: Callable[[str], None] = print,
          stop: Callable[[], bool] = lambda: False,
          profile: tuple[int, int] | None = None, watch: metrics.Watch | None = None,
          loss: losses.Loss | None = None
          ) -> tuple[types.TrainState, config.ModelConfig]:
  """Runs, or resumes, the experiment in `folder`; returns the final state.

  `evaluate` scores the parameters before, during (config.eval.every) and after.
  Once `stop()` is true (a preemption notice), the state is saved after the step in
  flight, and the run returns early. `profile` are the first and the last step to
  trace into folder/profile. `watch` is told every record of metrics as well.
  `loss`, a losses.Loss of the caller's own, takes the place of the one that
  StageConfig.loss.name names, in every stage.

  Raises:
    ValueError: the configuration, the data or the folder do not fit; before any
      work is done.
    FloatingPointError: the loss is not finite; step and rows are named.
  """
  cfg = config.validate(cfg)
  mesh = sharding.make_mesh((cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor))
  _check_divides(cfg, mesh)
  if not workdir.is_workdir(folder):
    start.resolve(cfg.model)  # what is wrong with it is told before a folder is made
  folder = workdir.claim(folder, cfg)
  with (jax.set_mesh(mesh), checkpoint.Checkpoints(
      folder / 'checkpoints', keep=cfg.checkpoint.keep) as saved):
    resumed = workdir.is_workdir(folder) and bool(saved.steps())
    newest, last = max(saved.steps(), default=0), stages(cfg)[-1].last
    if newest < last:
      for line in manifest.record(folder, cfg, mesh, newest):
        say(f'differs    {line}')
    begin = (start.resume(folder, mesh) if resumed
             else start.start(cfg.model, cfg.seed, mesh))
    for stage in cfg.stages:
      if stage.data.pack:
        encoder.check_packable(begin.model, begin.model.attention, stage.data.pack)
    say(describe(cfg, begin.model, begin.params, mesh))
    for i, stage in enumerate(cfg.stages):
      for note in lengths.check(stage.data, begin.model):
        say(f'note       stages[{i}]: {note}')
      for note in (*optim.notes(stage.optim, stage.steps), *stage.loss.notes(
          any(s.temperature for s in stage.data.sources))):
        say(f'note       stages[{i}].{note}')
    if not resumed:
      for line in start.changes(cfg.model):
        say(line)
      begin = start.with_prompts(begin, cfg.stages, say)
      bundle.save_model(folder, begin, cfg.model.append_token)
    tokenizer = bundle.open(folder, weights=False).load_tokenizer()
    trace = profiler.Profiler(folder / 'profile', profile)
    run = _Run(cfg, begin.model, saved, evaluate, tokenizer, mesh, stop, trace,
               loss)
    state = _restore(cfg, begin, saved, mesh, say) if resumed else None
    done = int(state.step) if state else 0
    if done == last:
      say(f'finished   {done} steps were done before; nothing to train. '
          'Use a fresh --workdir to train again')
      return state, begin.model
    writer = metrics.Writer(folder, done, watch)
    try:
      for stage in stages(cfg):
        if done >= stage.last:
          continue
        if state is None or done == stage.first:
          params = begin.params if state is None else state.averaged
          carried = state.opt_state if stage.cfg.optim.keep_optimizer_state else None
          state = step.init_state(params, stage.cfg, stage.first, carried)
        state = run.stage(stage, state, writer)
        done = int(state.step)
        if done < stage.last:
          say(f'stopped    after step {done}, saved; the same command continues')
          break
    finally:
      trace.close()
      writer.close()
    if jax.process_index() == 0:
      say(f'trained    {done} steps; {report.plot(folder, cfg.name)}')
    return state, begin.model


def _check_divides(cfg: config.Config, mesh):
  for i, s in enumerate(cfg.stages):
    size = s.data.batch_size
    divides(f'config.stages[{i}].data.batch_size={size}', size,
            sharding.batch_shards(mesh))


def _restore(cfg, begin: bundle.Bundle, saved, mesh, say) -> types.TrainState:
  """The newest good checkpoint, on this mesh."""
  def like(at: int) -> types.TrainState:
    stage = next(s for s in stages(cfg) if at <= s.last)
    return step.abstract_state(begin.params, stage.cfg, mesh)

  state, _ = saved.restore(like, say=say)
  say(f'resumed    at step {int(state.step)}')
  return state


@dataclasses.dataclass(frozen=True)
class _Run:
  """What stays the same from stage to stage."""

  cfg: config.Config
  model: config.ModelConfig
  saved: checkpoint.Checkpoints
  evaluate: Evaluate | None
  tokenizer: data.Tokenizer
  mesh: jax.sharding.Mesh
  stop: Callable[[], bool]
  trace: profiler.Profiler
  loss: losses.Loss | None

  def stage(self, stage: Stage, state: types.TrainState,
            writer: metrics.Writer) -> types.TrainState:
    """Trains from wherever `state` stands to the end of the stage."""
    begun = int(state.step)
    update = step.make_update(
        self.model, stage.cfg, seed=self.cfg.seed, first_step=stage.first,
        loss=self.loss)
    batches = data.batches(
        stage.cfg.data, self.tokenizer, seed=self.cfg.seed + stage.index,
        start_step=begun - stage.first,
        mine=sharding.local_rows(self.mesh, stage.cfg.data.batch_size),
        shards=sharding.batch_shards(self.mesh))
    bar = tqdm.tqdm(total=stage.last, initial=begun, desc=stage.cfg.name,
                    unit='step', disable=jax.process_index() > 0)
    seen = self._meter(stage, writer, bar)
    if begun == 0:
      self._score(0, state, writer, bar)
    for now, (batch, _) in zip(range(begun + 1, stage.last + 1), batches):
      self.trace.before(now)
      state, values = update(state, sharding.to_global(self.mesh, batch))
      self.trace.after(now, state)
      seen.read(now, values, batch)
      stopping = self.stop()
      if stopping or self._due(now, stage, self.cfg.checkpoint.every):
        seen.flush()  # a state is saved only once its loss was seen to be finite
        self.saved.save(now, state, {'stage': stage.index})
      if stopping:
        break
      if self._due(now, stage, self.cfg.eval.every):
        seen.flush()
        self._score(now, state, writer, bar)
    bar.close()
    self.saved.wait()
    return state

  def _meter(self, stage: Stage, writer, bar) -> meter.Meter:
    chip = chips.of(self.mesh.devices.flat[0].device_kind)
    total = stage.cfg.data.batch_size
    return meter.Meter(
        writer, bar, every=self.cfg.log_every, last=stage.last,
        sources=[s.name for s in stage.cfg.data.sources],
        flops=lambda batch: plan.model_flops(
            self.model, batch, stage.cfg.optim.freeze),
        peak=chip.flops * self.mesh.size if chip else 0.0,
        parts=total / len(sharding.local_rows(self.mesh, total)))

  def _due(self, now: int, stage: Stage, every: int) -> bool:
    return now == stage.last or (bool(every) and now % every == 0)

  def _score(self, now: int, state: types.TrainState, writer, bar):
    if self.evaluate:
      scores = self.evaluate(
          state.averaged, self.model, self.tokenizer, self.mesh)
      writer.write(now, scores)
      bar.write(f'step {now}: ' + '  '.join(
          f'{k} {v:.4f}' for k, v in scores.items()))
      rank, first = (s.get('eval/effective_rank') or 0.0
                     for s in (scores, writer.first))
      if rank < _KEPT_RANK * first:
        bar.write(f'collapse   effective rank fell from {first:.1f} to {rank:.1f}: '
                  'different texts get ever the same vector; lower optim.peak_lr, or '
                  'look at the data')
