"""What to do about errors of the system, of devices, of packages that are missing."""

import errno
import importlib.metadata
import re

# What the system says of files, and what to do.
SYSTEM = {
    errno.ENOENT: 'no such file or folder; check the path',
    errno.EISDIR: 'this is a folder, and a file is wanted',
    errno.ENOTDIR: 'this is no folder, or lies below a file; choose another path',
    errno.EEXIST: 'this is there already; choose another path',
    errno.EACCES: 'permission denied; change its rights, or choose another path',
    errno.ENOSPC: 'the disk is full; make room and give the same command again'}
# What jax says of machines, and what to do: {0} is the pattern's group.
_MACHINES = (
    (r"Unable to initialize backend '(\w+)'|[Uu]nknown backend:? '?(\w+)",
     'JAX_PLATFORMS asks for {0}, and there is none here that jax can use; install '
     "jaxembed[cuda] beside an NVIDIA driver or jaxembed[tpu] on a TPU's host, or set "
     'JAX_PLATFORMS=cpu'),
    (r'RESOURCE_EXHAUSTED:? ?([^\n]{0,120})|(Out of memory[^\n]{0,100})',
     'the device has too little memory ({0}); take a smaller batch_size or '
     'token_budget, or model.remat=full. jaxembed plan says what an experiment needs'),
    (r'(DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED):',
     'the other processes were not reached in time ({0}); start all of them, with one '
     '--coordinator and --num_processes, each with a --process_id of its own'))


def of_package(module: str) -> str | None:
  """What to install for `module`; None for one of ours, which is missing by mistake."""
  package = module.partition('.')[0]
  if package in ('jaxembed', 'launch'):
    return None
  wanted = {'sklearn': 'scikit-learn'}.get(package, package).replace('_', '-')
  try:
    needed = importlib.metadata.requires('jaxembed') or ()
  except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    needed = ()
  extras = [extra[1] for line in needed if re.match(rf'{wanted}\b(?!-)', line)
            and (extra := re.search(r"extra == ['\"](\w+)", line))]
  extras.sort(key=lambda extra: extra in ('test', 'dev'))
  install = f'jaxembed[{extras[0]}]' if extras else wanted
  return f"this needs the package {wanted}, which is not here; pip install '{install}'"


def of_machine(e: BaseException) -> str | None:
  """What to do where a device, memory or another process is missing; None: not so."""
  if isinstance(e, MemoryError):
    return f'this machine has too little memory ({e})'
  for pattern, remedy in _MACHINES:
    if found := re.search(pattern, str(e)):
      return remedy.format(next(filter(None, found.groups()), '').strip())
  return None
