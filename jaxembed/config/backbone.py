"""Configuration of a transformer: a list of features, static under jit."""

from dataclasses import dataclass

from jaxembed.config.check import (
  IDS,
  PARTS,
  WIDTH,
  between,
  one_of,
  positive,
  require,
  typed,
)


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
    between(self, 1, IDS, 'original_positions')
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
  v_norm: bool = False  # an RMS norm, without a scale, of each head's values
  softcap: float = 0.0  # s -> c tanh(s/c); 0: none
  window: int = 0  # keys seen by a windowed layer, own one included; 0: all
  two_way_window: int = 0  # the same when bidirectional: |distance| below it
  windowed_layers: tuple[bool, ...] = ()  # (): all, when there is a window
  # Of layers without a window, where others have one.
  full_head_dim: int = 0  # width of a head; 0: as of the others
  full_kv_heads: int = 0  # key and value heads, where full_head_dim is given
  relative_buckets: int = 0  # T5's bias, shared by the layers; 0: none
  relative_per_layer: bool = False  # every layer has a bias of its own (UMT5)
  relative_distance: int = 128  # from here on, distances share a bucket
  # DeBERTa: instead of a bias, products of contents with vectors of distances, of which
  # there are 2 relative_buckets: c2p (with queries), p2c (with keys).
  disentangled: tuple[str, ...] = ()
  disentangled_shared: bool = True  # distances pass the projections of contents
  disentangled_norm: bool = True  # a norm of the vectors of distances
  relative_log: bool = True  # false: each distance has a bucket

  ## What layers read and hand on besides
  layer_input_dim: int = 0  # width of what each reads of the embeddings; 0: nothing
  layer_scale: bool = False  # a learned number multiplies what a layer hands on
  out_dim: int = 0  # width of a projection behind the last norm; 0: there is none

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
    between(self, 1, IDS, 'vocab_size', 'max_positions')
    between(self, 1, WIDTH, 'dim', 'ff_dim', 'head_dim')
    between(self, 1, PARTS, 'num_heads', 'num_kv_heads')
    between(self, 0, PARTS, 'num_layers', 'full_kv_heads', 'experts')
    between(self, 0, IDS, 'type_vocab_size', 'position_offset', 'window',
            'two_way_window', 'relative_buckets', 'relative_distance')
    between(self, 0, self.head_dim, 'rope_dim')
    between(self, 0, WIDTH, 'full_head_dim', 'layer_input_dim', 'out_dim',
            'embed_dim')
    require(self, 'full_head_dim', not self.full_head_dim or (
        bool(self.windowed_layers) and self.full_kv_heads > 0
        and self.local_rope_theta > 0),
            '0 where layers are alike')
    between(self, 0, self.num_layers, 'own_layers')
    require(self, 'own_layers', self.num_layers % (self.own_layers or 1) == 0,
            f'a divisor of num_layers {self.num_layers}')
    between(self, 1, IDS, 'query_growth_every')
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

  @property
  def width(self) -> int:
    """Numbers of a token's state, as poolings see it."""
    return self.out_dim or self.dim

  @property
  def rope_width(self) -> int:
    """Channels that layers turn; where two kinds differ, those without a window."""
    return self.rope_dim or self.full_head_dim or self.head_dim

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
