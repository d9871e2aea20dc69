"""Every loss option that cannot be meant is refused, and what means nothing is told."""

import pytest

from jaxembed import config, losses
from jaxembed.kernels import dispatch

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('fields', [
    *({name: value} for name in ('temperature', 'teacher_temperature', 'max_scale')
      for value in (0, -1, NAN, INF, 1e-30, 1e30, True, '0.05')),
    *({name: value} for name in ('hardness', 'focal_gamma')
      for value in (-1.0, NAN, INF, 1e30, None)),
    {'margin': NAN}, {'margin': -INF}, {'relative_margin': NAN}, {'tile_bytes': -1},
    {'relative_margin': 0.0}, {'relative_margin': -1.0}, {'tile_bytes': 0.5},
    {'widths': (8, 8)}, {'widths': (0,)}, {'widths': (8.5,)}, {'widths': 8},
    {'width_weights': (1.0,)}, {'widths': (4, 8), 'width_weights': (0.0, 0.0)},
    {'widths': (4, 8), 'width_weights': (1.0, -1.0)},
    {'widths': (4, 8), 'width_weights': (1.0, NAN)},
    {'widths': (4, 8), 'width_weights': (1.0, INF)},
    {'learn_temperature': True, 'temperature': 0.005},
    {'learn_temperature': True, 'temperature': 2.0},
    {'impl': 'cuda'}, {'impl': 'gpu'}, {'dtype': 'float16'}, {'name': ''},
    {'similarity': 'euclid'}, {'terms': 'qd'}, {'symmetric': 'no'},
    {'name': 'distill_kl', 'hardness': 1.0},
    {'name': 'distill_kl', 'terms': ('qd', 'qq')},
], ids=str)
def test_what_cannot_be_meant_is_refused(fields):
  with pytest.raises(ValueError, match='LossConfig.('
                     + '|'.join([*fields, 'widths', 'dtype']) + ') (is|has)'):
    config.LossConfig(**fields)


def test_a_learned_temperature_starts_where_it_is_asked_to():
  for temperature, top in ((0.005, 200.0), (0.01, 100.0), (1.0, 100.0)):
    cfg = config.LossConfig(learn_temperature=True, temperature=temperature,
                            max_scale=top)
    scale, _ = losses.temperature.scale(cfg, losses.initial_log_scale(cfg))
    assert abs(1 / float(scale) - temperature) < 1e-6 * temperature + 1e-7


@pytest.mark.parametrize('fields, told', [
    ({'hardness_on': 'all'}, 'without hardness'),
    ({'focal_detach': False}, 'without focal_gamma'),
    ({'max_scale': 50.0}, 'without learn_temperature'),
    ({'teacher_temperature': 2.0}, 'without name'),
    ({'negatives': 'own', 'same_group': True}, 'without negatives'),
    ({'bounded': True, 'temperature': 0.005}, 'running maxima are kept')])
def test_what_means_nothing_is_told(fields, told):
  assert [note for note in config.LossConfig(**fields).notes() if told in note]
  assert not config.LossConfig().notes()


def test_names_are_those_that_exist():
  for name in losses.LOSSES:
    assert losses.named(config.LossConfig(name=name)) is losses.LOSSES[name]
  for impl in dispatch.IMPLS:
    config.LossConfig(impl=impl, dtype='bfloat16')
  with pytest.raises(ValueError, match=f'choose one of {", ".join(losses.LOSSES)}'):
    losses.named(config.LossConfig(name='info_nec'))
  with pytest.raises(ValueError, match='LossConfig.name'):
    config.LossConfig(name='')
  with pytest.raises(ValueError, match="'beta', which the loss info_nce does not read"):
    losses.named(config.LossConfig(options=(('beta', 1.0),)))


def test_a_rows_own_negatives_may_be_called_hard_ones():
  own = config.LossConfig(negatives='own', hardness=1.0, hardness_on='own')
  assert config.LossConfig(negatives='hard', hardness=1.0, hardness_on='hard') == own
  assert own.negatives == 'own' == config.from_dict(
      config.LossConfig, {'negatives': 'hard'}).negatives
