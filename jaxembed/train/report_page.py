"""The page of a run as HTML: curves, scores, data, settings, environment."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import html
import io
import json
import re
from typing import Any

from jaxembed import config
from jaxembed.train import curves

_STYLE = """
:root { color-scheme: light; --ink: #1c2330; --pale: #667085; --line: #e4e7ec; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto;
       max-width: 64rem; padding: 0 1.2rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
p.about { color: var(--pale); margin: .2rem 0 1.2rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr));
          gap: .6rem; }
.curves svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--pale); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--pale); margin: .6rem 0; }
code { font-size: .9em; }
"""
_CURVES = (('Training loss', curves.draw_loss), ('Scores', curves.draw_scores),
           ('Learning rate', curves.draw_rate), ('Throughput', curves.draw_speed))


def render(manifest: Mapping[str, Any], records: Sequence[curves.Record], title: str
           ) -> str:
  """The whole page. It loads nothing: styles and pictures are inside."""
  sections = [('Curves', _pictures(records)), ('Scores', _scores(records)),
              ('Data', _data(manifest)), ('Settings', _settings(manifest['config'])),
              ('Environment', _environment(manifest['starts']))]
  body = '\n'.join(f'<h2>{heading}</h2>\n{text}' for heading, text in sections)
  return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          f'<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n'
          f'<h1>{_text(title)}</h1>\n'
          f'<p class="about">{_text(_about(manifest, records))}</p>\n'
          f'{body}\n</body></html>\n')


def scores(records: Sequence[curves.Record]) -> list[dict[str, str]]:
  """A row per score: before training, at the end, the best; with 95% intervals."""
  rows = []
  for name in curves.score_names(records):
    found = [r for r in records if r.get(name) is not None]
    if not found:
      continue
    best = max(found, key=lambda r: r[name])
    rows.append({
        'score': name.removeprefix('eval/'),
        f'step {found[0]["step"]}': _with_interval(found[0], name),
        f'step {found[-1]["step"]}': _with_interval(found[-1], name),
        'change': f'{found[-1][name] - found[0][name]:+.4f}',
        'best': f'{best[name]:.4f} (step {best["step"]})'})
  return rows


def _with_interval(record: curves.Record, name: str) -> str:
  half = record.get(curves.interval_name(name))
  return f'{record[name]:.4f}' + (f' ± {half:.4f}' if half is not None else '')


def _about(manifest: Mapping[str, Any], records: Sequence[curves.Record]) -> str:
  cfg, last = manifest['config'], max((r['step'] for r in records), default=0)
  steps = sum(stage['steps'] for stage in cfg['stages'])
  names = ', '.join(stage['name'] for stage in cfg['stages'])
  return (f'{cfg["model"]["source"] or cfg["model"]["preset"]}, step {last} of {steps} '
          f'(stages: {names}), on {manifest["starts"][-1]["devices"]}')


def _pictures(records: Sequence[curves.Record]) -> str:
  figures = []
  for name, draw in _CURVES:
    file = io.StringIO()
    curves.single(draw, records).savefig(file, format='svg')
    svg = file.getvalue()[file.getvalue().index('<svg'):]
    # Names inside a picture are those of its own parts.
    svg = re.sub(r'(id="|href="#|url\(#)', rf'\g<1>{name.split()[-1].lower()}-', svg)
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    figures.append(f'<figure aria-label="{name}" style="margin:0">{svg}</figure>')
  return f'<div class="curves">{"".join(figures)}</div>'


def _scores(records: Sequence[curves.Record]) -> str:
  rows = scores(records)
  if not rows:
    return '<p>No evaluation: the experiment has no eval.source.</p>'
  return _table(rows) + ('<p class="about">± is half of a 95% interval over the '
                         'queries, of one run.</p>')


def _data(manifest: Mapping[str, Any]) -> str:
  rows = []
  for i, stage in enumerate(manifest['config']['stages']):
    for source in stage['data']['sources']:
      found = manifest['data'].get(f'stages[{i}]/{source["name"]}', {})
      rows.append({
          'stage': stage['name'], 'source': source['name'],
          'rows': f'{found.get("rows", "")}', 'kind': source['kind'],
          'path': source['path'] or source['split'],
          'sha256': str(found.get('sha256', ''))[:16]})
  return _table(rows)


def _settings(stored: Mapping[str, Any]) -> str:
  """Fields that differ from their defaults; then all of them."""
  fields, usual = dict(_flat(stored)), _defaults()
  every = [{'field': k, 'value': v} for k, v in fields.items()]
  changed = [row for row in every
             if usual.get(re.sub(r'\[\d+\]', '[0]', row['field'])) != row['value']]
  return (f'{_table(changed)}\n<details><summary>All {len(every)} fields</summary>'
          f'{_table(every)}</details>')


def _defaults() -> dict[str, str]:
  """Every field's default, by its path; of lists the first entry's."""
  usual = dict(_flat(config.to_dict(config.Config())))
  for field in dataclasses.fields(config.SourceConfig):
    if field.default is not dataclasses.MISSING:
      for path in ('stages[0].data.sources[0]', 'eval.source'):
        usual |= _flat(field.default, f'{path}.{field.name}')
  return usual


def _flat(value: Any, path: str = '') -> Iterator[tuple[str, str]]:
  """(path, value as JSON) of every leaf."""
  if isinstance(value, dict) and value:
    for key, inner in value.items():
      yield from _flat(inner, f'{path}.{key}' if path else key)
  elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
    for i, inner in enumerate(value):
      yield from _flat(inner, f'{path}[{i}]')
  else:
    yield path, json.dumps(list(value) if isinstance(value, tuple) else value)


def _environment(starts: Sequence[Mapping[str, Any]]) -> str:
  rows = [{'from step': str(s['step']), 'devices': s['devices'],
           'mesh': ' x '.join(f'{k} {v}' for k, v in s['mesh'].items()),
           'processes': str(s['processes']), 'code': str(s.get('git') or ''),
           'what it changed': '; '.join(s.get('changes', ())),
           'ended by': json.dumps(s['stopped']) if s.get('stopped') else ''}
          for s in starts]
  versions = [{'package': k, 'version': str(v)}
              for k, v in starts[-1]['versions'].items()]
  return (f'{_table(rows)}\n<details open><summary>Versions</summary>'
          f'{_table(versions)}</details>')


def _table(rows: Sequence[Mapping[str, str]]) -> str:
  """Rows as a table; columns in order of first appearance."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  head = ''.join(f'<th>{_text(name)}</th>' for name in names)
  lines = [''.join(f'<td>{_text(row.get(name, ""))}</td>' for name in names)
           for row in rows]
  return (f'<table><thead><tr>{head}</tr></thead><tbody>'
          f'{"".join(f"<tr>{line}</tr>" for line in lines)}</tbody></table>')


def _text(value: str) -> str:
  return html.escape(str(value))
