"""A training run small enough for tests: model, rows, configuration."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxembed import config, workdir
from jaxembed.convert import tables
from jaxembed.models import encoder, presets
from jaxembed.train import step

# Trains the configuration in argv[1] in the folder argv[2], in a process of its own;
# argv[3:] are coordinator, processes and process, where several work together.
SCRIPT = """
import json, sys
import jax
if len(sys.argv) > 3:
  jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from jaxembed import config, sharding
from jaxembed.train import loop
if 'interleave' in sys.argv:  # the devices of two processes in turns
  ours = jax.devices()
  turns = [d for pair in zip(ours[:4], ours[4:]) for d in pair]
  make_mesh = sharding.make_mesh
  sharding.make_mesh = lambda shape: make_mesh(shape, turns)
loop.train(config.from_dict(config.Config, json.load(open(sys.argv[1]))), sys.argv[2])
"""


def write_model(folder: pathlib.Path, minilm: pathlib.Path, family: str = 'bert'
                ) -> pathlib.Path:
  """A folder in Hugging Face's form: MiniLM's tokenizer, random small weights."""
  backbone = dataclasses.replace(
      presets.tiny(family), vocab_size=30522, max_positions=64)
  model = config.ModelConfig(backbone=backbone)
  params = encoder.init_params(model, jax.random.key(0))
  save_file(tables.to_hf(params, model), folder / 'model.safetensors')
  (folder / 'config.json').write_text(
      json.dumps(tables.config_to_hf(backbone, 'bidirectional')))
  for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'):
    shutil.copyfile(minilm / name, folder / name)
  return folder


def write_rows(path: pathlib.Path, count: int = 40) -> pathlib.Path:
  """So many short pairs."""
  path.write_text(''.join(
      json.dumps({'query': f'what is number {i}', 'positive': f'{i} is {i * i % 97}'})
      + '\n' for i in range(count)))
  return path


def in_folder(folder: pathlib.Path, minilm: pathlib.Path, count: int = 40,
              **options) -> config.Config:
  """An `experiment` whose model and rows are written into `folder`."""
  (folder / 'model').mkdir()
  return experiment(write_model(folder / 'model', minilm),
                    write_rows(folder / 'rows.jsonl', count), **options)


def experiment(model: pathlib.Path, rows: pathlib.Path, steps: int = 6,
               **optim) -> config.Config:
  return config.Config(
      name='test', model=config.ModelSpec(source=str(model)),
      stages=[config.StageConfig(
          steps=steps,
          data=config.DataConfig(
              sources=[config.SourceConfig(name='rows', path=str(rows))],
              batch_size=8, query_lengths=(8,), passage_lengths=(8,)),
          optim=config.OptimConfig(warmup_steps=2, peak_lr=1e-3, **optim))],
      checkpoint=config.CheckpointConfig(every=2), log_every=1)


@contextlib.contextmanager
def shared_updates():
  """Runs of equal stages within share one compiled update, as one run's steps do."""
  make, made = step.make_update, {}

  def shared(model, stage, *, loss=None, **kwargs):
    if loss is not None:
      return make(model, stage, loss=loss, **kwargs)
    key = repr((model, stage, kwargs))
    if key not in made:
      made[key] = make(model, stage, **kwargs)
    return made[key]

  step.make_update = shared
  try:
    yield
  finally:
    step.make_update = make


def parameters(folder: pathlib.Path) -> dict:
  """Final parameters of a run, by path."""
  params, *_ = workdir.load(folder)
  return tables.flatten(params)


def bits(folder: pathlib.Path) -> dict[str, bytes]:
  """The bits of a run's final parameters, by path."""
  return {k: np.asarray(v).tobytes() for k, v in parameters(folder).items()}
