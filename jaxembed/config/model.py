"""Model configuration: frozen, hashable dataclasses, static under jit."""

from dataclasses import dataclass, replace
import re

from jaxembed.config.check import (
    at_least,
    between,
    one_of,
    pattern,
    positive,
    require,
    typed,
)
from jaxembed.config.length import LengthConfig

# No model's sizes come near: vocabularies and positions; widths; layers and heads.
_IDS, _WIDTH, _PARTS = 2**30, 2**20, 2**12

READS = ('last_token', 'tokens', 'layers_last', 'layers_mean')
ATTENTIONS = ('bidirectional', 'causal', 'prefix')
DTYPES = ('float32', 'bfloat16', 'float16')
ATTENTION_IMPLS = ('auto', 'dense', 'blockwise', 'splash', 'cudnn')
IMPLS = ('auto', 'reference', 'blockwise', 'tpu', 'gpu')  # of a kernel
PRECISIONS = ('default', 'high', 'highest')
REMATS = ('none', 'full', 'residual', 'dots')
PROMPT_POOLINGS = ('include', 'exclude', 'nv_embed')


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the length of pre-training.

  linear: all frequencies divided by `factor`. llama3: low ones divided, high ones
  kept, a ramp between. yarn: the same with a ramp over channels, and cos and sin
  multiplied. longrope: every frequency has its own divisor, one set for texts up
  to `original_positions` and one for longer ones. dynamic: the base grows with the
  length of a text beyond `original_positions`.
  """

  kind: str  # linear | llama3 | yarn | longrope | dynamic
  factor: float = 1.0  # how many times longer texts may be
  low_freq_factor: float = 1.0  # llama3: wavelengths above original/this are divided
  high_freq_factor: float = 4.0  # llama3: wavelengths below original/this are kept
  original_positions: int = 8192  # the length of pre-training
  attention_factor: float = 1.0  # on cos and sin
  short_factors: tuple[float, ...] = ()  # one per frequency
  long_factors: tuple[float, ...] = ()  # for texts beyond original_positions
  beta_fast: float = 32.0  # yarn: turns at which the ramp begins
  beta_slow: float = 1.0  # yarn: turns at which it ends

  def __post_init__(self):
    typed(self)
    one_of(self, 'kind', ('linear', 'llama3', 'yarn', 'longrope', 'dynamic'))
    positive(self, 'factor', 'low_freq_factor', 'high_freq_factor', 'attention_factor',
             'beta_fast', 'beta_slow')
    between(self, 1, _IDS, 'original_positions')
    if self.kind == 'llama3':
      require(self, 'high_freq_factor', self.high_freq_factor > self.low_freq_factor,
              'more than low_freq_factor')
    for name in ('short_factors', 'long_factors'):
      require(self, name, all(0 < f < float('inf') for f in getattr(self, name)),
              'numbers above 0')


# Fields of BackboneConfig with an entry for each layer; () where all are alike.
PER_LAYER = ('windowed_layers', 'rope_layers')


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
  """A transformer as a list of features; the defaults are Mistral's.

  Nothing in the forward pass asks for `family`: it names the conversion table.
  """

  family: str  # a key of models.presets.FEATURES
  vocab_size: int  # rows of the embedding table
  dim: int  # width of token states
  ff_dim: int  # width inside the feed-forward
  num_layers: int  # blocks that states pass through; 0: embeddings alone
  num_heads: int  # query heads
  num_kv_heads: int  # key and value heads, shared by groups of queries
  head_dim: int  # width of a head
  max_positions: int  # the longest text in tokens
  norm_eps: float = 1e-5  # added to the variance

  ## Sharing
  # Blocks with parameters of their own, each passed num_layers/own_layers times in a
  # row (ALBERT); 0: all.
  own_layers: int = 0

  ## Norms
  norm: str = 'rms'  # rms | layer
  norm_bias: bool = False  # of layer norms
  norm_offset: float = 0.0  # Gemma stores scale - 1
  norm_scale: bool = True  # false: nothing is multiplied behind a norm (OLMo)
  # Where norms stand in a layer: before its two parts, behind their sums, around the
  # parts, behind the parts; parallel: one norm before both, which are summed.
  block: str = 'pre'  # pre | post | sandwich | behind | parallel
  # Of post: the layer's input is added and normed once more behind its first part.
  added_twice: bool = False
  residual_scale: float = 1.0  # a part is multiplied by it before it is added
  final_norm: bool = True  # a norm after the last layer
  first_norm: bool = True  # false: layer 0 has no norm before attention
  embed_norm: bool = False  # a norm after the embeddings

  ## Embeddings and positions
  embed_dim: int = 0  # width of embeddings, projected to dim; 0: dim, not projected
  embed_scale: float = 1.0  # embeddings are multiplied by it
  type_vocab_size: int = 0  # BERT's token types; kind 0 is used
  position: str = 'rope'  # rope | learned | alibi | none (relative_buckets alone)
  position_offset: int = 0  # RoBERTa's tables start after the padding id
  positions: str = 'mask'  # mask: text starts at 0; index: the row does (BERT)
  rope_theta: float = 10000.0  # base of the rotary frequencies
  rope_dim: int = 0  # 0: the whole head
  rope_scaling: RopeScaling | None = None  # for texts beyond pre-training
  local_rope_theta: float = 0.0  # of windowed layers; 0: rope_theta
  rope_layers: tuple[bool, ...] = ()  # which layers turn at all; (): all

  ## Attention
  qkv_bias: bool = False  # of the query, key and value projections
  out_bias: bool = False  # of the output projection
  qkv_clip: float = 0.0  # queries, keys and values are cut to +-it; 0: not cut
  qk_norm: bool = False  # a norm of each head's queries and keys
  qk_norm_heads: str = 'each'  # each | all: over what that norm runs (all: OLMo 2)
  query_scale: float = 0.0  # scores are multiplied by it; 0: 1/sqrt(head_dim)
  # A query at place p is multiplied by 1 + growth log(1 + floor(p / every)) (Llama 4).
  query_growth: float = 0.0  # 0: not
  query_growth_every: int = 1  # places after which the factor grows
  softcap: float = 0.0  # s -> c tanh(s/c); 0: none
  window: int = 0  # keys seen by a windowed layer, own one included; 0: all
  two_way_window: int = 0  # the same when bidirectional: |distance| below it
  windowed_layers: tuple[bool, ...] = ()  # (): all, when there is a window
  relative_buckets: int = 0  # T5's bias, shared by the layers; 0: none
  relative_per_layer: bool = False  # every layer has a bias of its own (UMT5)
  relative_distance: int = 128  # from here on, distances share a bucket
  # DeBERTa: instead of a bias, products of contents with vectors of distances, of which
  # there are 2 relative_buckets: c2p (with queries), p2c (with keys).
  disentangled: tuple[str, ...] = ()
  disentangled_shared: bool = True  # distances pass the projections of contents
  disentangled_norm: bool = True  # a norm of the vectors of distances
  relative_log: bool = True  # false: each distance has a bucket

  ## Feed-forward
  activation: str = 'silu'  # silu | gelu | gelu_tanh | relu
  gated: bool = True  # GLU: activation(gate) * up
  ff_bias: bool = False  # of the feed-forward's projections
  experts: int = 0  # feed-forwards of width ff_dim that a router chooses from; 0: one
  experts_used: int = 1  # by each token
  experts_normed: bool = True  # the shares of those used sum to 1
  down_bias: bool | None = None  # of the last of them; None: as the others

  def __post_init__(self):
    typed(self)
    between(self, 1, _IDS, 'vocab_size', 'max_positions')
    between(self, 1, _WIDTH, 'dim', 'ff_dim', 'head_dim')
    between(self, 1, _PARTS, 'num_heads', 'num_kv_heads')
    between(self, 0, _PARTS, 'num_layers')
    between(self, 0, _IDS, 'type_vocab_size', 'position_offset', 'window',
            'two_way_window', 'relative_buckets', 'relative_distance')
    between(self, 0, self.head_dim, 'rope_dim')
    between(self, 0, _WIDTH, 'embed_dim')
    between(self, 0, self.num_layers, 'own_layers')
    require(self, 'own_layers', self.num_layers % (self.own_layers or 1) == 0,
            f'a divisor of num_layers {self.num_layers}')
    between(self, 1, _IDS, 'query_growth_every')
    between(self, 0, _PARTS, 'experts')
    between(self, 1, max(self.experts, 1), 'experts_used')
    require(self, 'experts', not self.experts or (self.gated and not self.ff_bias),
            '0 where feed-forwards have biases or no gate')
    positive(self, 'norm_eps', 'embed_scale', 'residual_scale', 'rope_theta')
    for name in ('local_rope_theta', 'query_scale', 'query_growth', 'qkv_clip',
                 'softcap'):
      require(self, name, 0 <= getattr(self, name) < float('inf'), '0 or more')
    self._check_rope()
    one_of(self, 'norm', ('rms', 'layer'))
    one_of(self, 'block', ('pre', 'post', 'sandwich', 'behind', 'parallel'))
    one_of(self, 'qk_norm_heads', ('each', 'all'))
    one_of(self, 'position', ('rope', 'learned', 'alibi', 'none'))
    one_of(self, 'positions', ('mask', 'index'))
    one_of(self, 'activation', ('silu', 'gelu', 'gelu_tanh', 'relu'))
    require(self, 'disentangled', {*self.disentangled} <= {'c2p', 'p2c'},
            'a tuple of c2p and p2c')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads {self.num_heads} is not a multiple of num_kv_heads '
          f'{self.num_kv_heads}')
    for name in PER_LAYER:
      listed = getattr(self, name)
      if listed and len(listed) != self.num_layers:
        raise ValueError(f'{name} has {len(listed)} entries for {self.num_layers} '
                         'layers')

  @property
  def stacked_layers(self) -> int:
    """Blocks with parameters of their own: the first axis of those below layers/."""
    return self.own_layers or self.num_layers

  def _check_rope(self):
    """Rotations are of pairs of channels, each with a frequency of its own."""
    width = self.rope_dim or self.head_dim
    if self.position == 'rope':
      require(self, 'rope_dim' if self.rope_dim else 'head_dim', width % 2 == 0,
              'an even number')
    scaling = self.rope_scaling
    if scaling is not None and scaling.kind == 'longrope':
      for name in ('short_factors', 'long_factors'):
        require(scaling, name, len(getattr(scaling, name)) == width // 2,
                f'{width // 2} numbers, one per frequency')


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
    between(self, 1, _WIDTH, 'latents', 'heads', 'ff_mult')
    between(self, 0, _WIDTH, 'head_dim')
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
    between(self, 1, _WIDTH, 'features')
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
    between(self, 1, _WIDTH, 'rank')
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
    between(self, 1, _IDS, 'max_length')
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
    pooled = self.backbone.dim * len(self.pooling.modes)
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
