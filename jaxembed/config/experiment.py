"""A run: where the weights come from, its stages, mesh and checkpoints."""

from dataclasses import dataclass, field
from typing import Optional

from jaxembed.config.check import one_of
from jaxembed.config.data import DataConfig, SourceConfig
from jaxembed.config.loss import LossConfig


@dataclass(kw_only=True)
class ModelSpec:
  """Which weights to start from, and what to put on top of them."""

  # A Hugging Face or sentence-transformers folder, a jaxembed workdir, a hub id,
  # or 'package:NAME/FOLDER' for files inside an installed Python package.
  source: str = ''
  fallback: str = ''  # used when the hub cannot be reached
  preset: str = ''  # a name in models.presets, for random initialisation
  attention: str = ''  # '' keeps what the source says
  pooling: str = ''  # '' keeps what the source says
  latents: int = 512
  heads: int = 8
  head_dim: int = 0
  ff_mult: int = 4
  reads: str = 'layers_mean'  # of layer_attention, as in PoolingConfig
  max_length: int = 0  # 0 keeps what the source says
  prompt_pooling: str = ''  # '' keeps what the source says
  eos_text: str = ''  # '' keeps what the source says
  # A token of the vocabulary that the tokenizer is to put behind every text, cut ones
  # too, here and wherever the trained model goes ('</s>'); '': as the source has it.
  append_token: str = ''
  dtype: str = 'float32'
  precision: str = ''  # as ModelConfig has it; '' keeps what the source says
  remat: str = 'none'  # as ModelConfig has it
  lora_rank: int = 0  # 0: no adapters, everything is trained
  lora_alpha: float = 32.0
  lora_dropout: float = 0.0
  lora_targets: str = ''  # regex over parameter paths; '': every projection


@dataclass(kw_only=True)
class OptimConfig:
  name: str = 'adamw'  # adamw | adafactor | sgd | muon (adamw but on layer kernels)
  peak_lr: float = 2e-5
  head_lr: float = 0.0  # of all outside backbone/; 0: peak_lr
  # (regex over parameter paths, factor): the first that matches multiplies a
  # parameter's learning rate, such as ('backbone/embed', 0.1).
  lr_factors: tuple[tuple[str, float], ...] = ()
  warmup_steps: int = 50
  schedule: str = 'linear'  # linear | cosine | constant, after warm-up
  end_lr: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01  # kernels only, not norms or biases
  clip_norm: float = 1.0
  freeze: str = ''  # regex over parameter paths
  # Of a running mean of the parameters, which evaluation, the next stage and the
  # finished model then take; 0: none. 0.99 to 0.9999 is usual.
  ema_decay: float = 0.0
  # Go on with the moments of the stage before, under this stage's own schedule;
  # false: begin anew. The same parameters must move in both.
  carry: bool = False

  def __post_init__(self):
    one_of(self, 'name', ('adamw', 'adafactor', 'sgd', 'muon'))
    one_of(self, 'schedule', ('linear', 'cosine', 'constant'))
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f'OptimConfig.ema_decay is {self.ema_decay}; give 0 (off) or a '
                       'number below 1, such as 0.999')
    for pattern, factor in self.lr_factors:
      if not factor > 0:
        raise ValueError(f'OptimConfig.lr_factors: {pattern!r} has the factor '
                         f'{factor}; give one above 0, or freeze what it matches')


@dataclass(kw_only=True)
class StageConfig:
  """A stretch of training with its own data, loss and learning rate."""

  name: str = 'train'
  steps: int = 1000
  # GradCache: the most tokens per device encoded at a time. 0: the whole batch.
  token_budget: int = 0
  # Within a token_budget, what of a chunk is computed again: full | residual | dots, as
  # in ModelConfig.remat. All but full keep something of every text: memory grows with
  # the batch.
  chunk_remat: str = 'full'
  data: DataConfig = field(default_factory=DataConfig)
  loss: LossConfig = field(default_factory=LossConfig)
  optim: OptimConfig = field(default_factory=OptimConfig)

  def __post_init__(self):
    one_of(self, 'chunk_remat', ('full', 'residual', 'dots'))
    row = self.data.row
    if 0 < self.token_budget < row:
      raise ValueError(f'StageConfig.token_budget is {self.token_budget}, less than '
                       f'one row of {row} tokens; give {row} or more, or 0 (no chunks)')
    if any(s.temperature for s in self.data.sources):
      self.loss.check_row_temperatures()


@dataclass(kw_only=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1, for all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
      raise ValueError(f'config.mesh is {sizes} (data, fsdp, tensor); give sizes of '
                       '1 or more, at most one of them -1 for all devices left')


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
  # The manifest of an earlier run, whose data this one must find; '': none.
  repeats: str = ''
