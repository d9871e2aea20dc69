"""What rules did to a candidate table, as text."""

from collections.abc import Iterator

from jaxembed.mining.collection import Collection
from jaxembed.mining.rules import Rules
from jaxembed.mining.select import QUANTILES, Account

_SHOWN = 70  # characters of a text


def lines(account: Account, rules: Rules, texts: Collection) -> Iterator[str]:
  """Counts, quantiles of scores, and examples of what each rule rejected."""
  total = max(account.candidates, 1)
  yield (f'{account.queries} queries, {account.candidates} candidates: {account.kept} '
         f'break no rule ({account.kept / total:.1%}), {account.taken} taken')
  for name, count in account.rejected.items():
    if count:
      yield f'  rejected {count:>9} ({count / total:6.2%})  {name}'
  if account.short:
    yield (f'  {account.short} queries have fewer than {rules.num_negatives} '
           'negatives; search deeper (--depth), or loosen a rule')
  yield f'{"":<20}' + ''.join(f'{q:>9.0%}' for q in QUANTILES)
  for name, values in account.quantiles().items():
    yield f'{name:<20}' + ''.join(f'{value:9.4f}' for value in values)
  for name, shown in account.examples.items():
    for query, document, score, positive in shown:
      yield f'rejected as {name}: score {score:.4f}, positive {positive:.4f}'
      yield f'  query     {_short(texts.queries[query][0]["text"])}'
      yield f'  document  {_short(texts.documents[document][0]["text"])}'


def _short(text: str) -> str:
  text = ' '.join(text.split())
  return text if len(text) <= _SHOWN else text[:_SHOWN - 3] + '...'
