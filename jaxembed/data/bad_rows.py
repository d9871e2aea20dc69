"""Rows that cannot be used: the end of a run, or passed over and counted."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
from typing import TypeVar

from jaxembed.config import SourceConfig
from jaxembed.data.fields import BadFile, BadRow

T = TypeVar('T')


@dataclasses.dataclass
class Skipped:
  """How many rows were passed over, and what is wrong with the first."""

  count: int = 0
  first: str = ''

  def add(self, error: BadRow) -> None:
    """Counts a row that is skipped; the first one is kept in words."""
    self.count += 1
    self.first = self.first or str(error)


def good(places: Iterable[int], read: Callable[[int], T], cfg: SourceConfig,
         skipped: Skipped | None = None) -> Iterator[tuple[int, T]]:
  """(place, what `read` makes of it) of the rows that can be used.

  Raises:
    BadRow: one cannot, and cfg.on_bad_row is 'fail'.
    BadFile: the file cannot be read on.
  """
  for i in places:
    try:
      found = read(i)
    except BadFile:
      raise
    except BadRow as error:
      if cfg.on_bad_row == 'fail':
        raise
      if skipped is not None:
        skipped.add(error)
    else:
      yield i, found
