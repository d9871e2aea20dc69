"""Report on a stage's data, as text and as a picture of lengths."""

from collections.abc import Sequence
import pathlib

from jaxembed.data.examine import DataReport, Lengths, SourceReport


def text(report: DataReport, stage: str = '') -> str:
  """The report in lines."""
  lines = [f'data of stage {stage}'] if stage else []
  for source in report.sources:
    lines += _source(source)
  if report.candidates is not None:
    lines.append(f'batches    {report.candidates:.0f} candidates per query, '
                 f'{report.padding:.1%} of tokens are padding (first batches)')
  lines += [f'note       {note}' for note in report.notes]
  return '\n'.join(lines)


def plot(reports: Sequence[DataReport], path: pathlib.Path) -> pathlib.Path:
  """Draws the lengths of queries and passages of every source into a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  sources = [s for report in reports for s in report.sources]
  figure = Figure(figsize=(9, 2.4 * len(sources)), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots(len(sources), 2, squeeze=False)
  for (left, right), source in zip(axes, sources):
    for at, side, found in ((left, 'queries', source.query),
                            (right, 'passages', source.passage)):
      at.hist(found.tokens, bins=40)
      at.axvline(found.room, color='tab:red', linewidth=1.2)
      at.set(xlabel=f'tokens of {side}', title=f'{source.name}: '
             f'{found.truncated:.1%} are cut at {found.room}', yticks=[])
      at.spines[['top', 'right', 'left']].set_visible(False)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  return path


def _source(s: SourceReport) -> list[str]:
  of = '' if s.read == s.rows else f', {s.read} of them read'
  lines = [f'source     {s.name}: {s.rows} rows{of}; {s.same_rows} come again, and '
           f'{s.same_queries} have a query that came before']
  if s.bad_count:
    lines.append(f'bad rows   {s.bad_count}, which '
                 + ('are skipped' if s.skipped else 'would end a run')
                 + f'; the first {len(s.bad)}:')
    lines += [f'  {said}' for said in s.bad]
  lines += [_lengths('queries', s.query), _lengths('passages', s.passage)]
  for name, (count, where) in s.overlap.items():
    lines.append(f'overlap    {count} rows share 8 words in a row with {name}'
                 + (f', first {", ".join(where[:3])}' if where else ''))
  return lines


def _lengths(side: str, found: Lengths) -> str:
  if not len(found.tokens):
    return f'{side:10} none'
  half, most, nearly, longest = found.quantiles()
  return (f'{side:10} tokens: half up to {half}, 90% {most}, 99% {nearly}, longest '
          f'{longest}; {found.truncated:.1%} are cut at {found.room}')
