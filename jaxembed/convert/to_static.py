"""Static export: a vector per token, and their mean; no transformer runs any more.

As model2vec makes it (Tulkens and van Dongen 2024): every token of the vocabulary goes
through the model alone, PCA takes out the common direction and shortens the vectors,
and frequent tokens count less (SIF, Arora et al. 2017, over Zipf's law by rank). The
folder is model2vec's, which sentence-transformers opens as StaticEmbedding.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from jaxembed import types
from jaxembed.bundle import Bundle
from jaxembed.convert import (
  parity,
  static_embedding,
  tensor_files,
  to_sentence_transformers,
)
from jaxembed.data import tokenizer_file
from jaxembed.data.tokenizer_class import spelling
from jaxembed.files import checked_json
from jaxembed.models import encoder
from jaxembed.pooling import heads

DIMS = 256
SIF = 1e-4
# Tokens that no model has trained, as BERT's vocabularies name them.
REMOVED = r'\[unused\d+\]'
_BATCH = 256
_ROWS = 4096  # that PCA takes at once


def write(folder: pathlib.Path, model: Bundle, dims: int = DIMS) -> None:
  """Writes the static form of `model` into the new `folder`.

  dims: numbers of a vector; at least the model's own: PCA without a cut.

  Raises:
    FileNotFoundError: the model has no tokenizer.
    ValueError: fewer dimensions than 1; texts put in lower case by other means than
      the tokenizer.
  """
  if type(dims) is not int or dims < 1:
    raise ValueError(f'dims is {dims!r}; a vector has 1 number or more')
  if model.cfg.lower_case:
    raise ValueError('static vectors have no place for lower_case; let the tokenizer '
                     'put texts in lower case (a Lowercase normalizer)')
  if model.tokenizer_folder is None:
    raise FileNotFoundError(f'{model.source or "the model"} has no tokenizer')
  folder.mkdir(parents=True)
  spec, ids = vocabulary(model.tokenizer_folder)
  vectors = embeddings(model, ids, dims)
  (folder / 'tokenizer.json').write_text(
      json.dumps(spec, ensure_ascii=False, indent=2), 'utf-8')
  tensor_files.write(folder / tensor_files.SINGLE,
                     {'embeddings': (vectors.dtype, vectors.shape)},
                     lambda _: vectors)
  to_sentence_transformers.write_json(folder / 'config.json', {
      'model_type': 'model2vec', 'architectures': ['StaticModel'],
      'tokenizer_name': model.source, 'apply_pca': dims, 'sif_coefficient': SIF,
      'hidden_dim': vectors.shape[1], 'seq_length': 1000000, 'normalize': True,
      'pooling': 'mean', 'embedding_dtype': 'float32'})
  to_sentence_transformers.list_modules(folder, [
      ('.', to_sentence_transformers.MODULES + static_embedding.TYPE),
      to_sentence_transformers.write_normalize(folder, 1)])
  to_sentence_transformers.write_settings(folder, {
      'prompts': {}, 'default_prompt_name': None,
      'similarity_fn_name': model.similarity_fn_name})


def vocabulary(folder: pathlib.Path) -> tuple[dict[str, Any], list[int]]:
  """tokenizer.json for words alone, and the ids that its tokens have in `folder`.

  Special tokens go, but for the unknown and the padding one, and so does what
  REMOVED matches; the rest keep their order, which is by frequency in most.
  """
  folder = pathlib.Path(folder)
  spec = checked_json.read(folder / 'tokenizer.json', limit=checked_json.TOKENIZER)
  settings = checked_json.read(folder / 'tokenizer_config.json', absent={})
  before = tokenizer_file.read(folder / 'tokenizer.json').get_vocab()
  kept = {spec['model'].get('unk_token'), spelling(settings.get('unk_token')),
          (spec.get('padding') or {}).get('pad_token'),
          spelling(settings.get('pad_token'))}
  if isinstance(spec['model'].get('vocab'), list):  # Unigram names it by place
    unk = spec['model'].get('unk_id')
    kept |= {spec['model']['vocab'][unk][0]} if unk is not None else set()
  gone = {t['content'] for t in spec.get('added_tokens', ())} - kept
  gone |= {t for t in before if re.match(REMOVED, t)}
  order = [t for t, _ in sorted(before.items(), key=lambda x: x[1]) if t not in gone]
  _renumber(spec, {t: i for i, t in enumerate(order)})
  spec['post_processor'] = spec['truncation'] = spec['padding'] = None
  return spec, [before[t] for t in order]


def _renumber(spec: dict[str, Any], ids: Mapping[str, int]) -> None:
  """The vocabulary of a tokenizer.json cut down to `ids`."""
  model = spec['model']
  if isinstance(model['vocab'], list):
    unk = model.get('unk_id')
    name = None if unk is None else model['vocab'][unk][0]
    scores = dict(map(tuple, model['vocab']))
    model['vocab'] = [[t, scores.get(t, 0.0)] for t in ids]
    model['unk_id'] = ids.get(name) if name else None
  else:
    model['vocab'] = dict(ids)
  if 'merges' in model:
    pairs = [m.split(' ') if isinstance(m, str) else m for m in model['merges']]
    model['merges'] = [[a, b] for a, b in pairs
                       if a in ids and b in ids and a + b in ids]
  spec['added_tokens'] = [t | {'id': ids[t['content']]}
                          for t in spec.get('added_tokens', ()) if t['content'] in ids]
  steps = spec.get('pre_tokenizer') or {}
  for step in (steps, *steps.get('pretokenizers', ())):
    if step.get('type') == 'ByteLevel':  # a text's first word is one like others
      step['add_prefix_space'] = True


def embeddings(model: Bundle, ids: list[int], dims: int) -> np.ndarray:
  """Vectors [V,dims] float32 of tokens: PCA of the model's own, weighed by rank."""
  found = _pca(_through(model, ids), dims)
  return (found * _weights(len(found))[:, None]).astype(np.float32)


