"""Changes that an experiment asks of its source model, applied or refused by name.

One rule for every field of config.ModelSpec. Asked for and different from the source,
it is applied (`changes` says how) or refused with a remedy; not asked, the source's own
value stays.
"""

import dataclasses

from jaxembed.config import (
  LoraConfig,
  ModelConfig,
  ModelSpec,
  PoolingConfig,
  bidirectional,
)
from jaxembed.models import encoder, length, lora, training_free
from jaxembed.pooling import heads

# What the tokenizer reads as the prepended token (ModelSpec.prepend).
PLACEHOLDER = '<PST>'
# Of PoolingConfig, under the same name.
_HEAD = ('reads', 'latents', 'heads', 'head_dim', 'ff_mult')
_LORA = {'lora_rank': 'rank', 'lora_alpha': 'alpha', 'lora_dropout': 'dropout',
         'lora_targets': 'targets'}
# Of ModelConfig, under the same name; '' and 0 ask for nothing.
PLAIN = ('attention', 'max_length', 'dtype', 'precision', 'remat', 'attention_impl',
         'prompt_pooling', 'eos_text')


def apply(model: ModelConfig, spec: ModelSpec) -> ModelConfig:
  """`model` with everything that `spec` asks for.

  Raises:
    ValueError: a field that cannot be applied to this model; it is named, with what
      to do instead.
  """
  plain = {name: value for name in PLAIN if (value := getattr(spec, name))}
  plain['normalize'] = spec.normalize is not False
  if spec.length is not None:
    model = length.configure(model, spec.length)
  _check_length(model, spec)
  if spec.attention == 'bidirectional' and not spec.keep_window:
    model = bidirectional(model)
  wanted = dataclasses.replace(
      model, pooling=_pooling(model, spec), lora=_lora(model, spec), **plain)
  if spec.prepend is not None:
    wanted = _prepended(wanted, spec.prepend)
  if spec.append_token and wanted.eos_text:
    raise ValueError(f'config.model.append_token={spec.append_token!r}, and behind '
                     f'every text the model has eos_text={wanted.eos_text!r} as well; '
                     'leave one out')
  return wanted


def changes(model: ModelConfig, spec: ModelSpec) -> list[str]:
  """What `apply` makes different from the source, one line each."""
  wanted, told = apply(model, spec), []
  if needs_new_head(model, wanted):
    told.append(f'a new head is drawn, {_described(wanted.pooling)}; the source has '
                f'{_described(model.pooling)}')
  elif _shape(wanted.pooling, wanted) != _shape(model.pooling, model):
    told.append(f'pooling is {_described(wanted.pooling)}; the source has '
                f'{_described(model.pooling)}')
  if unused := [name for name in _asked(spec)
                if name not in heads.fields(wanted.pooling)]:
    told.append(f'{wanted.pooling.kind} pooling has no {" and no ".join(unused)}: '
                'what is asked of them changes nothing')
  if wanted.length is not None and wanted.length != model.length:
    told.append(f'texts of up to {wanted.length.target} tokens are read by the length '
                f'method {wanted.length.method!r}; the source reads '
                f'{wanted.length.original}')
  if wanted.prepend is not None and wanted.prepend != model.prepend:
    told.append(f'{PLACEHOLDER} is put before every text, a new token whose state is '
                f'the last one\'s before the layers {wanted.prepend.start} to '
                f'{wanted.prepend.stop - 1}')
  if wanted.backbone.window != model.backbone.window:
    told.append('made bidirectional, every token sees the whole text: the window of '
                f'{model.backbone.window} tokens is left out (keep it with '
                'config.model.keep_window=True)')
  elif spec.keep_window and (spec.attention != 'bidirectional'
                             or bidirectional(model).backbone == model.backbone):
    told.append('keep_window changes nothing: no window would be left out')
  if wanted.lora is not None and wanted.lora != model.lora:
    told.append(f'new adapters of rank {wanted.lora.rank} are drawn'
                if model.lora is None else 'the adapters go on with dropout '
                f'{wanted.lora.dropout:g}, not {model.lora.dropout:g}')
  if wanted.normalize != model.normalize:
    told.append('vectors are given length 1, as losses compare by cosine; the source '
                'leaves them as they are (keep that with config.model.normalize=False)'
                if wanted.normalize else
                'vectors keep their lengths; the source gives them length 1')
  told += [f'{name} is {now!r}; the source has {was!r}' for name in PLAIN
           if (now := getattr(wanted, name)) != (was := getattr(model, name))]
  if spec.pooling_impl and wanted.pooling.kind != 'latent_attention':
    told.append(f'{wanted.pooling.kind} pooling is computed in one way: '
                f'pooling_impl={spec.pooling_impl!r} changes nothing')
  elif wanted.pooling.impl != model.pooling.impl:
    told.append(f'pooling is computed by {wanted.pooling.impl!r}; the source has '
                f'{model.pooling.impl!r}')
  return told


