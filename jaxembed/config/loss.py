"""What a batch of embeddings is asked to do."""

from dataclasses import dataclass

from jaxembed.config.check import one_of


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

  def check_row_temperatures(self):
    """Raises ValueError if rows cannot have temperatures of their own."""
    if self.bounded or (self.hardness and self.negatives != 'own'):
      raise ValueError(
          'LossConfig.bounded and LossConfig.hardness (but for negatives = \'own\') '
          'know one temperature for all rows; switch them off, or leave '
          'SourceConfig.temperature at 0')

  def __post_init__(self):
    one_of(self, 'name', ('info_nce',))
    one_of(self, 'negatives', ('batch', 'own'))
    one_of(self, 'hardness_on', ('own', 'shared', 'all'))
    one_of(self, 'dtype', ('float32', 'bfloat16'))
    one_of(self, 'exchange', ('auto', 'gather', 'ring'))
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
