"""Rows of a mining run (launch.mine): queries, their positives, mined negatives."""

from collections.abc import Sequence
import os
import pathlib

from jaxembed.data import files
from jaxembed.data.fields import BadRow
from jaxembed.files import place


@place.remote(reads=('folder',))
def open_rows(folder: str | os.PathLike) -> Sequence:
  """The rows that rules made last, each (row, 'file:line').

  Raises:
    FileNotFoundError: there is no such folder.
    BadRow: it is no mining run, or no rules were applied yet.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} does not exist; give the folder of a mining run '
                            '(launch.mine --workdir)')
  if not (folder / 'mined.json').is_file() or not (folder / 'mined.jsonl').is_file():
    raise BadRow(f'{folder} has no mined rows (mined.jsonl, mined.json); finish it '
                 f'with launch.mine --workdir={folder}')
  return files.JsonLines(folder / 'mined.jsonl')