def _through(model: Bundle, ids: list[int]) -> np.ndarray:
  """The model's vector of each token alone, between its special ones: [V,E] float32.

  Not scaled to length 1: frequent tokens are the longer ones.
  """
  tokenizer = model.load_tokenizer()
  before, after = tokenizer.special_frame
  rows = np.array([[*before, i, *after] for i in ids], np.int32)
  cfg = dataclasses.replace(model.cfg, normalize=False, dtype='float32',
                            precision='highest', remat='none')
  run = jax.jit(encoder.encode, static_argnums=1)
  found = []
  for at in range(0, len(rows), _BATCH):
    part = rows[at:at + _BATCH]
    padded = np.concatenate([part, np.repeat(part[:1], _BATCH - len(part), 0)])
    flags = np.ones(padded.shape, bool)
    found.append(np.asarray(run(model.params, cfg, types.Tokens(
        ids=padded, mask=flags, pool=flags)))[:len(part)])
  return np.concatenate(found)


def _pca(x: np.ndarray, dims: int) -> np.ndarray:
  """Scores of the first principal components, each with its largest one positive.

  In float64, some rows at a time: directions of nearly equal variance are mixed by the
  roundings of float32, in the fifth digit for a vocabulary of 30,000.
  """
  dims = min(dims, x.shape[1])
  if dims >= len(x):  # fewer tokens than directions: there is nothing to cut
    return x
  mean, parts = x.mean(0, dtype=np.float64), range(0, len(x), _ROWS)
  covariance = np.zeros((x.shape[1],) * 2)
  for at in parts:
    centred = x[at:at + _ROWS] - mean
    covariance += centred.T @ centred
  directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :dims]
  scores = np.concatenate([
      ((x[at:at + _ROWS] - mean) @ directions).astype(np.float32) for at in parts])
  largest = scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])]
  return scores * np.sign(largest)


def _weights(count: int) -> np.ndarray:
  """a / (a + p) of tokens by rank, p their share under Zipf's law."""
  inverse = 1 / np.arange(2, count + 2)
  return SIF / (SIF + inverse / inverse.sum())


def check(folder: pathlib.Path, model: Bundle) -> dict[str, Any]:
  """Opens the folder in sentence-transformers and compares its vectors with ours.

  Raises:
    parity.Mismatch: it computes other means.
  """
  theirs = parity.torch_model(folder)
  table = tensor_files.open_folder(folder)['embeddings'].read()
  fast = tokenizer_file.read(folder / 'tokenizer.json')
  texts = [t for t in parity.PROBES if fast.encode(t, add_special_tokens=False).ids]
  ours = np.stack([table[fast.encode(t, add_special_tokens=False).ids].mean(
      0, dtype=np.float64) for t in texts])
  worst = float(np.abs(parity.unit(ours) - parity.unit(theirs.encode(
      texts, show_progress_bar=False, prompt=''))).max())
  if not worst <= parity.TOLERANCE:
    raise parity.Mismatch(f'sentence-transformers and the static vectors differ by '
                          f'{worst:.3g}; the export was discarded')
  report = {'max_difference': worst, 'tolerance': parity.TOLERANCE,
            'tokens': len(table), 'dims': table.shape[1],
            'of': ' and '.join(h.words for h in heads.of(model.cfg.pooling)),
            'versions': parity.versions() | {'jax': jax.__version__}}
  report['told'] = (f'{len(table)} tokens of {table.shape[1]} numbers, opened as '
                    f'StaticEmbedding; another model, whose scores are its own')
  return report
