"""Text ids for duplicate masks: hashes of the tokens that a model reads."""

from collections.abc import Sequence

import numpy as np

from jaxembed.data.ragged import Ragged
from jaxembed.data.records import text_id
from jaxembed.data.tokenise import Tokenizer


def text_ids(tokenizer: Tokenizer, texts: Sequence[str], prompts: Sequence[str],
             max_length: Sequence[int], found: Ragged) -> np.ndarray:
  """31-bit hashes of texts, [B] int32, of queries and passages alike.

  A text's id is that of its own tokens, written with blanks between them: without
  prompt and special tokens, and without what is cut off at `max_length`, where the
  prompt takes its room too. So what the tokenizer makes the same (case, spaces,
  composed accents) and what differs beyond the cut is one text, whatever stands in
  front. A text cut as a query and read whole as a passage is two.

  Args:
    found: the texts tokenised behind their prompts.
  """
  rows = _own_tokens(found, tokenizer)
  prompted = [i for i, prompt in enumerate(prompts) if prompt]
  if prompted:
    # A prompt's last token may have melted into the text's first.
    taken = [tokenizer.count(prompts[i]) * bool(found.truncated[i]) for i in prompted]
    room = np.asarray(max_length)[prompted] - taken
    alone = tokenizer.encode([texts[i] for i in prompted],
                             max_length=np.maximum(
                                 room, sum(tokenizer.frame) + 1).tolist())
    for i, row in zip(prompted, _own_tokens(alone, tokenizer)):
      rows[i] = row
  return np.array([text_id(tokenizer.words(row)) for row in rows], np.int32)


def _own_tokens(found: Ragged, tokenizer: Tokenizer) -> list[list[int]]:
  """Each row's ids without the special tokens around it."""
  before, after = tokenizer.frame
  return [found.ids[a + before:b - after].tolist()
          for a, b in zip(found.starts[:-1], found.starts[1:])]
