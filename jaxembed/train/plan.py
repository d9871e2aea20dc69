"""Cost of a run on hardware that is not here: memory, FLOPs and time of a step.

The real update is compiled ahead of time for the devices of a topology that need
not exist here. Memory is the compiler's own figure; time is a roofline over the
FLOPs counted from shapes (cost analysis counts a loop's body once).
"""

import dataclasses
import itertools
import re
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from jaxembed import config, data, losses, memory, sharding, types
from jaxembed.models import encoder
from jaxembed.train import cost, optim, step
from jaxembed.train.chips import CHIPS, GIB, Chip

_COLLECTIVE = re.compile(
    r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
    r'(?:-start)?\(')
_SHAPE = re.compile(r'(pred|[a-z]+\d+)\[([\d,]*)\]')
# What the runtime keeps for itself on a device.
_RESERVED = 0.03


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """Figures of one stage; bytes are per device, FLOPs over all of them."""

  name: str
  parameters: int
  trainable: int  # of them
  arguments: int  # state and batch
  temporaries: int
  flops: float  # per step
  # kind -> (count, bytes), loops once; None if the program cannot be read here.
  collectives: dict[str, tuple[int, int]] | None
  precision: str = ''  # of float32 products; '': they have 16 bits

  @property
  def memory(self) -> int:
    """Bytes that a device needs."""
    return self.arguments + self.temporaries


def devices(topology: str, target_config: str = '') -> tuple[list, Chip]:
  """The devices of 'v5p:4x4x4' or 'h100:8', and what one of them is.

  target_config: text proto that describes the GPU, for 'h100:N'.

  Raises:
    ValueError: an unknown chip or shape.
  """
  name, _, shape = topology.partition(':')
  if name not in CHIPS or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise ValueError(f'topology {topology!r} is unknown; give CHIP:SHAPE with a chip '
                     f'of {", ".join(CHIPS)}, such as v5e:16x16 or h100:8')
  try:
    if name in ('h100', 'h200'):
      made = topologies.get_topology_desc(
          platform='cuda', topology_name=name, topology=f'1x1x{shape}',
          target_config=target_config)
    else:
      made = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  except Exception as e:  # plugins raise their own kinds
    raise ValueError(f'topology {topology!r} cannot be described here: {e}') from e
  return made.devices, CHIPS[name]


def encoding(model: config.ModelConfig, mesh: jax.sharding.Mesh, chip: Chip) -> str:
  """The line on how many texts of max_length a step of `encode` holds."""
  with jax.set_mesh(mesh):
    params = sharding.abstract(encoder.param_shapes(model, model.dtype), mesh)
  return str(memory.forecast(model, params, mesh=mesh, available=int(chip.hbm)))


def compile_stage(cfg: config.Config, index: int, model: config.ModelConfig,
                  mesh: jax.sharding.Mesh, mixture: data.Mixture | None = None
                  ) -> StagePlan:
  """Compiles the update of a stage for the mesh's devices; runs nothing.

  mixture: what the stage is trained on, for what its rows bring; None: it is not here,
  and rows bring what the stage asks for.
  """
  stage = cfg.stages[index]
  shapes = encoder.param_shapes(model)
  with jax.set_mesh(mesh):
    params = sharding.abstract(shapes, mesh)
    state = step.abstract_state(params, stage, mesh, model)
    update = step.make_update(model, stage, seed=cfg.seed)
    batch = largest_batch(stage, mesh, mixture, model.embedding_dim)
    lowered = update.lower(state, batch)
  trainable, _ = optim.split(shapes, optim.trainable(shapes, stage.optim))
  parameters, trained = (sum(x.size for x in jax.tree.leaves(p))
                         for p in (shapes, trainable))
  flops = cost.step_flops(model, stage, sharding.batch_shards(mesh))
  products = model.precision if model.dtype == 'float32' else ''
  try:
    done = lowered.compile()
  except jax.errors.JaxRuntimeError as error:  # how libtpu says that it does not fit
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return StagePlan(stage.name, parameters, trained, memory.bytes_here((state, batch)),
                     needed(str(error)), flops, None, products)
  sizes = done.memory_analysis()
  return StagePlan(
      stage.name, parameters, trained, sizes.argument_size_in_bytes,
      sizes.temp_size_in_bytes + sizes.output_size_in_bytes
      - sizes.alias_size_in_bytes, flops, _collectives_of(done), products)


def needed(error: str) -> int:
  """Bytes that a compiler says it would need: the largest size in its message."""
  found = re.findall(r'([\d.]*\d)([KMGT])\b', error)
  return int(max((float(n) * 2**(10 * (1 + 'KMGT'.index(unit))) for n, unit in found),
                 default=2**62))


