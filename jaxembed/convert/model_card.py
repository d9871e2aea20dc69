"""Text of the model card (README.md) of an exported folder."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import yaml

from jaxembed import config
from jaxembed.models import training_free
from jaxembed.pooling import heads
from jaxembed.pooling.head import Twin

REPORT = 'parity.json'  # in every export: what its check found
_TAGS = ('sentence-transformers', 'sentence-similarity', 'feature-extraction',
         'jaxembed')
_LIBRARIES = {'huggingface': 'transformers', 'nv-embed': 'transformers', 'peft': 'peft'}
_MORE_TAGS = {
    'onnx': ('onnx',), 'static': ('model2vec', 'static-embeddings'),
    'huggingface': ('transformers',), 'nv-embed': ('nvembed',), 'peft': ('lora',)}
# How a vector is made of token states in the example for transformers.
_IN_TORCH = {
    'mean': 'mask = tokens["attention_mask"][..., None]\n'
            'vectors = (states * mask).sum(1) / mask.sum(1)',
    'cls': 'vectors = states[:, 0]',
    'last': 'last = tokens["attention_mask"].cumsum(1).argmax(1)\n'
            'vectors = states[torch.arange(len(states)), last]'}


@dataclasses.dataclass(frozen=True)
class Story:
  """What a card says beside how the model computes.

  Attributes:
    header: keys of the hub: license, language, base_model, datasets, model-index.
    training, evaluation: Markdown; '' leaves the section out.
    notes: sentences that stand before everything else.
  """

  header: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  training: str = ''
  evaluation: str = ''
  notes: Sequence[str] = ()


def render(name: str, cfg: config.ModelConfig, prompts: Mapping[str, str],
           include_prompt: bool, report: Mapping[str, Any],
           story: Story | None = None, format: str = 'sentence-transformers') -> str:
  """The card of a model exported as `name`, with the report of its check."""
  story = story or Story()
  found = heads.of(cfg.pooling)
  twins = [head.twin for head in found if head.twin]
  if cfg.prepend is not None:
    twins.insert(0, training_free.TWIN)
  header = yaml.safe_dump({
      **story.header, 'library_name': _LIBRARIES.get(format, 'sentence-transformers'),
      'pipeline_tag': 'sentence-similarity',
      'tags': [*_TAGS, *_MORE_TAGS.get(format, ())]},
      sort_keys=False, allow_unicode=True)
  parts = [
      f'---\n{header}---\n\n# {name}', *story.notes,
      _static(report) if format == 'static' else _words(cfg, found),
      _usage(name, cfg, prompts, twins, format),
      _prompts(prompts, include_prompt) if format != 'static' else '',
      '## Where it runs\n\n' + (
          _formats(format) or _servers(twins, bool(prompts) and not include_prompt)),
      story.training and f'## Training\n\n{story.training}',
      story.evaluation and f'## Evaluation\n\n{story.evaluation}',
      f'## Checked\n\n{_checked(report, format)}']
  return '\n\n'.join(filter(None, parts)) + '\n'


def _words(cfg: config.ModelConfig, found) -> str:
  unit = '; vectors have length 1' if cfg.normalize else ''
  return ('A text-embedding model trained and exported with jaxembed. A text becomes'
          f'\n{cfg.embedding_dim} numbers by '
          f'{" beside ".join(head.words for head in found)}{unit}. Texts are read up '
          f'to\n{cfg.max_length} tokens.{_prepended(cfg)}')


def _static(report: Mapping[str, Any]) -> str:
  return (f'A static text-embedding model, made with jaxembed in the way of model2vec: '
          f'the mean of\n{report["tokens"]} token vectors of {report["dims"]} numbers, '
          'scaled to length 1. No transformer runs.')


def _usage(name, cfg, prompts, twins, format: str) -> str:
  trust = ', trust_remote_code=True' if twins else ''
  calls = 'vectors = model.encode(texts)'
  if {'query', 'document'} & prompts.keys():
    calls = ("queries = model.encode_query(['what is asked'])\n"
             'vectors = model.encode_document(texts)')
  library = f"""```python
from sentence_transformers import SentenceTransformer

texts = ['a text', 'another text']
model = SentenceTransformer({name!r}{trust})
{calls}
print(model.similarity(vectors, vectors))
```"""
  own = f"""```python
from jaxembed import Embedder

model = Embedder.load({name!r})
{calls.replace('texts', "['a text', 'another text']")}
```"""
  parts = ['## Use', '' if format in ('huggingface', 'nv-embed') else library, own]
  if format == 'onnx':
    parts.append(_onnx(name))
  elif (format not in ('static', 'peft', 'nv-embed') and cfg.pooling.kind in _IN_TORCH
        and not cfg.dense and cfg.prepend is None):
    parts.append(_transformers(name, cfg))
  return '\n\n'.join(filter(None, parts))


def _transformers(name: str, cfg: config.ModelConfig) -> str:
  unit = '\nvectors = torch.nn.functional.normalize(vectors)' if cfg.normalize else ''
  return f"""With transformers alone (a prompt is put in front of the text):

