"""--step: which checkpoint of a workdir a launcher reads."""

from collections.abc import Callable

from absl import flags

from . import errors


def define() -> Callable[[], int | str | None]:
  """Defines --step; a function that answers which checkpoint of a workdir is meant."""
  flag = flags.DEFINE_string(
      'step', None, "Of a workdir, the checkpoint to read: a step, or 'best'; without "
      'it the newest.')

  def step():
    text = flag.value
    if text is None or text == 'best':
      return text
    if not text.isdigit():
      raise errors.WrongCommand(
          f"--step is {text!r}; give a step of the run, or 'best'")
    return int(text)

  return step