def largest_batch(stage: config.StageConfig, mesh: jax.sharding.Mesh,
                  mixture: data.Mixture | None = None, width: int = 0) -> types.Batch:
  """The shapes of the largest batch of a stage.

  mixture: see `compile_stage`. width: of the model's vectors, and of a teacher's where
  neither data nor the loss's options say another.
  """
  cfg = stage.data
  queries, passages = cfg.batch_size, cfg.batch_size * (1 + cfg.num_negatives)

  def rows(dtype, *shape) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(
        mesh, jax.P(sharding.BATCH, *(None,) * (len(shape) - 1))))

  def tokens(n, length):
    return types.Tokens(rows(jnp.int32, n, length), rows(bool, n, length),
                        rows(bool, n, length))

  temperatures, known, scored, taught = _brought(stage, mixture)
  taught = (_projected_to(stage.loss) or width) if taught is None else taught
  pairing = types.Pairing(
      owner=rows(jnp.int32, passages), is_positive=rows(bool, passages),
      query_id=rows(jnp.int32, queries), passage_id=rows(jnp.int32, passages),
      group=rows(jnp.int32, queries), in_batch=rows(bool, queries),
      temperature=rows(jnp.float32, queries) if temperatures else None,
      score=rows(jnp.float32, passages) if scored else None,
      known=rows(jnp.int32, queries, known) if known else None,
      query_teacher=rows(jnp.float32, queries, taught) if taught else None,
      passage_teacher=rows(jnp.float32, passages, taught) if taught else None)
  if cfg.pack:
    packed = cost.packed_rows(cfg, sharding.batch_shards(mesh))
    texts = dataclasses.replace(
        tokens(packed, cfg.pack), segment=rows(jnp.int32, packed, cfg.pack))
    return types.PackedPairs(
        texts, rows(jnp.int32, queries), rows(jnp.int32, passages), pairing)
  return types.PairBatch(
      tokens(queries, cfg.query_lengths[-1]), tokens(passages, cfg.passage_lengths[-1]),
      pairing)


def _brought(stage: config.StageConfig, mixture: data.Mixture | None
             ) -> tuple[bool, int, bool, int | None]:
  """(Rows have temperatures, room for their known positives, a teacher's scores, the
  width of its vectors: 0 without any, None if they are not here to tell)."""
  return (any(s.temperature for s in stage.data.sources),
          mixture.known if mixture else max(stage.data.known_positives, 0),
          mixture.scored if mixture else losses.named(stage.loss).reads_scores,
          next((t.width for t in mixture.teachers if t), 0) if mixture else
          None if losses.named(stage.loss).reads.vectors else 0)


def _projected_to(loss: config.LossConfig) -> int:
  """The width of teacher's vectors that the options of a loss tell, or 0."""
  widths: list[Any] = [dict(part.options).get('teacher_width', 0)
                       for part in (loss, *loss.plus)]
  return max(widths)


def _collectives_of(compiled) -> dict[str, tuple[int, int]] | None:
  try:
    return collectives(compiled.as_text())
  except jax.errors.JaxRuntimeError:
    return None  # libtpu writes instructions that an older jaxlib does not know


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
  """Kind -> (how many, bytes they give), as written: a loop's body once."""
  found: dict[str, tuple[int, int]] = {}
  for result, kind in _COLLECTIVE.findall(hlo):
    size = 0
    for dtype, shape in _SHAPE.findall(result)[-1:]:
      bits = 8 if dtype == 'pred' else int(re.findall(r'\d+', dtype)[0])
      size = int(np.prod([int(n) for n in shape.split(',') if n])) * bits // 8
    count, total = found.get(kind, (0, 0))
    found[kind] = count + 1, total + size
  return found


def program(stage: config.StageConfig, mixture: data.Mixture | None = None) -> str:
  """What the compiled step depends on: stages of one program cost the same.

  All of the stage but what is known to change no product and no state. How many
  sources it has changes two records of a number for each. mixture: see `compile_stage`.
  """
  d = dataclasses.replace(
      stage.data, prefetch=0, check_rows=0, homogeneous=False,
      sub_batch=0, size_temperature=0.0,
      query_lengths=stage.data.query_lengths[-1:],
      passage_lengths=stage.data.passage_lengths[-1:], sources=[])
  o = dataclasses.replace(
      stage.optim, peak_lr=1.0, end_lr=0.0, warmup_steps=0, schedule='constant',
      keep_optimizer_state=False, max_skipped=0)
  return repr((_brought(stage, mixture), dataclasses.replace(
      stage, name='', steps=1, data=d, optim=o)))


def mixture_if_here(stage: config.StageConfig, opened: dict) -> data.Mixture | None:
  """What a stage is trained on; None: its files are not here. `opened`: see
  data.open_mixture.

  Raises:
    ValueError, data.BadRow: as data.open_mixture and `check_scores` do.
  """
  try:
    mixture = data.open_mixture(stage.data, opened)
  except FileNotFoundError:
    return None
  check_scores(stage, mixture)
  return mixture


