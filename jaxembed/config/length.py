"""Length methods: how a model reads texts longer than those it was trained on."""

from dataclasses import dataclass, fields
from typing import Any

from jaxembed.config.check import IDS, between, one_of, require, typed
from jaxembed.files.folder import short

# Each method, and what it reads beside target, original and temperature.
METHODS: dict[str, tuple[str, ...]] = {
    'none': (),
    'interpolate': ('texts', 'frozen'),
    'ntk': ('texts',),
    'dynamic_ntk': (),
    'yarn': (),
    'theta': ('texts', 'theta'),
    'dprope': ('texts',),
    'grouped': (),
    'recurrent': (),
    'windows': (),
    'self_extend': ('window', 'group'),
    'random_scale': ('scales',),
    'clex': ('scales', 'fixed_scale'),
}


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
  """How texts beyond the length of training are read (models/length.py).

  With s = target / original:

  none: as they are; for `temperature` alone.
  interpolate: rotary positions are divided by s (Chen et al. 2023, arXiv 2306.15595); a
    table of positions gets s times its rows, those between by linear interpolation, of
    which texts up to `original` read every s-th (LongEmbed, arXiv 2404.12096).
  ntk: the rotary base is multiplied by s^(H/(H-2)), so that slow channels stretch by s.
  dynamic_ntk: the same, by each text's own length, from `original` on.
  yarn: Peng et al. 2023, arXiv 2309.00071.
  theta: another rotary base in use; training has the model's own (jina-embeddings-v5).
  dprope: each channel is divided by s or not, whichever leaves its angles distributed
    more as in training (distributional RoPE).
  grouped: of a table: neighbouring tokens share a position, as many as the text needs.
  recurrent: of a table: positions begin anew after `original`.
  windows: parallel windows: `Embedder.encode` averages the vectors of pieces.
  self_extend: exact distances to tokens nearer than `window`, distances by groups of
    `group` to others, before and behind (Jin et al. 2024, arXiv 2401.01325).
  random_scale: in training every text's rotary positions are divided by a random whole
    number and moved by a random offset; in use they are divided by s (E2-LLM,
    arXiv 2401.06951).
  clex: rotary frequencies are the solution of a learned differential equation in the
    scale (Chen et al. 2023, CLEX, arXiv 2310.16450).
  """

  method: str  # one of METHODS
  target: int  # tokens of the longest text in use
  original: int = 0  # tokens of the texts of training; 0: as the model says
  # Which texts are read otherwise: all, so that long and short ones are alike, or
  # those longer than `original` (long), so that others keep their vectors; '': long
  # for tables, all for rotary positions.
  texts: str = ''
  temperature: bool = False  # queries times max(1, ln n / ln original), n tokens
  theta: float = 0.0  # theta: the base in use
  window: int = 0  # self_extend: tokens; 0: an eighth of original
  group: int = 0  # self_extend: tokens; 0: the fewest that reach target
  scales: int = 0  # random_scale, clex: drawn from 1 to it in training; 0: 20, and 16
  fixed_scale: int = 0  # clex: of all texts; 0: by each text's length
  frozen: bool = True  # interpolate: the rows that the table had are not trained

  def __post_init__(self):
    typed(self)
    one_of(self, 'method', tuple(METHODS))
    one_of(self, 'texts', ('', 'all', 'long'))
    between(self, 1, IDS, 'target')
    between(self, 0, IDS, 'original', 'window', 'group')
    between(self, 0, 1024, 'scales', 'fixed_scale')
    require(self, 'theta', 0 <= self.theta < float('inf'), 'a number above 0')
    if self.original:
      require(self, 'target', self.target > self.original,
              f'more than original={self.original}: shorter texts need no method')
    require(self, 'method', self.method != 'none' or self.temperature,
            "a method, or temperature=True with 'none'")
    require(self, 'theta', bool(self.theta) or self.method != 'theta',
            'the rotary base in use')
    for field in fields(self)[3:]:
      value, owner = getattr(self, field.name), [
          m for m, read in METHODS.items() if field.name in read]
      if owner and value != field.default and self.method not in owner:
        raise ValueError(
            f'LengthConfig.{field.name} is {short(value)}, which the method '
            f'{self.method!r} does not read ({", ".join(owner)}); leave it out')


def parse(text: str) -> LengthConfig:
  """LengthConfig from 'METHOD:name=value,...', as flags write it.

  'self_extend:target=2048,window=64,group=9'.  Raises ValueError.
  """
  method, _, rest = text.partition(':')
  known = {f.name: f for f in fields(LengthConfig) if f.name != 'method'}
  values: dict[str, Any] = {}
  for part in filter(None, rest.split(',')):
    name, equals, value = part.partition('=')
    if name not in known or not equals:
      raise ValueError(f'length {text!r}: {part!r} is no setting; write for example '
                       f"'grouped:target=2048', with any of {', '.join(known)}")
    values[name] = _value(known[name].type, value, f'length {text!r}: {part}')
  if 'target' not in values:
    raise ValueError(f'length {text!r} says no target, the tokens of the longest text; '
                     f"write for example '{method or 'grouped'}:target=2048'")
  return LengthConfig(method=method, **values)


def _value(kind: Any, text: str, where: str) -> Any:
  if kind is bool:
    if text.lower() in ('true', 'false'):
      return text.lower() == 'true'
    raise ValueError(f'{where}: write true or false')
  try:
    return kind(text)
  except ValueError:
    raise ValueError(f'{where} is no {"whole " * (kind is int)}number') from None
