"""Contrastive loss configuration: negatives, temperatures, margins, Matryoshka."""

from dataclasses import dataclass, field, replace
import math
from typing import Any

from jaxembed.config.check import at_least, between, one_of, require, typed
from jaxembed.config.model import IMPLS

# The highest 1/temperature (with hardness) of a constant shift by 0.27 of it: the
# largest logit keeps 0.73 of the scale, float32 holds exp of 88.7, and sums of 4M
# columns take 15.2 of that.
_BOUNDED_SCALE = 100.0
# The highest at which no cosine underflows: the least logit less the shift is -1.27 of
# it, and float32 ends at exp(-87).
_SAFE_SCALE = 60.0
# From the least temperature to the highest: beyond, float32 cosines carry no digit of
# the logits, or the logits none of the cosines.
TEMPERATURES = 1e-6, 1e6
_MOST = 1e6  # of a weight, and of a scale
# Another word for a value of negatives and hardness_on.
_ALSO = {'hard': 'own'}
# Of the losses below, what they are over, and the fields that mean nothing there.
_SHARED = 'terms', 'symmetric', 'margin', 'relative_margin', 'decoupled', 'bounded'
_UNREAD = {name: (why, (*_SHARED, 'focal_gamma', 'hardness', *fields))
           for names, why, fields in (
    (('distill_kl', 'margin_mse', 'pair_mse'),
     "a row's own passages alone, weighed by their scores",
     ('negatives', 'same_group')),
    (('distill_stable',), 'candidates in the order of their scores', ()),
    (('cosent', 'angle'), 'pairs of the same source, ordered by their scores',
     ('negatives', 'same_group')),
    (('distill_batch',), 'the distribution over candidates', ('negatives',)),
    (('gor',), 'queries among themselves, and positives', (
        'negatives', 'same_group', 'temperature', 'learn_temperature',
        'teacher_temperature')),
    (('embed_match',), 'vectors of a teacher', (
        'negatives', 'same_group', 'temperature', 'learn_temperature',
        'teacher_temperature', 'widths', 'similarity'))) for name in names}
# Whose values, not their order alone, count.
_READ_SCORES = ('distill_kl', 'margin_mse', 'pair_mse', 'distill_stable',
                'distill_batch')


@dataclass(frozen=True, kw_only=True)
class Reads:
  """What a loss reads of rows beside their texts."""

  scores: int = 0  # how many passages of a row must have one; 0: it reads none
  vectors: bool = False  # of a teacher's, for the texts
  alone: bool = True  # rows without them teach nothing


@dataclass(kw_only=True)
class LossComputing:
  """How a loss is computed: time and memory, and no other loss but for rounding."""

  # Of the products: float32, bfloat16, or auto: bfloat16 where the model computes in
  # it, else float32. Sums are float32 always.
  dtype: str = 'auto'
  # A constant shift instead of running maxima, where the scale is in its range. Where
  # no logit of unit vectors can leave it, a device's kernels take it unasked.
  bounded: bool = False
  exchange: str = 'auto'  # gather | ring
  impl: str = 'auto'  # of kernels.contrastive
  tile_bytes: int = 0  # score tile; 0: the platform's default

  @property
  def operands(self) -> str:
    """The type that vectors are rounded to; 'auto' that nobody has settled: float32."""
    return 'float32' if self.dtype == 'auto' else self.dtype

  def _check_computing(self):
    one_of(self, 'dtype', ('auto', 'float32', 'bfloat16'))
    one_of(self, 'exchange', ('auto', 'gather', 'ring'))
    one_of(self, 'impl', IMPLS)
    at_least(self, tile_bytes=0)
    require(self, 'dtype', self.impl != 'gpu' or self.dtype == 'bfloat16',
            "bfloat16 with impl='gpu', which multiplies nothing else")


