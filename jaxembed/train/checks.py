"""What must fit before a run begins, told before its folder is claimed."""

from collections.abc import Iterator, Sequence

import jax

from jaxembed import config, data, losses, sharding
from jaxembed.config.check import divides
from jaxembed.data import lengths
from jaxembed.models import encoder
from jaxembed.train import optim


def stages_fit(cfg: config.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError where a stage names no loss, or its batch is not divided by the
  devices of `mesh`."""
  for i, stage in enumerate(cfg.stages):
    losses.named(stage.loss)
    size = stage.data.batch_size
    divides(f'config.stages[{i}].data.batch_size={size}', size,
            sharding.batch_shards(mesh))


def model_fits(cfg: config.Config, model: config.ModelConfig) -> None:
  """Raises ValueError where a stage asks for what `model` does not have: texts that
  share rows, or prefixes of its vectors."""
  for i, stage in enumerate(cfg.stages):
    if stage.data.pack:
      encoder.check_packable(model, model.attention)
    if stage.loss.widths and max(stage.loss.widths) > model.embedding_dim:
      raise ValueError(
          f'config.stages[{i}].loss.widths is {stage.loss.widths}, and the vectors of '
          f'the model have {model.embedding_dim} dimensions; leave out what is above')


def data_fits(cfg: config.Config, mixtures: Sequence[data.Mixture],
              tokenizer: data.Tokenizer, loss: losses.Loss | None) -> None:
  """Raises ValueError where rows lack what their loss reads, or texts have no room.

  loss: of the caller's own; what it reads is for the caller to know.
  """
  for stage, mixture in zip(cfg.stages, mixtures, strict=True):
    if loss is None:
      mixture.check_scores(losses.named(stage.loss).reads)
    mixture.check(tokenizer)


def notes(cfg: config.Config, model: config.ModelConfig,
          mixtures: Sequence[data.Mixture], loss: losses.Loss | None) -> Iterator[str]:
  """What the stages ask for and will not get, or may not mean, one line each."""
  for i, (stage, mixture) in enumerate(zip(cfg.stages, mixtures)):
    own = any(s.temperature for s in stage.data.sources)
    told = [] if loss else stage.loss.notes(own)
    reads = None if loss else losses.named(stage.loss).reads
    for note in (*optim.notes(stage.optim, stage.steps), *told):
      yield f'stages[{i}].{note}'
    for note in (*lengths.check(stage.data, model), *mixture.notes(reads)):
      yield f'stages[{i}]: {note}'
