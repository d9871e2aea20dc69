"""Rows as a table: in Markdown, or aligned for a terminal."""

from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
  """Markdown; columns in order of first appearance."""
  names, *cells = _cells(rows)
  lines = [names, ['---'] * len(names), *cells]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def aligned(rows: Sequence[Mapping[str, object]]) -> str:
  """Columns of equal width, the first to the left, the others to the right."""
  lines = _cells(rows)
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join('   '.join(
      [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
      for line in lines)


def _cells(rows: Sequence[Mapping[str, object]]) -> list[list[str]]:
  """The columns' names, in order of first appearance, and the cells of every row."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  return [names, *([_cell(row.get(name, '')) for name in names] for row in rows)]


def _cell(value: object) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)
