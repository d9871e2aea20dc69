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


def _one_of(cfg, name: str, allowed: tuple[str, ...]) -> None:
  value = getattr(cfg, name)
  if value not in allowed:
    raise ValueError(f'{type(cfg).__name__}.{name} is {value!r}; '
                     f'choose one of {", ".join(allowed)}')


# --- Models: frozen ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the length of pre-training.

  linear: all frequencies divided by `factor`. llama3: low ones divided, high ones
  kept, a ramp between (the four lower fields). longrope: `factors` divides each
  frequency, angles are scaled by `attention_factor`. yarn: `ramp` between divided
  and kept frequencies.
  """

  kind: str  # linear | llama3 | longrope | yarn
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_positions: int = 8192
  attention_factor: float = 1.0  # on cos and sin
  factors: tuple[float, ...] = ()  # longrope, one per frequency
  beta_fast: float = 32.0
  beta_slow: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
  """A transformer as a list of features; the defaults are Mistral's.

  Nothing in the forward pass asks for `family`: it names the conversion table.
  """

  family: str  # a key of convert.tables.FAMILIES
  vocab_size: int
  dim: int
  ff_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  norm_eps: float = 1e-5

  # Norms.
  norm: str = 'rms'  # rms | layer
  norm_bias: bool = False
  norm_offset: float = 0.0  # Gemma stores scale - 1
  block: str = 'pre'  # pre | post | sandwich: where norms stand in a layer
  final_norm: bool = True
  first_norm: bool = True  # false: layer 0 has no norm before attention
  embed_norm: bool = False

  # Embeddings and positions.
  embed_scale: float = 1.0
  type_vocab_size: int = 0
  position: str = 'rope'  # rope | learned
  position_offset: int = 0  # RoBERTa's tables start after the padding id
  positions: str = 'mask'  # mask: text starts at 0; index: the row does (BERT)
  rope_theta: float = 10000.0
  rope_dim: int = 0  # 0: the whole head
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float = 0.0  # of windowed layers; 0: rope_theta

  # Attention.
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False
  query_scale: float = 0.0  # scores are multiplied by it; 0: 1/sqrt(head_dim)
  softcap: float = 0.0  # s -> c tanh(s/c); 0: none
  window: int = 0  # keys seen by a windowed layer, own one included; 0: all
  two_way_window: int = 0  # the same when bidirectional: |distance| below it
  windowed_layers: tuple[bool, ...] = ()  # (): all, when there is a window
  relative_buckets: int = 0  # T5's bias, shared by the layers; 0: none
  relative_distance: int = 128

  # Feed-forward.
  activation: str = 'silu'  # silu | gelu | gelu_tanh | relu
  gated: bool = True
  ff_bias: bool = False

  def __post_init__(self):
    _one_of(self, 'norm', ('rms', 'layer'))
    _one_of(self, 'block', ('pre', 'post', 'sandwich'))
    _one_of(self, 'position', ('rope', 'learned'))
    _one_of(self, 'positions', ('mask', 'index'))
    _one_of(self, 'activation', ('silu', 'gelu', 'gelu_tanh', 'relu'))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads {self.num_heads} is not a multiple of num_kv_heads '
          f'{self.num_kv_heads}')
    if self.windowed_layers and len(self.windowed_layers) != self.num_layers:
      raise ValueError(
          f'windowed_layers has {len(self.windowed_layers)} entries for '
          f'{self.num_layers} layers')


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
  """How token states become one vector. The latent fields are NV-Embed's."""

  kind: str = 'mean'  # mean | cls | last | weighted_mean | max | latent_attention
  latents: int = 512
  heads: int = 8
  head_dim: int = 0  # 0: the backbone's width, as released by NV-Embed
  ff_mult: int = 4

  def __post_init__(self):
    _one_of(self, 'kind', ('mean', 'cls', 'last', 'weighted_mean', 'max',
                           'latent_attention'))


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
  """One projection after pooling."""

  features: int
  bias: bool = True
  activation: str = 'identity'  # identity | tanh

  def __post_init__(self):
    _one_of(self, 'activation', ('identity', 'tanh'))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank updates beside the kernels whose path matches `targets`."""

  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.0
  targets: str = r'attn/[qkvo]$|mlp/(gate|up|down)$'
  rslora: bool = False  # scale by sqrt(rank) (Kalajdzievski 2023)

  @property
  def scale(self) -> float:
    """Factor on the update."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything that shapes a parameter or a forward pass."""

  backbone: BackboneConfig
  pooling: PoolingConfig = PoolingConfig()
  dense: tuple[DenseConfig, ...] = ()
  lora: LoraConfig | None = None
  attention: str = 'bidirectional'  # bidirectional | causal | prefix
  normalize: bool = True
  max_length: int = 512
  dtype: str = 'float32'  # of activations; parameters have their own
  remat: str = 'none'  # none | full | dots

  def __post_init__(self):
    _one_of(self, 'attention', ('bidirectional', 'causal', 'prefix'))
    _one_of(self, 'dtype', ('float32', 'bfloat16', 'float16'))
    _one_of(self, 'remat', ('none', 'full', 'dots'))

  @property
  def embedding_dim(self) -> int:
    """E: width of what `encode` returns."""
    return self.dense[-1].features if self.dense else self.backbone.dim


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
  """A contrastive loss: which pairs count as negatives, how, and computed where.

  terms: the sums a row's positive competes with. qd: its query against passages
    (InfoNCE). qq: against other queries. dd: its positive against other
    positives. dq: its positive against other queries. GTE and Qwen3 use all.
  symmetric: mean of the query's loss and its positive's (CLIP); with qd alone.
  """

  name: str = 'info_nce'
  temperature: float = 0.05
  learn_temperature: bool = False
  max_scale: float = 100.0  # a learned 1/temperature stays in [1, max_scale]

  # Which pairs.
  terms: tuple[str, ...] = ('qd',)
  symmetric: bool = False
  negatives: str = 'batch'  # batch: as each row's in_batch says | own: none shared
  same_group: bool = False  # in-batch negatives from the row's own dataset only
  margin: float = float('inf')  # drop s > s_positive + margin
  relative_margin: float = float('inf')  # drop s > relative_margin * s_positive

  # How they count.
  decoupled: bool = False  # leave the positive out of the denominator
  focal_gamma: float = 0.0  # weight (1 - p)^gamma
  focal_detach: bool = True  # no gradient through the weight
  hardness: float = 0.0  # weight exp(hardness * stop_gradient(s)) of a negative
  hardness_on: str = 'own'  # own | shared | all negatives
  widths: tuple[int, ...] = ()  # Matryoshka prefixes; (): the whole vector only
  width_weights: tuple[float, ...] = ()  # (): 1 each

  # Computed how.
  dtype: str = 'float32'  # of the products; sums are float32 always
  bounded: bool = False  # constant shift instead of running maxima
  exchange: str = 'auto'  # gather | ring
  impl: str = 'auto'  # of kernels.contrastive
  tile_bytes: int = 0  # score tile; 0: the platform's default

  def __post_init__(self):
    _one_of(self, 'name', ('info_nce',))
    _one_of(self, 'negatives', ('batch', 'own'))
    _one_of(self, 'hardness_on', ('own', 'shared', 'all'))
    _one_of(self, 'dtype', ('float32', 'bfloat16'))
    _one_of(self, 'exchange', ('auto', 'gather', 'ring'))
    if not self.temperature > 0:
      raise ValueError(
          f'LossConfig.temperature is {self.temperature}; it divides the scores and '
          'must be above 0 (0.01 to 0.1 is usual)')
    if not self.max_scale > 1:
      raise ValueError(f'LossConfig.max_scale is {self.max_scale}; give more than 1')
    unknown = set(self.terms) - {'qd', 'qq', 'dd', 'dq'}
    if unknown or 'qd' not in self.terms or len(set(self.terms)) != len(self.terms):
      raise ValueError(
          f'LossConfig.terms is {self.terms}; give qd and any of qq, dd, dq, once')
    if self.symmetric and tuple(self.terms) != ('qd',):
      raise ValueError(
          'LossConfig.symmetric averages two losses of one term each; with '
          f'terms {self.terms} use the term dq instead')
    if self.negatives == 'own' and (self.symmetric or tuple(self.terms) != ('qd',)):
      raise ValueError(
          "LossConfig.negatives = 'own' leaves the term qd alone: set terms to "
          "('qd',) and symmetric to False")
    if self.focal_gamma < 0:
      raise ValueError(f'LossConfig.focal_gamma is {self.focal_gamma}; give 0 or more')
    if any(w <= 0 for w in self.widths):
      raise ValueError(f'LossConfig.widths is {self.widths}; all must be above 0')
    if self.width_weights and len(self.width_weights) != len(self.widths):
      raise ValueError(
          f'LossConfig.width_weights has {len(self.width_weights)} entries for '
          f'{len(self.widths)} widths')


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
