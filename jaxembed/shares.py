"""Checkpoint in shares: each process saved those arrays' pieces that it holds.

Where every process has a disk of its own, each saves by itself, under the names that
Orbax gives to several processes on one disk. Together the files are such a checkpoint,
but for the index of all, which is made here. Orbax is imported for that alone.
"""

import asyncio
import pathlib
import shutil

from etils import epath
from orbax.checkpoint import type_handlers


def join(folder: pathlib.Path) -> None:
  """Makes the shares in the folder of one step a checkpoint, if there are several."""
  for part in filter(pathlib.Path.is_dir, folder.iterdir()):
    if len(list(part.glob('ocdbt.process_*'))) > 1:
      shutil.rmtree(part / 'd', ignore_errors=True)
      (part / 'manifest.ocdbt').unlink(missing_ok=True)
      asyncio.run(type_handlers.merge_ocdbt_per_process_files(
          epath.Path(part), type_handlers.get_ts_context(use_ocdbt=True),
          use_zarr3=True))
