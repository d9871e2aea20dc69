"""Prompt templates: the text in front of a query or a passage, with its instruction.

Training, held-out evaluation, retrieval evaluation and MTEB all render here, so that a
text is evaluated behind what it was trained behind.
"""

from collections.abc import Sequence

import numpy as np

PLACE = '{instruction}'


def needs_instruction(template: str) -> bool:
  """Whether a template has a place for an instruction."""
  return PLACE in template


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
  return choices[0 if rng is None else rng.integers(len(choices))]