@dataclass(kw_only=True)
class LossConfig(LossComputing):
  """A training loss: which pairs count as negatives, and how; LossComputing's fields.

  name: info_nce compares a query's positive with everything that is not. By a
    teacher's scores of a row's own passages: distill_kl (their distribution),
    margin_mse (their margins), pair_mse (themselves), distill_stable (their order,
    against in-batch negatives too). By the scores of pairs: cosent, angle. By a
    teacher's vectors: embed_match (themselves), distill_batch (the distribution over
    in-batch candidates). gor spreads vectors, beside a loss that teaches (plus).
  similarity: cosine makes rows of length 1 of whatever the model gives; dot takes it
    as it is.
  terms: the sums a row's positive competes with. qd: its query against passages
    (InfoNCE). qq: against other queries. dd: its positive against other
    positives. dq: its positive against other queries. GTE and Qwen3 use all.
  options: (name, value) pairs of what the loss reads beside these fields.
  plus: losses that are added, each times its own weight. They learn no temperature.
  symmetric: mean of the query's loss and its positive's (CLIP); with qd alone.
  """

  name: str = 'info_nce'  # a name in losses.LOSSES
  weight: float = 1.0  # the loss is multiplied by it
  similarity: str = 'cosine'  # cosine | dot
  temperature: float = 0.05  # divides the scores
  learn_temperature: bool = False  # start there, and train it
  max_scale: float = 100.0  # a learned 1/temperature stays in [1, max_scale]
  teacher_temperature: float = 1.0  # divides a teacher's scores

  ## Which pairs
  terms: tuple[str, ...] = ('qd',)
  symmetric: bool = False
  # batch: as each row's in_batch says | own (or hard): its own hard negatives alone.
  negatives: str = 'batch'
  same_group: bool = False  # in-batch negatives from the row's own dataset only
  margin: float = float('inf')  # drop s > s_positive + margin
  # Drop s > relative_margin * s_positive; of a negative s_positive: what lies above
  # it by more than the same share of its size (below 1: less far below it).
  relative_margin: float = float('inf')

  ## How they count
  decoupled: bool = False  # leave the positive out of the denominator
  focal_gamma: float = 0.0  # weight (1 - p)^gamma
  focal_detach: bool = True  # no gradient through the weight
  hardness: float = 0.0  # weight exp(hardness * stop_gradient(s)) of a negative
  hardness_on: str = 'own'  # own | shared | all negatives
  widths: tuple[int, ...] = ()  # Matryoshka prefixes; (): the whole vector only
  width_weights: tuple[float, ...] = ()  # (): 1 each
  options: tuple[tuple[str, object], ...] = ()
  plus: list['LossConfig'] = field(default_factory=list)

  def option(self, name: str) -> Any:
    """The value of an option that the loss reads."""
    return dict(self.options)[name]

  @property
  def highest_scale(self) -> float:
    """The largest 1/temperature that the common temperature may have."""
    return self.max_scale if self.learn_temperature else 1 / self.temperature

  @property
  def shift_is_constant(self) -> bool:
    """Whether `bounded` holds: asked for, and every logit in the range of float32."""
    return self.bounded and self.highest_scale + self.hardness <= _BOUNDED_SCALE * (
        1 + 1e-6)

  @property
  def shift_is_safe(self) -> bool:
    """Whether a constant shift loses no logit of unit vectors, whatever they are."""
    return (self.similarity == 'cosine'
            and self.highest_scale + self.hardness <= _SAFE_SCALE)

  def of_model(self, dtype: str) -> 'LossConfig':
    """With the dtype that 'auto' means for a model that computes in `dtype`."""
    kind = {'auto': 'bfloat16' if dtype == 'bfloat16' else 'float32'}
    return replace(self, dtype=kind.get(self.dtype, self.dtype),
                   plus=[part.of_model(dtype) for part in self.plus])

  def notes(self, row_temperatures: bool = False) -> list[str]:
    """What is asked for and has no effect, or another one, in words.

    row_temperatures: some rows have temperatures of their own.
    """
    out = []
    if self.bounded and (row_temperatures or not self.shift_is_constant):
      why = ('rows have temperatures of their own' if row_temperatures else
             f'1/temperature + hardness is {self.highest_scale + self.hardness:g} or '
             f'less, and float32 ends at {_BOUNDED_SCALE:g}')
      out.append(f'loss.bounded: {why}; running maxima are kept instead')
    for name, meant, needs in (
        ('hardness_on', self.hardness, 'hardness'),
        ('focal_detach', self.focal_gamma, 'focal_gamma'),
        ('max_scale', self.learn_temperature, 'learn_temperature'),
        ('teacher_temperature', self.name in _READ_SCORES,
         f'name= {", ".join(_READ_SCORES)}'),
        ('same_group', self.negatives == 'batch', "negatives='batch'")):
      if getattr(self, name) != _default(name) and not meant:
        out.append(f'loss.{name}={getattr(self, name)!r} means nothing without {needs}')
    if self.hardness and self.negatives == 'own' and self.hardness_on == 'shared':
      out.append("loss.hardness on 'shared' negatives: negatives='own' shares none")
    return out + [f'loss.plus[{i}]{note.removeprefix("loss")}'
                  for i, part in enumerate(self.plus)
                  for note in part.notes(row_temperatures)]

  def __post_init__(self):
    typed(self)
    self.negatives = _ALSO.get(self.negatives, self.negatives)
    self.hardness_on = _ALSO.get(self.hardness_on, self.hardness_on)
    require(self, 'name', bool(self.name), 'the name of a loss')
    one_of(self, 'similarity', ('cosine', 'dot'))
    one_of(self, 'negatives', ('batch', 'own'))
    one_of(self, 'hardness_on', ('own', 'shared', 'all'))
    self._check_computing()
    self._check_temperatures()
    self._check_negatives()
    self._check_weights()
    if self.similarity == 'dot':
      self._only('similarity', bounded='vectors of length 1',
                 margin='cosines', relative_margin='cosines')
    if self.name in _UNREAD:
      why, fields = _UNREAD[self.name]
      self._only('name', **dict.fromkeys(fields, why))
    if self.name == 'pair_mse' and dict(self.options).get('head'):
      self._only('options', **dict.fromkeys(
          ('temperature', 'learn_temperature', 'widths'), 'a head of its own'))
    require(self, 'similarity', self.name != 'angle' or self.similarity == 'cosine',
            "'cosine': angles are of vectors of length 1")
    self._check_plus()

  def _only(self, field, **unmeant: str):
    """Refuses fields that are not at their defaults, and says what `field` is over."""
    for name, why in unmeant.items():
      if getattr(self, name) != _default(name):
        raise ValueError(
            f'LossConfig.{name} is {getattr(self, name)!r} with '
            f'{field}={getattr(self, field)!r}, but '
            + (f'it is over {why}' if field == 'similarity'
               else f'that loss is over {why}') + '; leave it out')

  def _check_temperatures(self):
    low, high = TEMPERATURES
    require(self, 'temperature', low <= self.temperature <= high,
            f'{low:g} to {high:g}; it divides the scores, and 0.01 to 0.1 is usual')
    between(self, low, high, 'teacher_temperature')
    require(self, 'max_scale', 1 < self.max_scale <= _MOST,
            f'more than 1, {_MOST:g} at most')
    lowest = 1 / self.max_scale
    if self.learn_temperature and not lowest * (1 - 1e-6) <= self.temperature <= 1:
      raise ValueError(
          f'LossConfig.temperature is {self.temperature}, where a learned one starts; '
          f'with max_scale={self.max_scale:g} it stays in [{lowest:g}, 1]: start it '
          'there, or raise max_scale')

  def _check_negatives(self):
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
    require(self, 'margin', self.margin > -math.inf, 'a number, or inf for no limit')
    require(self, 'relative_margin', self.relative_margin > 0,
            'a share above 0 (0.95 is usual), or inf for no limit')

  def _check_plus(self):
    names = [self.name, *(part.name for part in self.plus)]
    if twice := sorted({n for n in names if names.count(n) > 1}):
      raise ValueError(f'LossConfig.plus has {twice[0]!r} twice with the loss itself; '
                       'metrics are kept by name, give each loss once')
    for part in self.plus:
      require(part, 'plus', not part.plus, '(): what is added adds nothing more')
      require(part, 'learn_temperature', not part.learn_temperature,
              'False in LossConfig.plus: the first loss alone learns a temperature')

  def _check_weights(self):
    between(self, 0, _MOST, 'focal_gamma', 'hardness')
    require(self, 'weight', 0 < self.weight <= _MOST, f'above 0, {_MOST:g} at most')
    require(self, 'widths', all(w > 0 for w in self.widths)
            and len(set(self.widths)) == len(self.widths), 'widths above 0, each once')
    if self.width_weights and len(self.width_weights) != len(self.widths):
      raise ValueError(
          f'LossConfig.width_weights has {len(self.width_weights)} entries for '
          f'{len(self.widths)} widths')
    require(self, 'width_weights', not self.width_weights or (
        all(0 <= w < math.inf for w in self.width_weights)
        and 0 < sum(self.width_weights) < math.inf),
        'a finite number of 0 or more each, not all of them 0')


def _default(name: str):
  return LossConfig.__dataclass_fields__[name].default
