"""Compiles an experiment for hardware that is not here, and says what it costs.

  jaxembed plan --config=nv_embed_v2 --topology=v5p:4x4x4
  jaxembed plan --config=quickstart --check

Prints candidates and texts per step, parameters, memory per chip, FLOPs, collectives,
the least time of a step, padding. A configuration that does not fit is refused (exit
1), with a change that does if one is found. The weights are not needed, only their
shape: of a source that cannot be opened here it is the preset's under the source's
published name, or the one that --preset names. --check compiles nothing: it reads the
data of every stage, as far as the configuration has it checked, and counts padding.
"""

import dataclasses
import os

from absl import flags
from ml_collections import config_flags

from jaxembed import config, data, losses, sharding
from jaxembed.files import place
from jaxembed.models import presets
from jaxembed.train import plan, stages, start

from . import cli, errors

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file or recipe.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'CHIP:SHAPE, such as v5e:16x16.')
_PRESET = flags.DEFINE_string('preset', None, "The source's shape, by name.")
_TARGET = flags.DEFINE_string('target_config', '', 'Text proto of the GPU (h100:N).')
_CHECK = flags.DEFINE_bool('check', False, 'The configuration and the data alone.')
flags.mark_flags_as_required(['config'])


def main():
  cfg, _ = stages.with_epochs(config.validate(_CONFIG.value), missing_ok=True)
  if _CHECK.value:
    _check(cfg)
    return
  if not _TOPOLOGY.value:
    raise errors.WrongCommand('give --topology=CHIP:SHAPE (v5e:16x16), or --check')
  if _TOPOLOGY.value.startswith('h') and not _TARGET.value:
    raise errors.WrongCommand("GPUs need --target_config: a .txtpb of XLA's sources")
  # Nothing runs on a TPU here: several plans may be made at a time.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  where, chip = plan.devices(_TOPOLOGY.value, _read(_TARGET.value))
  model = start.apply_spec(_shape(cfg.model), cfg.model)
  mesh = sharding.make_mesh(cfg.mesh.sizes, where)
  print(f'{cfg.name} on {_TOPOLOGY.value}: {len(where)} chips, mesh {dict(mesh.shape)}'
        f'\nencoding    {plan.encoding(model, mesh, chip)}')
  made, opened = {}, {}
  for index, stage in enumerate(cfg.stages):
    mixture = plan.mixture_if_here(stage, opened)
    program = plan.program(stage, mixture)
    found = made[program] = made.get(program) or plan.compile_stage(
        cfg, index, model, mesh, mixture)
    print(plan.describe(found, stage, chip, len(where)))
    try:
      _padding(cfg, mixture, sharding.batch_shards(mesh))
    except FileNotFoundError:
      print('  padding          unknown: needs the tokenizer and the data here')
    if not plan.fits(found, chip):
      raise ValueError(plan.refusal(found, cfg, index, model, mesh, chip, mixture))


def _check(cfg: config.Config):
  """Reads the data of every stage; a fault is an error."""
  for stage, mixture in zip(cfg.stages, data.open_stages(cfg.stages)):
    print(f'\n{stage.name}')
    for source in mixture.sources:
      print(f'  {source.cfg.name:16} {len(source.rows)} rows')
    plan.check_scores(stage, mixture)
    for note in mixture.notes(losses.named(stage.loss).reads):
      print(f'  note: {note}')
    _padding(cfg, mixture, 1)


def _padding(cfg: config.Config, mixture: data.Mixture | None, devices: int):
  tokenizer = start.tokenizer(cfg.model)
  share = plan.padding(mixture, tokenizer, cfg.seed, devices)
  print(f'  padding          {share:.1%} of the first batches')


def _shape(spec: config.ModelSpec) -> config.ModelConfig:
  if not _PRESET.value:
    try:
      return start.describe(spec).cfg
    except FileNotFoundError:
      if spec.source not in presets.PUBLISHED:
        raise
  shape = presets.get(_PRESET.value or presets.PUBLISHED[spec.source])
  return dataclasses.replace(shape, dtype='float32')  # as folders are opened


def _read(path: str) -> str:
  return place.fetched(path).read_text() if path else ''


if __name__ == '__main__':
  cli.run(main)
