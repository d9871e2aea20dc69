"""Several hosts as one: the flags that name them, and joining."""

import socket
from typing import Any

from absl import flags
import jax

from . import errors

_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, "HOST:PORT of process 0, when several hosts work together; "
    "'auto' where the platform knows (Cloud TPU, GKE, Slurm).")
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
# Seconds that a host may give no sign, and that ends wait for each other's.
_TIMES: dict[str, Any] = {
    'heartbeat_timeout_seconds': 40, 'shutdown_timeout_seconds': 40}


def join() -> None:
  """Makes the devices of all processes one, if --coordinator asks for it.

  Raises:
    WrongCommand: flags are missing, or contradict each other.
    OSError: the port is in use.
  """
  where, count, here = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if not where:
    if count is not None or here is not None:
      raise errors.WrongCommand(
          '--num_processes and --process_id need --coordinator=HOST:PORT')
    return
  if where == 'auto':
    try:
      jax.distributed.initialize(**_TIMES)
    except (ValueError, RuntimeError) as e:
      raise OSError(f'--coordinator=auto found no platform that it knows (Cloud TPU, '
                    f'TPUs and JobSets on GKE, Slurm, Open MPI): {str(e)[:200]}; give '
                    '--coordinator=HOST:PORT, --num_processes and --process_id'
                    ) from None
    return
  if count is None or here is None:
    raise errors.WrongCommand(
        '--coordinator=HOST:PORT needs --num_processes and --process_id; or use '
        "'auto' where the platform knows")
  host, _, port = where.rpartition(':')
  if not host or not port.isdigit():
    raise errors.WrongCommand(
        f"--coordinator is {where!r}; give HOST:PORT, such as 10.0.0.1:8476, or 'auto'")
  if not 0 <= here < count:
    raise errors.WrongCommand(
        f'--process_id is {here}; give 0 to {count - 1}, below --num_processes')
  if here == 0:
    _check_free(int(port))
  jax.distributed.initialize(where, count, here, **_TIMES)


def _check_free(port: int) -> None:
  """Raises OSError if a program listens on `port`: gRPC would end this process."""
  with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      s.bind(('', port))
    except (OSError, OverflowError) as e:
      raise OSError(f'--coordinator: port {port} cannot be listened on here ({e}); '
                    'another run may be using it: choose another port, the same one '
                    'for all processes') from None
