"""Prompt templates: the text in front of a query or a passage, with its instruction.

Training, held-out evaluation, retrieval evaluation and MTEB all render here, so that a
text is evaluated behind what it was trained behind.
"""

from collections.abc import Sequence

import numpy as np

from jaxembed.config import SourceConfig, StageConfig
from jaxembed.data.records import BadRow, Example

PLACE = '{instruction}'


def needs_instruction(template: str) -> bool:
  """Whether a template has a place for an instruction."""
  return PLACE in template


def templates(source: SourceConfig, side: str) -> tuple[str, ...]:
  """The templates of a side ('query', 'passage'); the first is the one stored."""
  return (getattr(source, f'{side}_prompt'), *getattr(source, f'{side}_prompts'))


def asks(source: SourceConfig, side: str) -> bool:
  """Whether a template of a side has a place for an instruction."""
  return any(map(needs_instruction, templates(source, side)))


def render(template: str, instruction: str = '') -> str:
  """The prompt that a template and an instruction make.

  A template without '{instruction}' is its own prompt. One with it, and no
  instruction to take its place, makes no prompt: ''.
  """
  if not needs_instruction(template):
    return template
  return template.replace(PLACE, instruction) if instruction else ''


def choose_instruction(own: str, choices: Sequence[str] = (),
                       rng: np.random.Generator | None = None) -> str:
  """The row's own instruction; without one, one of `choices`; '' if there is none.

  Args:
    rng: draws among `choices` (training); None takes the first (evaluation).
  """
  if own or not choices:
    return own
  return choices[0 if rng is None else int(rng.integers(len(choices)))]


def trained(stages: Sequence[StageConfig]) -> dict[str, str]:
  """The prompts that a model carries away from its training, by name.

  Sources that all put the same in front give 'query' and 'document'. Sources that
  differ give 'NAME_query' and 'NAME_document', of every source the prompts of the last
  stage it is in. Of several instructions the first is taken. What every row makes of
  its own instruction (see `of_rows_alone`) cannot be stored and is left out. Training
  without any prompt gives {}.
  """
  pairs = {s.name: tuple(_stored(t, s) for t in (s.query_prompt, s.passage_prompt))
           for stage in stages for s in stage.data.sources}
  if not any(text for pair in pairs.values() for text in pair):
    return {}
  if len(set(pairs.values())) == 1:
    pairs = {'': next(iter(pairs.values()))}
  return {f'{name}_{side}'.lstrip('_'): text for name, pair in pairs.items()
          for side, text in zip(('query', 'document'), pair) if text is not None}


def of_rows_alone(source: SourceConfig) -> bool:
  """Whether a prompt of `source` is made of the instruction that each row brings."""
  return None in (_stored(source.query_prompt, source),
                  _stored(source.passage_prompt, source))


def _stored(template: str, source: SourceConfig) -> str | None:
  if needs_instruction(template) and not source.instructions:
    return None
  return render(template, choose_instruction('', source.instructions))


def rendered(template: str, source: SourceConfig) -> list[str]:
  """What a template of a source makes of each of the source's instructions.

  What rows make of their own is not among them.
  """
  if not needs_instruction(template):
    return [template]
  return [render(template, instruction) for instruction in source.instructions or ('',)]


def check_instruction(source: SourceConfig, row: Example) -> None:
  """Raises BadRow if a prompt asks for an instruction and none is there."""
  found = choose_instruction(row.instruction, source.instructions)
  if (asks(source, 'query') and not found) or (
      asks(source, 'passage') and not (row.passage_instruction or found)):
    raise BadRow(
        f'{row.where or repr(row.query)[:60]}: a prompt of source {source.name!r} asks '
        "for an {instruction}, but the row has no field 'instruction' or 'prompt'; set "
        "the source's instructions")