def check_scores(stage: config.StageConfig, mixture: data.Mixture) -> None:
  """Raises ValueError if the stage's loss reads scores that its rows do not bring."""
  mixture.check_scores(losses.named(stage.loss).reads)


def padding(mixture: data.Mixture | None, tokenizer: data.Tokenizer, seed: int,
            shards: int = 1, count: int = 4) -> float:
  """Share of padding in the first `count` batches of a stage.

  Raises:
    FileNotFoundError: there is no mixture.
  """
  if mixture is None:
    raise FileNotFoundError('the data is not here')
  real = padded = 0
  now = dataclasses.replace(
      mixture, cfg=dataclasses.replace(mixture.cfg, prefetch=0))
  for batch, _ in itertools.islice(
      data.batches(now, tokenizer, seed=seed, shards=shards), count):
    for mask in batch.masks:
      real, padded = real + int(mask.sum()), padded + mask.size
  return 1 - real / padded


def fits(plan: StagePlan, chip: Chip) -> bool:
  """Whether the stage fits a chip's memory, less what the runtime takes."""
  return plan.memory <= chip.hbm * (1 - _RESERVED)


def seconds(plan: StagePlan, chip: Chip, count: int) -> tuple[float, str]:
  """(least time of a step, what binds it): arithmetic, or reading the state."""
  compute = plan.flops * chip.passes(plan.precision) / count / chip.flops
  reading = (plan.arguments + 2 * plan.temporaries) / chip.bandwidth
  return max((compute, 'arithmetic'), (reading, 'memory traffic'))


def remedies(cfg: config.Config, index: int, model: config.ModelConfig
             ) -> list[tuple[str, config.Config, config.ModelConfig]]:
  """Changes that save memory, mildest first: (what to set, config, model)."""
  found, now = [], cfg.stages[index]

  def propose(model, batch_size=0, **stage):
    settings = stage | ({'data.batch_size': batch_size} if batch_size else {})
    text = [f'config.model.remat={model.remat}', *(
        f'config.stages[{index}].{name}={value}' for name, value in settings.items())]
    if batch_size:
      stage['data'] = dataclasses.replace(now.data, batch_size=batch_size)
    stages = list(cfg.stages)
    stages[index] = dataclasses.replace(now, **stage)
    found.append((', '.join(text), dataclasses.replace(cfg, stages=stages), model))

  kept: dict[str, Any] = {}
  if now.token_budget and now.chunk_remat != 'full':
    kept = {'chunk_remat': 'full'}
    propose(model, **kept)
  full = dataclasses.replace(model, remat='full')
  if model.remat != 'full':
    propose(full, **kept)
  row = now.data.row
  for rows in (8, 1):
    if not now.token_budget or now.token_budget > rows * row:
      propose(full, token_budget=rows * row, **kept)
  propose(full, max(now.data.batch_size // 2, 1), token_budget=row, **kept)
  return found


def describe(found: StagePlan, stage: config.StageConfig, chip: Chip, count: int
             ) -> str:
  """The plan of a stage over `count` chips, in words."""
  d, group = stage.data, 1 + stage.data.num_negatives
  least, binding = seconds(found, chip, count)
  moved = ('unknown: the program cannot be read here'
           if found.collectives is None else ', '.join(
               f'{n} {kind} of {size / GIB:.2f} GiB (a loop counted once)'
               for kind, (n, size) in sorted(found.collectives.items())))
  return (f'\n{stage.name}: {stage.steps} steps, {d.batch_size * group} candidates per '
          f'query, {d.batch_size * (1 + group)} texts per step\n'
          f'  parameters       {found.parameters / 1e6:.1f} M, of which '
          f'{found.trainable / 1e6:.1f} M are trained\n'
          f'  memory per chip  {found.memory / GIB:.2f} of '
          f'{chip.hbm / GIB:.0f} GiB: state and batch '
          f'{found.arguments / GIB:.2f}, temporaries '
          f'{found.temporaries / GIB:.2f}\n'
          f'  FLOPs per step   {found.flops:.3g}\n'
          f'  collectives      {moved or "none"}\n'
          f'  least time       {least:.3g} s per step, bound by {binding}; '
          f'{least * stage.steps / 3600:.3g} h')


def refusal(found: StagePlan, cfg: config.Config, index: int,
            model: config.ModelConfig, mesh: jax.sharding.Mesh, chip: Chip,
            mixture: data.Mixture | None = None) -> str:
  """What to tell of a stage that does not fit: the mildest change that does."""
  need = f'{found.name} needs {found.memory / GIB:.2f} GiB per chip and does not fit'
  for text, changed, other in remedies(cfg, index, model):
    if fits(compile_stage(changed, index, other, mesh, mixture), chip):
      return f'{need}; this does: {text}'
  return (f'{need}, nor does half the batch in the smallest chunks; split parameters '
          f'further (config.mesh.fsdp, now {dict(mesh.shape)}) or use more chips')
