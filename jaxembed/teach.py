"""Teacher's vectors of the texts of training rows, on disk (data/teacher.py)."""

from collections.abc import Iterable, Mapping, Sequence
import json
import os
import pathlib

from jaxembed import corpus
from jaxembed.data import teacher
from jaxembed.data.records import Example
from jaxembed.embedder import Embedder
from jaxembed.files import place, whole_file

# The prompts of a model, by name, that the sides take where none is given.
_PROMPTS = {'queries': ('query',), 'passages': ('document', 'passage', 'corpus')}


def texts(sources: Iterable[Sequence[Example]]) -> dict[str, list[str]]:
  """The different texts of rows, by side: queries, passages; in the order of rows."""
  found: dict[str, dict[str, None]] = {side: {} for side in teacher.SIDES}
  for rows in sources:
    for i in range(len(rows)):
      for side, own in zip(teacher.SIDES, teacher.texts_of(rows[i]), strict=True):
        found[side].update(dict.fromkeys(own))
  return {side: list(own) for side, own in found.items()}


@place.remote(writes=('target',))
def encode(embedder: Embedder, texts: Mapping[str, Sequence[str]],
           target: str | os.PathLike, *,
           prompts: Mapping[str, str | None] | None = None, batch_size: int = 32,
           dtype: str = 'float16', overwrite: bool = False) -> dict[str, int]:
  """Writes the vectors of `texts`, by side, into the folder `target`; returns their
  numbers.

  The same call continues after a kill, and finishes nothing twice.

  Args:
    prompts: by side, what stands in front of its texts; None: the model's own prompt
      for queries or documents, where it has one.

  Raises:
    ValueError: `target` holds vectors of other texts, or by another model, prompt or
      dtype; overwrite replaces them.
  """
  target = pathlib.Path(target)
  target.mkdir(parents=True, exist_ok=True)
  for side, own in texts.items():
    prompt = (prompts or {}).get(side)
    name = next((n for n in _PROMPTS[side] if n in embedder.prompts),
                _PROMPTS[side][0])
    lines = ''.join(json.dumps({'_id': teacher.key(t), 'text': t}) + '\n' for t in own)
    file = target / f'{side}.jsonl'
    if not file.exists() or file.read_bytes() != lines.encode():
      if file.exists() and not overwrite:
        raise ValueError(f'{target} is of other {side}; choose another folder, or '
                         'replace it with overwrite')
      with whole_file.opened(file) as out:
        out.write(lines)
    corpus.encode_file(
        embedder, file, target / side, id_field='_id', prompt=prompt,
        prompt_name=name if prompt is None else None, batch_size=batch_size,
        normalize=True, dtype=dtype, overwrite=overwrite, reuse=not overwrite)
  return {side: len(own) for side, own in texts.items()}
