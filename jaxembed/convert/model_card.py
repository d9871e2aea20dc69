"""Model card (README.md) of an exported folder."""

from collections.abc import Sequence

from jaxembed import config
from jaxembed.models import training_free
from jaxembed.pooling import heads
from jaxembed.pooling.head import Twin


def render(name: str, cfg: config.ModelConfig, prompts: dict[str, str],
           include_prompt: bool, report: dict) -> str:
  """The card of a model exported as `name`, with its parity report."""
  found = heads.of(cfg.pooling)
  twins = [head.twin for head in found if head.twin]
  if cfg.prepend is not None:
    twins.insert(0, training_free.TWIN)
  trust = ', trust_remote_code=True' if twins else ''
  named = ''.join(f'- `{key}`: `{text!r}`\n' for key, text in prompts.items() if text)
  return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, jaxembed]
---

# {name}

A text-embedding model trained and exported with jaxembed. A text becomes
{cfg.embedding_dim} numbers by \
{' beside '.join(head.words for head in found)}\
{'; vectors have length 1' if cfg.normalize else ''}. Texts are read up to
{cfg.max_length} tokens.{_prepended(cfg)}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer('{name}'{trust})
vectors = model.encode(['a text', 'another text'])
print(model.similarity(vectors, vectors))
```

## Prompts

{named or 'None are stored.' + chr(10)}
{_prompt_note(prompts, include_prompt)}

## Where it runs

{_servers(twins, bool(prompts) and not include_prompt)}

## Checked

Reloaded with sentence-transformers {report['versions']['sentence_transformers']} \
in torch and compared with JAX {report['versions']['jax']} on a set of hard texts,
padded on either side, with and without prompts: the largest difference of two
unit vectors is {report['max_difference']:.1e} (`parity.json`).
"""


def _prompt_note(prompts, include_prompt: bool) -> str:
  if include_prompt:
    return 'The tokens of a prompt count in the vector.'
  return ('The tokens of a prompt are attended to but left out of the vector '
          '(`include_prompt: false`).')


def _prepended(cfg: config.ModelConfig) -> str:
  if cfg.prepend is None:
    return ''
  band = f'{cfg.prepend.start} to {cfg.prepend.stop - 1}'
  behind = f', and {cfg.eos_text!r} behind the text' if cfg.eos_text else ''
  return (f' The token {cfg.prepend.text} stands\nbetween prompt and text{behind}; '
          f'before the layers {band} its state\nbecomes that of the last token (Token '
          'Prepending, arXiv 2412.11556).')


def _servers(twins: Sequence[Twin], masks_prompt: bool) -> str:
  if twins:
    oldest = '6.0' if training_free.TWIN in twins else '5.1'
    what = 'prepended token' if training_free.TWIN in twins else 'pooling'
    files = ' and '.join(f'`{twin.module}.py`' for twin in twins)
    return f"""\
| program | works |
| --- | --- |
| sentence-transformers {oldest} or newer | yes, with `trust_remote_code=True` |
| text-embeddings-inference, vLLM, SGLang, llama.cpp | no: none has this {what} |

Its code is {files} in this folder's root. Some
releases of sentence-transformers save a copy of the model with that file in the
module's sub-folder; it then has to be put back into the root to load again."""
  note = ('\n\nOnly sentence-transformers leaves prompt tokens out of the vector; '
          'other servers\npool them, so vectors of prompted texts differ there.'
          if masks_prompt else '')
  return f"""\
| program | works |
| --- | --- |
| sentence-transformers, any release | yes |
| text-embeddings-inference, vLLM, llama.cpp | the layout is the one they read; \
whether they have this architecture, their own lists say |{note}"""
