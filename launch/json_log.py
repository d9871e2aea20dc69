"""Lines of a log as JSON, for collectors of logs: --log_format=json."""

from collections.abc import Callable
import datetime
import json
import math

from absl import flags

FORMAT = flags.DEFINE_enum('log_format', 'text', ('text', 'json'),
                           'Of lines on standard output.')


def line(event: str, **values) -> None:
  """Prints one object: time, event and values."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
  print(json.dumps({'time': now, 'event': event} | values), flush=True)


def log() -> Callable[[str], None]:
  """What takes the lines 'event      text' of a run."""
  if FORMAT.value == 'text':
    return print

  def told(text: str) -> None:
    event, _, rest = text.partition(' ')
    line(event.rstrip(':'), text=rest.strip())
  return told


def with_metrics(on_metrics):
  """`on_metrics`, and each record as a line where lines are JSON."""
  if FORMAT.value == 'text':
    return on_metrics

  def told(step: int, values) -> None:
    line('metrics', step=step, **{
        k: v if math.isfinite(v) else None for k, v in values.items()})
    if on_metrics:
      on_metrics(step, values)
  return told
