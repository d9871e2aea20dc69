"""Rows as a Markdown table."""


def markdown(rows: list[dict]) -> str:
  """Markdown; columns in order of first appearance."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  lines = [names, ['---'] * len(names)]
  lines += [[_cell(row.get(name, '')) for name in names] for row in rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cell(value) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)
