"""Experiment configuration: model source, stages, optimiser, mesh, checkpoints."""

from dataclasses import InitVar, dataclass, field
import math
from typing import Any, ClassVar, Optional

from jaxembed.config.check import at_least, one_of, pattern, require, typed
from jaxembed.config.data import DataConfig
from jaxembed.config.length import LengthConfig
from jaxembed.config.loss import LossConfig
from jaxembed.config.model import (
  ATTENTION_IMPLS,
  ATTENTIONS,
  DTYPES,
  IMPLS,
  PRECISIONS,
  PROMPT_POOLINGS,
  READS,
  REMATS,
  LoraConfig,
  PoolingConfig,
)
from jaxembed.config.source import SourceConfig

# What fields of ModelSpec held when nothing was asked, before they could say so.
_UNASKED = {'latents': 512, 'heads': 8, 'head_dim': 0, 'ff_mult': 4,
            'reads': 'layers_mean', 'dtype': 'float32', 'remat': 'none',
            'lora_alpha': 32.0, 'lora_dropout': 0.0}


@dataclass(kw_only=True)
class ModelSpec:
  """Which weights to start from, and what is asked of them.

  A field left as it is asks for nothing, and what the source has stays. What is asked
  for is applied, with a line at start where it changes the source, or refused.

  source: a Hugging Face or sentence-transformers folder, a PEFT adapter, a jaxembed
    workdir, a hub id, or 'package:NAME/FOLDER' for files in an installed package.
  fallback: used when the hub cannot be reached.
  preset: a name in models.presets, for random weights instead of a source's.
  tokenizer: of a preset: a folder or hub id with tokenizer.json.
  pooling: a PoolingConfig, or the name of a kind. Another head than the source's is
    drawn anew.
  latents, heads, head_dim, ff_mult, reads: of that head, as in PoolingConfig.
  append_token: a token of the vocabulary that the tokenizer is to put behind every
    text, cut ones too, here and wherever the trained model goes ('</s>').
  lora: new adapters; or lora_rank and the three below it, as in LoraConfig. Adapters
    that the source has are trained on; of them the dropout alone can be changed.
  normalize: whether vectors end with length 1. Not asked, they do, whatever the
    source's modules say: losses compare by cosine, and so should who uses the model.
    False keeps their lengths; LossConfig.similarity='dot' wants a word on it.
  prepend: (start, stop): token prepending in the layers start..stop-1, by a new token
    that the tokenizer puts between prompt and text (models/training_free.py).
  length: a LengthConfig, for texts beyond those that the source was trained on.
  The others are those of ModelConfig.
  """

  source: str = ''
  fallback: str = ''
  preset: str = ''
  tokenizer: str = ''
  attention: str = ''
  # A causal source made bidirectional loses the window that all of its layers have,
  # as NV-Embed's did; true: tokens go on seeing so many to either side.
  keep_window: bool = False
  pooling: object = ''  # PoolingConfig | str; flags can parse no such type
  latents: Optional[int] = None
  heads: Optional[int] = None
  head_dim: Optional[int] = None
  ff_mult: Optional[int] = None
  reads: Optional[str] = None
  max_length: int = 0  # tokens of a text, in use; 0: the source's
  normalize: Optional[bool] = None
  prompt_pooling: str = ''
  eos_text: str = ''
  append_token: str = ''
  dtype: str = ''
  precision: str = ''
  remat: str = ''
  attention_impl: str = ''
  pooling_impl: str = ''  # of latent attention, PoolingConfig.impl
  prepend: Optional[tuple[int, int]] = None
  length: Optional[LengthConfig] = None
  lora: Optional[LoraConfig] = None
  lora_rank: int = 0  # of new adapters; 0: none
  lora_alpha: Optional[float] = None
  lora_dropout: Optional[float] = None
  lora_targets: str = ''  # regex over parameter paths

  def __post_init__(self):
    typed(self)
    if isinstance(self.pooling, dict):  # from JSON
      self.pooling = PoolingConfig(**self.pooling)
    if self.pooling and not isinstance(self.pooling, PoolingConfig):
      require(self, 'pooling', isinstance(self.pooling, str),
              'the name of a kind, or a PoolingConfig')
      try:
        PoolingConfig(kind=str(self.pooling))
      except ValueError as e:
        raise ValueError(f'ModelSpec.pooling: {e}') from e
    for name, allowed in (('attention', ATTENTIONS), ('dtype', DTYPES),
                          ('precision', PRECISIONS), ('remat', REMATS),
                          ('attention_impl', ATTENTION_IMPLS),
                          ('pooling_impl', IMPLS),
                          ('prompt_pooling', PROMPT_POOLINGS)):
      one_of(self, name, ('', *allowed))
    if self.reads is not None:
      one_of(self, 'reads', READS)
    at_least(self, max_length=0, lora_rank=0)
    for name, low in (('latents', 1), ('heads', 1), ('head_dim', 0), ('ff_mult', 1)):
      if getattr(self, name) is not None:
        at_least(self, **{name: low})
    pattern(self, 'lora_targets', self.lora_targets)
    if self.lora_alpha is not None:
      require(self, 'lora_alpha', 0 < self.lora_alpha < math.inf, 'a number above 0')
    if self.lora_dropout is not None:
      require(self, 'lora_dropout', 0 <= self.lora_dropout < 1, '0 or more, below 1')
    if self.tokenizer:
      require(self, 'tokenizer', bool(self.preset), "'': a source brings its own")

  @staticmethod
  def upgraded(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored JSON without the values that, before `lora` was a field, asked nothing."""
    if 'lora' in stored:
      return stored
    return {key: value for key, value in stored.items()
            if key not in _UNASKED or value != _UNASKED[key]}


@dataclass(kw_only=True)
class OptimConfig:
  """An optimiser and its learning rate. What an optimiser does not read is told.

  name: adamw | adafactor | sgd (b1: its momentum) | muon. Muon is for the matrices of
    the layers and is AdamW on all else: Jordan et al. 2024 (Nesterov momentum of 0.95
    without bias correction, five Newton-Schulz steps), at the scale of Liu et al. 2025.
  keep_optimizer_state: go on with the moments of the stage before, under this stage's
    own schedule; false: begin anew. The same parameters must be trained in both.
  carry: its former name.
  """

  name: str = 'adamw'
  peak_lr: float = 2e-5  # at the end of warm-up
  head_lr: float = 0.0  # of all outside backbone/; 0: peak_lr
  # (regex over parameter paths, factor): the first that matches multiplies a
  # parameter's learning rate, such as ('backbone/embed', 0.1).
  lr_factors: tuple[tuple[str, float], ...] = ()
  # In a stage that has fewer steps, a tenth of them.
  warmup_steps: int = 50
  schedule: str = 'linear'  # linear | cosine | constant, after warm-up
  end_lr: float = 0.0  # where the schedule ends
  b1: float = 0.9  # decay of the first moment
  b2: float = 0.999  # decay of the second moment
  eps: float = 1e-8  # added to the root of the second moment
  weight_decay: float = 0.01  # kernels and adapters only, not norms or biases
  clip_norm: float = 1.0  # of the whole gradient; 0: not clipped
  freeze: str = ''  # regex over parameter paths
  # Of a running mean of the parameters, which evaluation, the next stage and the
  # finished model then take; 0: none. 0.99 to 0.9999 is usual.
  ema_decay: float = 0.0
  keep_optimizer_state: bool = False
  # An update whose gradient or embeddings are not finite is left out, and counted.
  # More than so many in a row end the run; a loss that is not finite ends it at once.
  max_skipped: int = 5
  carry: InitVar[Optional[bool]] = None
  FORMER: ClassVar[dict[str, str]] = {'carry': 'keep_optimizer_state'}

  def __post_init__(self, *carry: Optional[bool]):
    carried = self.__dict__.pop('carry', *carry or (None,))  # set by the command line
    if carried is not None:
      self.keep_optimizer_state = carried
    typed(self)
    one_of(self, 'name', ('adamw', 'adafactor', 'sgd', 'muon'))
    one_of(self, 'schedule', ('linear', 'cosine', 'constant'))
    pattern(self, 'freeze', self.freeze)
    at_least(self, warmup_steps=0, max_skipped=0)
    for name in ('peak_lr', 'head_lr', 'end_lr', 'weight_decay', 'clip_norm'):
      require(self, name, 0 <= getattr(self, name) < math.inf,
              'a number of 0 or more')
    for name in ('b1', 'b2'):
      require(self, name, 0 <= getattr(self, name) < 1, '0 or more, below 1')
    require(self, 'eps', 0 < self.eps < math.inf, 'a number above 0, such as 1e-8')
    require(self, 'ema_decay', 0 <= self.ema_decay < 1,
            '0 (off) or a number below 1, such as 0.999')
    if self.schedule != 'constant':
      lowest = min(self.peak_lr, self.head_lr or self.peak_lr)
      require(self, 'end_lr', self.end_lr <= lowest,
              f'at most the rate it comes down from ({lowest})')
    for path, factor in self.lr_factors:
      pattern(self, 'lr_factors', path)
      if not 0 < factor < math.inf:
        raise ValueError(f'OptimConfig.lr_factors: {path!r} has the factor '
                         f'{factor}; give one above 0, or freeze what it matches')


@dataclass(kw_only=True)
class StageConfig:
  """A stretch of training with its own data, loss and learning rate."""

  name: str = 'train'  # in metrics
  steps: int = 1000  # updates of the parameters
  # Passes through the data, counted in whole batches, that take the place of steps; 0:
  # steps as they are.
  epochs: float = 0.0
  # Steps after which sources of kind 'mined' get new negatives, by the weights as they
  # are and the rules that made the old ones; 0: never. In one process.
  remine_every: int = 0
  # A document that is not encoded again is taken to have moved at most so many times as
  # far as the furthest of those that were; inf: all are, and nothing is taken on trust.
  remine_margin: float = 1.5
  # GradCache: the most tokens per device encoded at a time. 0: the whole batch.
  token_budget: int = 0
  # Within a token_budget, what of a chunk is computed again: full | residual | dots, as
  # in ModelConfig.remat. All but full keep something of every text: memory grows with
  # the batch.
  chunk_remat: str = 'full'
  data: DataConfig = field(default_factory=DataConfig)  # what it reads
  loss: LossConfig = field(default_factory=LossConfig)  # what it minimises
  optim: OptimConfig = field(default_factory=OptimConfig)  # how it updates

  def __post_init__(self):
    typed(self)
    one_of(self, 'chunk_remat', ('full', 'residual', 'dots'))
    at_least(self, steps=1, token_budget=0, remine_every=0)
    if self.remine_every and all(s.kind != 'mined' for s in self.data.sources):
      raise ValueError(
          f'StageConfig.remine_every is {self.remine_every}, but no source is of kind '
          "'mined'; mine rows first (launch.mine), and name the folder as path")
    require(self, 'remine_margin', self.remine_margin >= 1, '1 or more, or inf')
    require(self, 'epochs', 0 <= self.epochs < math.inf, 'a number above 0, or 0')
    row = self.data.row
    if 0 < self.token_budget < row:
      raise ValueError(f'StageConfig.token_budget is {self.token_budget}, less than '
                       f'one row of {row} tokens; give {row} or more, or 0 (no chunks)')


@dataclass(kw_only=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1, for all that are left."""

  data: int = -1  # devices that divide the batch
  fsdp: int = 1  # devices that divide the batch and the parameters
  tensor: int = 1  # devices that divide matrices and heads
  sequence: int = 1  # devices that divide the tokens of a row, for texts of thousands

  def __post_init__(self):
    typed(self)
    sizes = self.sizes
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
      raise ValueError(f'config.mesh is {sizes} (data, fsdp, tensor, sequence); give '
                       'sizes of 1 or more, at most one -1 for all devices left')

  @property
  def sizes(self) -> tuple[int, int, int, int]:
    """What sharding.make_mesh takes."""
    return self.data, self.fsdp, self.tensor, self.sequence


@dataclass(kw_only=True)
class EvalConfig:
  """Scores of held-out pairs while a run trains."""

  every: int = 0  # steps; 0: only before and after training
  source: Optional[SourceConfig] = None  # held-out pairs, scored as retrieval
  limit: int = 1000  # the first so many pairs; 0: all
  batch_size: int = 64  # texts encoded at a time, over all devices
  # Evaluations in a row without a better checkpoint.best that end the run; 0: off.
  patience: int = 0

  def __post_init__(self):
    typed(self)
    at_least(self, every=0, limit=0, batch_size=1, patience=0)
    require(self, 'limit', self.limit != 1,
            '2 or more (one pair ranks nothing), or 0 for all')
    require(self, 'patience', not self.patience or self.every > 0,
            '0, or set EvalConfig.every as well: patience counts evaluations')


@dataclass(kw_only=True)
class CheckpointConfig:
  """When the state of a run is saved, and which states stay on the disk."""

  every: int = 500  # steps; 0: only at the end of each stage
  keep: int = 2  # the newest so many
  # And the one that scored best by this metric of the evaluation; '-' before a name:
  # lower is better; '': none.
  best: str = 'eval/ndcg@10'

  def __post_init__(self):
    typed(self)
    at_least(self, every=0, keep=1)


@dataclass(kw_only=True)
class Config:
  """An experiment: a model, and the stages that it is trained in."""

  name: str = 'experiment'  # in messages, metrics and plans
  seed: int = 0  # of data order, dropout and new parameters
  model: ModelSpec = field(default_factory=ModelSpec)  # where the weights come from
  # Trained one after the other.
  stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
  mesh: MeshConfig = field(default_factory=MeshConfig)  # how devices are laid out
  eval: EvalConfig = field(default_factory=EvalConfig)  # scores while training
  # What is saved.
  checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
  log_every: int = 10  # steps; 0: the first step and the last of each stage alone
  # The manifest of an earlier run, whose data this one must find; '': none.
  repeats: str = ''

  def __post_init__(self):
    typed(self)
    at_least(self, log_every=0)
    require(self, 'seed', 0 <= self.seed < 2**32, '0 or more, below 2**32')
    dot = [i for i, s in enumerate(self.stages) if s.loss.similarity == 'dot']
    if dot and self.model.normalize is None:
      raise ValueError(
          f"config.stages[{dot[0]}].loss.similarity is 'dot', and "
          'config.model.normalize does not say what the vectors are: False keeps the '
          'lengths that products reward, True makes products cosines')
