"""Model configuration: frozen, hashable dataclasses, static under jit."""

from dataclasses import dataclass, replace
import re

from jaxembed.config.backbone import BackboneConfig
from jaxembed.config.check import (
    IDS,
    WIDTH,
    at_least,
    between,
    one_of,
    pattern,
    positive,
    require,
    typed,
)
from jaxembed.config.length import LengthConfig

READS = ('last_token', 'tokens', 'layers_last', 'layers_mean')
ATTENTIONS = ('bidirectional', 'causal', 'prefix')
DTYPES = ('float32', 'bfloat16', 'float16')
ATTENTION_IMPLS = ('auto', 'dense', 'blockwise', 'splash', 'cudnn')
IMPLS = ('auto', 'reference', 'blockwise', 'tpu', 'gpu')  # of a kernel
PRECISIONS = ('default', 'high', 'highest')
REMATS = ('none', 'full', 'residual', 'dots')
PROMPT_POOLINGS = ('include', 'exclude', 'nv_embed')


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
  """How token states become one vector. `reads` to `ff_mult` shape latent and layer
  attention; their defaults are NV-Embed's.

  options: (name, value) pairs of what another kind reads (pooling.head.Head.options).
  """

  # A name in pooling.heads.HEADS: mean | cls | last | weighted_mean | max | mean_sqrt
  # | latent_attention | layer_attention; or several without parameters, whose vectors
  # stand side by side, joined by '+' ('cls+mean').
  kind: str = 'mean'
  # Of layer_attention: the last token | all tokens (of the last layer), or the
  # last token | mean of every layer.
  reads: str = 'layers_mean'  # last_token | tokens | layers_last | layers_mean
  latents: int = 512  # learned keys (and values) of latent attention
  heads: int = 8  # of the pooling's attention
  head_dim: int = 0  # 0: the backbone's width, as released by NV-Embed
  ff_mult: int = 4  # width inside its feed-forward, over the backbone's
  options: tuple[tuple[str, object], ...] = ()
  # How latent attention is computed, and no other vector but for rounding: auto |
  # reference | blockwise | tpu | gpu (kernels.choices says what auto takes).
  impl: str = 'auto'

  def __post_init__(self):
    typed(self)
    one_of(self, 'impl', IMPLS)
    between(self, 1, WIDTH, 'latents', 'heads', 'ff_mult')
    between(self, 0, WIDTH, 'head_dim')
    require(self, 'kind', bool(self.kind), 'the name of a pooling')
    object.__setattr__(self, 'options', tuple(map(tuple, self.options)))
    one_of(self, 'reads', READS)

  def option(self, name: str) -> object:
    """The value of an option that the pooling reads."""
    return dict(self.options)[name]

  @property
  def modes(self) -> tuple[str, ...]:
    """The kinds whose vectors stand side by side; one for most models."""
    return tuple(self.kind.split('+'))


