"""Texts with labels as contrastive examples: classification and clustering sets."""

from collections.abc import Sequence

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import bad_rows, records
from jaxembed.data.records import BadRow, Example, Passage


class Labelled(Sequence):
  """Labelled texts as examples: the same label is a positive, another a negative.

  With rows='same_label' it is compared with texts (NV-Embed-v2), with 'label_text'
  with the labels themselves (NV-Embed-v1; two-label tasks in v2). Repeats of a text
  count once. A text that stands under two labels is left out. With 'same_label' a
  text alone under its label is a negative of others, never a query.

  Texts are held in memory, in order of their labels: those of label c are
  _texts[_ends[c - 1]:_ends[c]].
  """

  def __init__(self, rows: Sequence, cfg: SourceConfig):
    self._label_text = cfg.rows == 'label_text'
    self.skipped = bad_rows.Skipped()
    found, torn = _read(rows, cfg, self.skipped)
    names = [example.positives[0].text for example in found]
    self._names = list(dict.fromkeys(names))
    if len(self._names) < 2:
      raise BadRow(
          f'source {cfg.name!r}: negatives need texts of two labels, and there are '
          f'{len(self._names)}'
          + (f', without {torn} texts that stand under several labels' if torn else '')
          + ('. Raise limit if it cuts off the others' if cfg.limit else
             '; leave the source out'))
    numbers = {name: c for c, name in enumerate(self._names)}
    labels = np.array([numbers[name] for name in names])
    order = np.argsort(labels, kind='stable')
    self._texts = [found[i].query for i in order]
    self._instructions = [found[i].instruction for i in order]
    self._labels = labels[order]
    counts = np.bincount(labels)
    self._ends = np.cumsum(counts)
    usable = self._label_text | (counts[self._labels] > 1)
    self._rows = np.flatnonzero(usable)
    if not len(self._rows):
      raise BadRow(f'source {cfg.name!r}: no label has two texts, so nothing has a '
                   "positive; is the label's column an id? rows='label_text' needs "
                   'one text of each')

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def instructions(self) -> list[str]:
    """Of every row its own instruction, '' without one."""
    return [self._instructions[i] for i in self._rows]

  def __getitem__(self, i: int) -> Example:
    """One of the row's examples, always the same one."""
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self.draw(i, 1, np.random.default_rng(i))

  def draw(self, i: int, negatives: int, rng: np.random.Generator) -> Example:
    """The row's example with a positive and `negatives` negatives from `rng`.

    No text comes twice. With fewer wrong candidates than `negatives`, all come.
    """
    at = int(self._rows[i])
    label = int(self._labels[at])
    if self._label_text:
      candidates, own, positive = self._names, range(label, label + 1), label
    else:
      end = int(self._ends[label])
      candidates = self._texts
      own = range(int(self._ends[label - 1]) if label else 0, end)
      positive = int(rng.integers(own.start, own.stop - 1))
      positive += positive >= at
    others = len(candidates) - len(own)
    wrong = rng.choice(others, min(negatives, others), replace=False)
    wrong = wrong + len(own) * (wrong >= own.start)  # step over the own label
    return Example(self._texts[at], (Passage(candidates[positive]),),
                   tuple(Passage(candidates[k]) for k in wrong),
                   instruction=self._instructions[at])


def _read(rows: Sequence, cfg: SourceConfig, skipped: bad_rows.Skipped
          ) -> tuple[list[Example], int]:
  """Distinct texts with their labels, without those that stand under two, and how
  many these are."""
  found: dict[str, Example] = {}
  torn = set()
  places = range(min(len(rows), cfg.limit) if cfg.limit else len(rows))

  def read(i: int) -> Example:
    row, where = rows[i]
    return records.labelled(row, where, cfg.columns, shown=cfg.rows == 'label_text')

  for _, example in bad_rows.good(places, read, cfg, skipped):
    first = found.setdefault(example.query, example)
    if first.positives != example.positives:
      torn.add(example.query)
  return [e for text, e in found.items() if text not in torn], len(torn)
