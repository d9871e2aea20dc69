"""Every field of every configuration class takes what makes sense, or says no."""

import dataclasses
import math
import typing

import pytest

from jaxembed import config
from jaxembed.models import presets

NAN, INF = math.nan, math.inf
# What is drawn for a field of each type; a field refuses all but what ACCEPTED lists.
ABSURD = {
    int: ('3', None, 2.5, NAN, True, [1], -7, 0),
    float: ('3', None, NAN, True, [1.0], -7.0, 0.0, INF, -INF),
    str: (3, None, 2.5, True, ['a'], b'a', ''),
    bool: ('no', None, 2, 0.5, []),
}
# A valid one of each class, without which a field cannot be looked at alone.
VALID = {
    config.SourceConfig: dict(name='a', path='a.jsonl'),
    config.Config: dict(model=config.ModelSpec(source='a')),
    config.ModelConfig: dict(backbone=presets.tiny('bert')),
    config.DenseConfig: dict(features=8),
    config.PrependConfig: dict(token_id=1, start=0, stop=1),
    config.LengthConfig: dict(method='ntk', target=64),
}
# Values of ABSURD that mean something: off, none, the source's own, all of them.
ACCEPTED = {
    config.OptimConfig: dict(
        peak_lr={0.0}, head_lr={0.0}, end_lr={0.0}, warmup_steps={0}, b1={0.0},
        b2={0.0}, weight_decay={0.0}, clip_norm={0.0}, ema_decay={0.0},
        max_skipped={0}, freeze={''}),
    config.ModelSpec: dict(
        max_length={0}, lora_rank={0}, **{name: {''} for name in (
            'source', 'fallback', 'preset', 'tokenizer', 'attention', 'dtype',
            'precision', 'remat', 'attention_impl', 'pooling_impl', 'prompt_pooling',
            'eos_text', 'append_token', 'lora_targets')}),
    config.StageConfig: dict(
        remine_every={0}, remine_margin={INF}, token_budget={0}, epochs={0.0},
        name={''}),
    config.MeshConfig: {},
    config.EvalConfig: dict(every={0}, limit={0}, patience={0}),
    config.CheckpointConfig: dict(every={0}, best={''}),
    config.SourceConfig: dict(
        limit={0}, cap={0}, task={''}, weight=set(), min_score={None, -7.0, 0.0},
        num_negatives={0},
        max_negative_score={None}, query_max_length={0}, passage_max_length={0},
        temperature={0.0}, **{name: {''} for name in (
            'kind', 'subset', 'data_dir', 'cache_dir', 'delimiter', 'query_prompt',
            'passage_prompt')}, in_context={0}),
    config.DataConfig: dict(sub_batch={0}, size_temperature={0.0}, num_negatives={0},
                            pack={0}, check_rows={0}, prefetch={0},
                            known_positives={0}),
    config.Config: dict(log_every={0}, seed={0}, name={''}, repeats={''}),
    config.LossConfig: dict(
        hardness={0.0}, focal_gamma={0.0}, tile_bytes={0}, margin={-7.0, 0.0, INF},
        relative_margin={INF}),
    config.ModelConfig: dict(eos_text={''}),
    config.PoolingConfig: dict(head_dim={0}),  # the backbone's width
    config.LoraConfig: dict(dropout={0.0}, targets={''}),
    config.DenseConfig: {},
    config.LengthConfig: dict(theta={0.0}, texts={''}, **{name: {0} for name in (
        'original', 'window', 'group', 'scales', 'fixed_scale')}),
    config.PrependConfig: dict(token_id={0}, start={0}, stop={0}, text={''}),
}


def _plain_fields():
  for cls in ACCEPTED:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
      if hints[field.name] in ABSURD:
        yield pytest.param(cls, field.name, hints[field.name],
                           id=f'{cls.__name__}.{field.name}')


@pytest.mark.parametrize('cls, name, hint', list(_plain_fields()))
def test_an_absurd_value_is_refused_by_name(cls, name, hint):
  for value in ABSURD[hint]:
    accepted = any(value == v and type(value) is type(v)
                   for v in ACCEPTED[cls].get(name, ()))
    attempts = [lambda v=value: cls(**VALID.get(cls, {}) | {name: v})]
    if not cls.__dataclass_params__.frozen:
      # The command line sets leaves of what is there, then validates.
      later = cls(**VALID.get(cls, {}))
      setattr(later, name, value)
      attempts.append(later.__post_init__)
    for attempt in attempts:
      if accepted:
        attempt()
        continue
      with pytest.raises(ValueError, match=rf'\b{name}\b'):
        attempt()
        pytest.fail(f'{cls.__name__}.{name} takes {value!r}')


@pytest.mark.parametrize('cls', ACCEPTED)
def test_structured_fields_are_of_their_type(cls):
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    if hints[field.name] not in ABSURD:
      # A pooling may be given by its name, which the table of poolings checks.
      text = (field.name == 'pooling' and cls is config.ModelSpec) or (
          str in typing.get_args(hints[field.name]))
      absurd = 3 if text else 'text'
      with pytest.raises(ValueError, match=rf'\b{field.name}\b'):
        cls(**VALID.get(cls, {}) | {field.name: absurd})


@pytest.mark.parametrize('options, message', [
    (dict(peak_lr=1e-5, end_lr=2e-5), 'end_lr .* at most the rate'),
    (dict(peak_lr=1e-3, head_lr=1e-5, end_lr=1e-4), 'end_lr .* at most'),
    (dict(freeze='('), 'freeze .* no regular expression'),
    (dict(b1=1.0), r'b1 is 1\.0'),
    (dict(eps=0.0), r'eps is 0\.0'),
    (dict(lr_factors=(('a', NAN),)), 'lr_factors'),
    (dict(lr_factors=(('a', -1.0),)), 'lr_factors'),
    (dict(lr_factors=(('(', 2.0),)), 'no regular expression'),
    (dict(lr_factors=('a', 2.0)), 'lr_factors')])
def test_fields_that_do_not_fit_each_other_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    config.OptimConfig(**options)


def test_patience_needs_evaluations():
  with pytest.raises(ValueError, match='patience .* EvalConfig.every'):
    config.EvalConfig(patience=2)


def test_a_former_name_still_means_the_same():
  assert config.OptimConfig(carry=True) == config.OptimConfig(keep_optimizer_state=True)
  read = config.from_dict(config.OptimConfig, {'carry': True})
  assert read.keep_optimizer_state
  set_later = config.OptimConfig()
  set_later.carry = True
  set_later.__post_init__()
  assert set_later == read and 'carry' not in config.to_dict(read)