def needs_new_head(model: ModelConfig, wanted: ModelConfig) -> bool:
  """Whether the parameters of the wanted pooling are not those of `model`."""
  if not heads.has_parameters(wanted.pooling):
    return False
  return _shape(wanted.pooling, wanted) != _shape(model.pooling, model)


def _shape(pooling: PoolingConfig, model: ModelConfig):
  found = heads.settings(pooling)
  if 'head_dim' in found:  # one as wide as the backbone may say so in two ways
    found['head_dim'] = pooling.head_dim or model.backbone.width
  return pooling.kind, found


def _described(pooling: PoolingConfig) -> str:
  shape = ', '.join(f'{name}={x}' for name, x in heads.settings(pooling).items())
  return f'{pooling.kind} ({shape})' if shape else pooling.kind


def _asked(spec: ModelSpec) -> dict:
  return {name: value for name in _HEAD
          if (value := getattr(spec, name)) is not None}


def _pooling(model: ModelConfig, spec: ModelSpec) -> PoolingConfig:
  now, asked = model.pooling, _asked(spec)
  if isinstance(spec.pooling, PoolingConfig):
    wanted = dataclasses.replace(spec.pooling, **asked)
  elif spec.pooling and spec.pooling != now.kind:
    wanted = PoolingConfig(kind=str(spec.pooling), **asked)
  else:
    wanted = dataclasses.replace(now, **asked)
  unused = set(asked) - set(heads.fields(wanted))
  if unused and not spec.pooling:
    name = sorted(unused)[0]
    raise ValueError(
        f'config.model.{name}={asked[name]!r}, but the source has {now.kind} pooling, '
        f'which knows no {name}; set config.model.pooling=latent_attention for a new '
        'head, or leave it out')
  if _shape(wanted, model) == _shape(now, model):
    wanted = dataclasses.replace(now, impl=wanted.impl)
  return dataclasses.replace(wanted, impl=spec.pooling_impl or wanted.impl)


def _lora(model: ModelConfig, spec: ModelSpec) -> LoraConfig | None:
  now = model.lora
  asked = {_LORA[name]: value for name in _LORA
           if (value := getattr(spec, name)) not in (None, '')}
  if not asked.get('rank'):  # 0 asks for no new adapters
    asked.pop('rank', None)
  if spec.lora is None and now is None and 'rank' not in asked:
    if asked:
      name = next(n for n in _LORA if _LORA[n] in asked)
      raise ValueError(f'config.model.{name}={getattr(spec, name)!r}, but there are no '
                       'adapters; set config.model.lora_rank, or leave it out')
    return None
  wanted = dataclasses.replace(spec.lora or now or LoraConfig(), **asked)
  if now is None:
    return wanted
  for name in ('rank', 'alpha', 'rslora', 'targets'):
    was, asks = getattr(now, name), getattr(wanted, name)
    if was != asks and not (name == 'targets' and _same_targets(model, was, asks)):
      raise ValueError(
          f'config.model asks for LoRA with {name}={asks!r}, and the source has '
          f'adapters with {name}={was!r}; leave it out to train those, or merge them '
          'into the weights first (launch.convert) and start from what that writes')
  return dataclasses.replace(now, dropout=wanted.dropout)


def _same_targets(model: ModelConfig, *patterns: str) -> bool:
  plain = encoder.param_shapes(dataclasses.replace(model, lora=None))
  first, second = (lora.targets(plain, p) for p in patterns)
  return first == second


def _prepended(model: ModelConfig, band: tuple[int, int]) -> ModelConfig:
  had = model.prepend
  if had is None:
    return training_free.with_band(model, *band, text=PLACEHOLDER)
  if (had.start, had.stop) != tuple(band):
    raise ValueError(f'config.model.prepend={tuple(band)}, but the source has a '
                     f'prepended token in the layers {(had.start, had.stop)}; leave it '
                     'out')
  return model


def _check_length(model: ModelConfig, spec: ModelSpec) -> None:
  table = length.longest(model)
  if table is not None and spec.max_length > table:
    raise ValueError(f'config.model.max_length={spec.max_length}, but the source has '
                     f'learned positions for {table} tokens; give at most that, or a '
                     'length method (config.model.length)')
