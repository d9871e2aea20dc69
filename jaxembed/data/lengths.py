"""Check of training lengths against the model's positions and max_length."""

from jaxembed.config import DataConfig, ModelConfig


def check(data: DataConfig, model: ModelConfig) -> list[str]:
  """What is to be told of a stage's lengths, if anything.

  Args:
    data: a stage's; texts are cut to its longest lengths in training.
    model: as it will be saved; used, it cuts texts at model.max_length.

  Raises:
    ValueError: texts longer than the model has positions for.
  """
  most = model.backbone.max_positions
  if model.length is not None and model.length.method != 'windows':
    most = max(most, model.length.target)
  for side in ('query', 'passage'):
    longest = getattr(data, f'{side}_lengths')[-1]
    if longest > most:
      raise ValueError(
          f'DataConfig.{side}_lengths goes up to {longest} tokens, but the model has '
          f'positions for {most} (max_position_embeddings); shorten it')
  longest, served = data.longest, model.max_length
  if longest > served:
    return [f'texts are read up to {longest} tokens in training, but the model cuts '
            f'them at its max_length of {served} when it is used; set '
            f'config.model.max_length={longest} to use what was trained']
  if longest < served:
    return [f'texts are cut at {longest} tokens in training; used, the model reads up '
            f'to its max_length of {served}, longer than it was trained on']
  return []
