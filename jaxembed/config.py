"""Every knob, as typed data.

Two kinds of object live here. `ModelConfig` and its parts are frozen and
hashable: they shape parameters and are static arguments of jitted functions.
`Config` and its parts describe an experiment; a file in configs/ returns one and
the command line may replace leaves (`--config.mesh.data=8`), which is why they
can be set. `validate` checks the whole tree afterwards.

No flags, files or environment are read here.
"""

import dataclasses
from dataclasses import dataclass, field
import difflib
import typing
from typing import Any, Optional

# --- Models: frozen ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
  """A transformer's shape. `kind` picks the module, the rest are its features."""

  kind: str  # 'decoder' | 'bert'
  vocab_size: int
  dim: int
  ff_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  max_positions: int
  rope_theta: float = 10000.0
  sliding_window: int | None = None
  type_vocab_size: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
  """How token states become one vector. The latent fields are NV-Embed's."""

  kind: str = 'mean'  # mean | cls | last | latent_attention
  latents: int = 512
  heads: int = 8
  head_dim: int = 0  # 0: the backbone's width, as released by NV-Embed
  ff_mult: int = 4


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything that shapes a parameter or a forward pass."""

  backbone: BackboneConfig
  pooling: PoolingConfig = PoolingConfig()
  attention: str = 'bidirectional'  # bidirectional | causal
  normalize: bool = True
  max_length: int = 512
  dtype: str = 'float32'  # of activations; parameters have their own
  remat: str = 'none'  # none | full | dots


# --- Experiments: settable leaves --------------------------------------------


@dataclass(kw_only=True)
class ModelSpec:
  """Which weights to start from, and what to put on top of them."""

  source: str = ''  # HF folder, hub id, sentence-transformers folder or workdir
  preset: str = ''  # a name in models.presets, for random initialisation
  attention: str = ''  # '' keeps what the source says
  pooling: str = ''  # '' keeps what the source says
  latents: int = 512
  heads: int = 8
  head_dim: int = 0
  ff_mult: int = 4
  max_length: int = 0  # 0 keeps what the source says
  dtype: str = 'float32'
  remat: str = 'none'


@dataclass(kw_only=True)
class SourceConfig:
  """One dataset of a mixture and the rules that hold for its rows."""

  name: str
  kind: str = 'jsonl'  # jsonl | python_source | tfds
  path: str = ''  # file, glob or folder; the dataset's name for tfds
  split: str = 'train'
  weight: float = 1.0
  in_batch: bool = True
  query_prompt: str = ''
  passage_prompt: str = ''
  limit: int = 0  # 0: all rows


@dataclass(kw_only=True)
class DataConfig:
  sources: list[SourceConfig] = field(default_factory=list)
  batch_size: int = 64  # queries per step, over all devices
  num_negatives: int = 0  # hard negatives per query
  query_lengths: tuple[int, ...] = (32,)  # buckets, tokens
  passage_lengths: tuple[int, ...] = (128,)
  workers: int = 0  # grain worker processes; 0 reads in this one


@dataclass(kw_only=True)
class LossConfig:
  name: str = 'info_nce'
  temperature: float = 0.05
  symmetric: bool = False
  impl: str = 'auto'  # of kernels.contrastive


@dataclass(kw_only=True)
class OptimConfig:
  name: str = 'adamw'
  peak_lr: float = 2e-5
  head_lr: float = 0.0  # of pooling/; 0: peak_lr
  warmup_steps: int = 50
  schedule: str = 'linear'  # linear | cosine | constant, after warm-up
  end_lr: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01  # kernels only, not norms or biases
  clip_norm: float = 1.0
  freeze: str = ''  # regex over parameter paths


@dataclass(kw_only=True)
class StageConfig:
  """A stretch of training with its own data, loss and learning rate."""

  name: str = 'train'
  steps: int = 1000
  data: DataConfig = field(default_factory=DataConfig)
  loss: LossConfig = field(default_factory=LossConfig)
  optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(kw_only=True)
class MeshConfig:
  data: int = -1  # -1: every device that is left
  fsdp: int = 1
  tensor: int = 1


@dataclass(kw_only=True)
class EvalConfig:
  every: int = 0  # steps; 0: only before and after training
  source: Optional[SourceConfig] = None  # held-out pairs, scored as retrieval
  limit: int = 1000
  batch_size: int = 64


@dataclass(kw_only=True)
class CheckpointConfig:
  every: int = 500
  keep: int = 2


@dataclass(kw_only=True)
class Config:
  name: str = 'experiment'
  seed: int = 0
  model: ModelSpec = field(default_factory=ModelSpec)
  stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
  mesh: MeshConfig = field(default_factory=MeshConfig)
  eval: EvalConfig = field(default_factory=EvalConfig)
  checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
  log_every: int = 10


# --- The tree as a whole -----------------------------------------------------


def validate(cfg: Config) -> Config:
  """Checks every node again (the command line may have set leaves); returns cfg."""
  for node in _nodes(cfg):
    if hasattr(node, '__post_init__'):
      node.__post_init__()
  if not cfg.stages:
    raise ValueError('config.stages is empty; give at least one StageConfig')
  if bool(cfg.model.source) == bool(cfg.model.preset):
    raise ValueError(
        f'config.model: source={cfg.model.source!r}, preset={cfg.model.preset!r}; '
        'set exactly one: source loads weights, preset starts from random ones')
  return cfg


def _nodes(node):
  if dataclasses.is_dataclass(node):
    yield node
    for f in dataclasses.fields(node):
      yield from _nodes(getattr(node, f.name))
  elif isinstance(node, list | tuple):
    for item in node:
      yield from _nodes(item)


def to_dict(cfg) -> dict[str, Any]:
  """Plain JSON-ready data; `from_dict` is its inverse."""
  return dataclasses.asdict(cfg)


def from_dict(cls, data: dict[str, Any], path: str = 'config'):
  """Builds the dataclass `cls` from JSON data.

  Raises:
    ValueError: an unknown key, named with its path and the nearest field.
  """
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(data) - set(hints))
  if unknown:
    near = difflib.get_close_matches(unknown[0], hints, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else f'; known: {sorted(hints)}'
    raise ValueError(f'{path}.{unknown[0]} is no field of {cls.__name__}{hint}')
  return cls(**{key: _build(hints[key], value, f'{path}.{key}')
                for key, value in data.items()})


def _build(hint, value, path: str):
  args = typing.get_args(hint)
  if value is None:
    return None
  if dataclasses.is_dataclass(hint):
    return from_dict(hint, value, path)
  if type(None) in args:
    return _build(next(a for a in args if a is not type(None)), value, path)
  if typing.get_origin(hint) is list:
    return [_build(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)]
  if typing.get_origin(hint) is tuple:
    return tuple(_build(args[0], v, f'{path}[{i}]') for i, v in enumerate(value))
  return value
