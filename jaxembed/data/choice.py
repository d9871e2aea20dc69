"""Random draw of a positive, hard negatives and an instruction for one step."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxembed.config import SourceConfig
from jaxembed.data import prompts
from jaxembed.data.records import Example, Passage


@dataclasses.dataclass(frozen=True)
class Row:
  """What one example contributes to one step: every choice is made."""

  group: int  # place of its source in DataConfig.sources
  query: str
  passages: tuple[str, ...]  # the positive, then negatives
  query_prompt: str
  passage_prompt: str
  dropped: int  # negatives that equal a positive
  empty: int = 0  # places for negatives that the row does not fill
  scores: tuple[float, ...] = ()  # for each passage a teacher's, NaN for none
  known: tuple[str, ...] = ()  # the other positives
  where: str = ''  # 'file:line'
  query_suffix: str = ''
  bad: str = ''  # what is wrong with it, where its place is left empty


def choose(example: Example, group: int, source: SourceConfig, negatives: int,
           rng: np.random.Generator) -> Row:
  """Draws one positive, at most `negatives` negatives and an instruction.

  A negative whose text or id is that of one of the row's positives is never taken.
  Of more than there is room for, random ones are (or the first, by choice). With fewer
  none is repeated: places stay empty.
  """
  query, positives = example.query, example.positives
  if example.interchangeable:
    query, positives = _turned(example, int(rng.integers(1 + len(positives))))
  positive = positives[rng.integers(len(positives))]
  wrong = usable(positives, example.negatives)
  dropped = len(example.negatives) - len(wrong)
  if source.negative_choice == 'first':
    wrong = wrong[:negatives]
  elif len(wrong) > negatives:
    wrong = [wrong[i] for i in np.sort(
        rng.choice(len(wrong), negatives, replace=False))]
  prompts.check_instruction(source, example)
  instruction = prompts.choose_instruction(
      example.instruction, source.instructions, rng)
  passages = positive, *wrong
  return Row(
      group=group, query=query, passages=tuple(p.text for p in passages),
      query_prompt=prompts.render(_template(source, 'query', rng), instruction),
      passage_prompt=prompts.render(_template(source, 'passage', rng),
                                    example.passage_instruction or instruction),
      dropped=dropped, empty=negatives - len(wrong),
      scores=tuple(np.nan if p.score is None else p.score for p in passages),
      known=tuple(dict.fromkeys(
          p.text for p in positives if p.text != positive.text)),
      where=example.where)


def empty(group: int, bad: str) -> Row:
  """What stands in the place of a row that cannot be used, and is skipped."""
  return Row(group, '', ('',), '', '', 0, scores=(np.nan,), bad=bad)


def usable(positives: Sequence[Passage], negatives: Sequence[Passage]
           ) -> list[Passage]:
  """The negatives whose text or id is not that of a positive."""
  texts, ids = {p.text for p in positives}, {p.id for p in positives} - {''}
  return [n for n in negatives if n.text not in texts and n.id not in ids]


def _template(source: SourceConfig, side: str, rng: np.random.Generator) -> str:
  """One of the templates of a side."""
  found = prompts.templates(source, side)
  return found[0] if len(found) == 1 else found[int(rng.integers(len(found)))]


def _turned(example: Example, k: int) -> tuple[str, tuple[Passage, ...]]:
  """Text k of interchangeable ones as the query, the others as positives."""
  texts = Passage(example.query, example.query_id), *example.positives
  return texts[k].text, texts[:k] + texts[k + 1:]