DENSE_ACTIVATIONS = (
    'identity', 'tanh', 'relu', 'gelu', 'silu', 'sigmoid', 'leaky_relu', 'elu', 'selu',
    'softplus', 'softsign', 'mish', 'celu', 'relu6', 'rrelu', 'hard_sigmoid',
    'hard_silu', 'hard_tanh', 'log_sigmoid', 'tanh_shrink', 'soft_shrink',
    'hard_shrink', 'softmax', 'softmin', 'log_softmax')


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
  """One step after pooling: activation(W v + b), with `residual` plus v itself, or plus
  a second projection of v where the widths differ; or the LayerNorm of v."""

  features: int  # width of what comes out
  kind: str = 'dense'  # dense | layer_norm, which reads features and normalize_input
  bias: bool = True  # whether b is added
  activation: str = 'identity'  # one of DENSE_ACTIVATIONS
  residual: bool = False  # whether v is added
  normalize_input: bool = False  # v is scaled to length 1 before

  def __post_init__(self):
    typed(self)
    between(self, 1, WIDTH, 'features')
    one_of(self, 'activation', DENSE_ACTIVATIONS)
    one_of(self, 'kind', ('dense', 'layer_norm'))

  @property
  def by_column(self) -> bool:
    """Whether each number that comes out depends on a column of its own alone."""
    return self.kind == 'dense' and 'softm' not in self.activation


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank updates beside the kernels whose path matches `targets`."""

  rank: int = 16  # columns of the two matrices
  alpha: float = 32.0  # the update is scaled by alpha / rank
  dropout: float = 0.0  # of what enters an update
  targets: str = r'attn/[qkvo]$|mlp/(gate|up|down)$'  # regex over parameter paths
  rslora: bool = False  # scale by sqrt(rank) (Kalajdzievski 2023)

  def __post_init__(self):
    typed(self)
    between(self, 1, WIDTH, 'rank')
    positive(self, 'alpha')
    require(self, 'dropout', 0 <= self.dropout < 1, '0 or more, and less than 1')
    pattern(self, 'targets', self.targets)

  def adapts(self, path: str) -> bool:
    """Whether the projection at `path` ('backbone/layers/attn/q') has an adapter."""
    return re.search(self.targets, path) is not None

  @property
  def scale(self) -> float:
    """Factor on the update."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class PrependConfig:
  """Token prepending: before layers start..stop-1, the state of the first token
  `token_id` becomes that of the last token (models/training_free.py).

  text: what the tokenizer reads as that token and puts between prompt and text; '':
    the caller puts the id there.
  """

  token_id: int  # of the vocabulary
  start: int  # first layer
  stop: int  # the layer after the last
  text: str = ''

  def __post_init__(self):
    typed(self)
    at_least(self, token_id=0, start=0, stop=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything that shapes a parameter or a forward pass."""

  backbone: BackboneConfig  # the transformer
  pooling: PoolingConfig = PoolingConfig()  # token states to one vector
  dense: tuple[DenseConfig, ...] = ()  # projections after pooling, in order
  lora: LoraConfig | None = None  # adapters; None: none
  prepend: PrependConfig | None = None  # token prepending; None: none
  attention: str = 'bidirectional'  # bidirectional | causal | prefix
  normalize: bool = True  # vectors end with length 1
  max_length: int = 512  # tokens; longer texts are cut
  dtype: str = 'float32'  # of activations; parameters have their own
  # Of a float32 model's products: highest (float32 on every platform), high (three
  # bfloat16 passes on a TPU, TF32 on a GPU), default (the platform's fastest).
  precision: str = 'highest'
  # What the backward pass computes again, to keep less: full: all of a layer;
  # residual: all but the sums that sublayers add up to, so not the products before
  # them; dots: no product with a parameter, nor attention; none: nothing.
  remat: str = 'none'
  # How attention is computed: auto (by platform, length and features), or one form
  # that is used or refused (docs/attention.md). Vectors do not depend on it.
  attention_impl: str = 'auto'  # auto | dense | blockwise | splash | cudnn
  ## How text becomes tokens, beside the tokenizer's own rules (data/tokenise.py).
  prompt_pooling: str = 'include'  # include | exclude | nv_embed
  eos_text: str = ''  # put behind every text, lost where one is cut (NV-Embed)
  lower_case: bool = False  # texts are put in lower case, whatever the tokenizer does
  bare_tokenizer: bool = False  # tokenizer.json alone, no special tokens around texts
  length: LengthConfig | None = None  # how longer texts are read; None: as they are

  def __post_init__(self):
    typed(self)
    between(self, 1, IDS, 'max_length')
    one_of(self, 'prompt_pooling', PROMPT_POOLINGS)
    one_of(self, 'attention', ATTENTIONS)
    one_of(self, 'dtype', DTYPES)
    one_of(self, 'precision', PRECISIONS)
    one_of(self, 'remat', REMATS)
    one_of(self, 'attention_impl', ATTENTION_IMPLS)

  @property
  def embedding_dim(self) -> int:
    """E: width of what `encode` returns."""
    return self.widths[-1]

  @property
  def widths(self) -> tuple[int, ...]:
    """Of the vector before every dense layer and, last, of what `encode` returns."""
    pooled = self.backbone.width * len(self.pooling.modes)
    return (pooled, *(layer.features for layer in self.dense))


def bidirectional(cfg: ModelConfig) -> ModelConfig:
  """`cfg` with attention in both directions.

  The window of a decoder that has one in all its layers (Mistral) falls away, as in
  NV-Embed, LLM2Vec and their kin: it bounds how far back a language model looks.
  Layers that alternate between windowed and full keep their windows.
  """
  backbone = cfg.backbone
  if cfg.attention == 'causal' and backbone.window and not backbone.windowed_layers:
    backbone = replace(backbone, window=0, two_way_window=0)
  return replace(cfg, backbone=backbone, attention='bidirectional')