```python
import torch
from transformers import AutoModel, AutoTokenizer

read, model = (kind.from_pretrained({name!r}) for kind in (AutoTokenizer, AutoModel))
tokens = read(['a text', 'another text'], padding=True, truncation=True,
              max_length={cfg.max_length}, return_tensors='pt')
with torch.no_grad():
  states = model(**tokens).last_hidden_state
{_IN_TORCH[cfg.pooling.kind]}{unit}
```"""


def _onnx(name: str) -> str:
  return f"""With onnxruntime alone; the graph ends in the vector:

```python
import onnxruntime
from transformers import AutoTokenizer

tokens = AutoTokenizer.from_pretrained({name!r})(
    ['a text', 'another text'], padding=True, truncation=True, return_tensors='np')
session = onnxruntime.InferenceSession({f'{name}/onnx/model.onnx'!r})
wanted = [x.name for x in session.get_inputs()]
vectors = session.run(['sentence_embedding'], {{k: tokens[k] for k in wanted}})[0]
```"""


def _prompts(prompts: Mapping[str, str], include_prompt: bool) -> str:
  named = ''.join(f'- `{key}`: `{text!r}`\n' for key, text in prompts.items() if text)
  note = ('The tokens of a prompt count in the vector.' if include_prompt else
          'The tokens of a prompt are attended to but left out of the vector '
          '(`include_prompt: false`).')
  return f'## Prompts\n\n{named or "None are stored." + chr(10)}\n{note}'


def _prepended(cfg: config.ModelConfig) -> str:
  if cfg.prepend is None:
    return ''
  band = f'{cfg.prepend.start} to {cfg.prepend.stop - 1}'
  behind = f', and {cfg.eos_text!r} behind the text' if cfg.eos_text else ''
  return (f' The token {cfg.prepend.text} stands\nbetween prompt and text{behind}; '
          f'before the layers {band} its state\nbecomes that of the last token (Token '
          'Prepending, arXiv 2412.11556).')


def _formats(format: str) -> str:
  """Of formats that are not a sentence-transformers folder of plain modules alone."""
  rows = {
      'static': '| sentence-transformers 3.2 or newer | yes, as StaticEmbedding |\n'
                '| model2vec | the layout is its own; not run here |\n'
                '| text-embeddings-inference, vLLM, llama.cpp | no |',
      'huggingface': '| transformers | yes |\n| sentence-transformers | yes; it takes '
                     'the mean of the tokens, whatever this model was trained with |',
      'onnx': "| sentence-transformers | yes; also with `backend='onnx'`, which needs "
              'optimum-onnx |\n| onnxruntime, on a CPU | yes |\n'
              '| onnxruntime elsewhere, TensorRT, OpenVINO | not run here |',
      'peft': '| PEFT, on top of the base that `adapter_config.json` names | yes |\n'
              '| sentence-transformers, where PEFT is installed | yes |\n'
              '| text-embeddings-inference, llama.cpp | no: they read whole models |',
      'nv-embed': '| jaxembed | yes |\n| transformers, sentence-transformers | with '
                  '`configuration_nvembed.py` and `modeling_nvembed.py` of the release '
                  'put into this folder; not run here |',
      'sentence-transformers-new':
          '| sentence-transformers 5.4 or newer | yes |\n| older releases, '
          'text-embeddings-inference | no: they know the older layout |',
  }.get(format)
  return f'| program | works |\n| --- | --- |\n{rows}' if rows else ''


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
| text-embeddings-inference, vLLM, llama.cpp | not run here: the layout is the one \
they read; whether they have this architecture, their own lists say |{note}"""


def _checked(report: Mapping[str, Any], format: str) -> str:
  if format in ('peft', 'nv-embed'):
    return f'{report["told"][0].upper()}{report["told"][1:]} (`{REPORT}`).'
  versions, worst = report['versions'], report['max_difference']
  if format == 'huggingface':
    return (f'Reloaded with transformers {versions["transformers"]} in torch: the '
            f"largest difference of a token's\nstate is {worst:.1e} of the largest "
            f'state (`{REPORT}`).')
  if format == 'static':
    return (f'Opened with sentence-transformers {versions["sentence_transformers"]}: '
            f'the largest difference of two unit vectors\nfrom the mean of the token '
            f'vectors is {worst:.1e} (`{REPORT}`).')
  more = ''
  if onnx := report.get('onnx'):
    more = (f' onnxruntime {onnx["versions"]["onnxruntime"]}\ncomputes the same within '
            f'{onnx["max_difference"]:.1e}')
    if 'int8_least_cosine' in onnx:
      more += (f'; `onnx/model_int8.onnx` has cosines of at least '
               f'{onnx["int8_least_cosine"]:.4f}\nwith it')
    more += '.'
  return f"""\
Reloaded with sentence-transformers {versions['sentence_transformers']} \
in torch and compared with JAX {versions['jax']} on a set of hard texts,
padded on either side, with and without prompts: the largest difference of two
unit vectors is {worst:.1e} (`{REPORT}`).{more}"""
