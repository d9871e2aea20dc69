"""A plan for hardware that is not here, held against what can be counted."""

import dataclasses
import json
import types as python_types

import jax
import pytest

from jaxembed import config, data, sharding
from jaxembed.models import encoder, presets
from jaxembed.train import chips, cost, forecast, plan

MODEL = config.ModelConfig(backbone=dataclasses.replace(
    presets.tiny('mistral'), dim=128, ff_dim=256, head_dim=32, vocab_size=512))


def _config(**stage):
  return config.Config(
      model=config.ModelSpec(preset='tiny_mistral'),
      stages=[config.StageConfig(**({'data': config.DataConfig(
          batch_size=16, query_lengths=(16,), passage_lengths=(32,))} | stage))])


def test_collectives_are_counted_with_their_bytes():
  hlo = '''
  %a = bf16[4,8]{1,0} all-gather(bf16[1,8]{1,0} %x), dimensions={0}
  %b = (f32[16]{0}, f32[64]{0}) all-gather-start(f32[16]{0} %y)
  %c = f32[64]{0} all-gather-done(%b)
  %d = f32[] all-reduce(f32[] %z), to_apply=%add
  '''
  assert plan.collectives(hlo) == {
      'all-gather': (2, 4 * 8 * 2 + 64 * 4), 'all-reduce': (1, 4)}


@pytest.mark.parametrize('topology', ['v9:2x2', 'v5e', 'v5e:two'])
def test_an_unknown_topology_is_refused(topology):
  with pytest.raises(ValueError, match='give CHIP:SHAPE'):
    plan.devices(topology)


def test_flops_follow_the_work():
  cfg = _config()
  once = cost.step_flops(MODEL, cfg.stages[0])
  again = cost.step_flops(dataclasses.replace(MODEL, remat='full'), cfg.stages[0])
  assert again == pytest.approx(once * 4 / 3)
  longest = max(cfg.stages[0].data.query_lengths[-1],
                cfg.stages[0].data.passage_lengths[-1])
  stage = dataclasses.replace(cfg.stages[0], token_budget=longest)
  assert cost.step_flops(MODEL, stage) == pytest.approx(once * 4 / 3)
  stage = dataclasses.replace(stage, chunk_remat='residual')
  assert once < cost.step_flops(MODEL, stage) < once * 4 / 3
  stage = dataclasses.replace(stage, token_budget=10**9)  # all rows fit: no repetition
  assert cost.step_flops(MODEL, stage) == once
  frozen = dataclasses.replace(MODEL, lora=config.LoraConfig(rank=1))
  assert cost.step_flops(frozen, cfg.stages[0]) < 0.8 * once
  d = cfg.stages[0].data
  lengths = (d.batch_size * [d.query_lengths[-1]] + d.batch_size
             * (1 + d.num_negatives) * [d.passage_lengths[-1]])
  assert once == pytest.approx(3 * cost.forward_flops(MODEL, lengths))


SCORED = {'query': 'q', 'pos': ['p', 'r', 's'], 'pos_scores': [3, 1, 2], 'neg': ['n'],
          'neg_scores': [0]}


@pytest.mark.parametrize('row, rules', [
    ({'query': 'q', 'pos': 'p'}, {}),
    (SCORED, {'temperature': 0.1}),
    (SCORED, {'temperature': 0.1, 'pack': 32})], ids=['plain', 'all', 'packed'])
def test_the_batch_that_is_planned_is_the_one_that_is_trained_on(
    row, rules, tmp_path, minilm):
  path = tmp_path / 'rows.jsonl'
  path.write_text(f'{json.dumps(row)}\n' * 4)
  pack = rules.pop('pack', 0)
  bare = config.SourceConfig(name='s', path=str(path))
  stage = config.StageConfig(data=config.DataConfig(
      sources=[dataclasses.replace(bare, **rules)], batch_size=4, num_negatives=1,
      query_lengths=(16,), passage_lengths=(32,), pack=pack, prefetch=0))
  mixture = data.open_mixture(stage.data)
  batch, _ = next(data.batches(mixture, data.Tokenizer.load(minilm), seed=0))
  planned = plan.largest_batch(stage, sharding.make_mesh((1, 1, 1), jax.devices()[:1]),
                               mixture)
  assert jax.tree.structure(planned) == jax.tree.structure(batch)
  for (path, a), b in zip(jax.tree.leaves_with_path(planned), jax.tree.leaves(batch),
                          strict=True):
    assert a.dtype == b.dtype, path
    if not pack or 'pairing' in str(path):
      assert a.shape == b.shape, path
  other = dataclasses.replace(stage, data=dataclasses.replace(
      stage.data, sources=[bare], num_negatives=1))
  same = plan.program(stage, mixture) == plan.program(other)
  assert same == (row is not SCORED)


def test_a_loss_by_scores_has_them_where_its_data_is_not_here():
  stage = config.StageConfig(loss=config.LossConfig(name='distill_kl'))
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  assert plan.largest_batch(stage, mesh).pairing.score is not None
  assert plan.largest_batch(config.StageConfig(), mesh).pairing.score is None


def test_remedies_save_memory_step_by_step():
  texts = [text for text, *_ in plan.remedies(_config(), 0, MODEL)]
  assert texts[0] == 'config.model.remat=full'
  assert 'token_budget=256' in texts[1]
  assert 'batch_size=8' in texts[-1]
  cfg = _config()
  cfg.stages[0].chunk_remat, cfg.stages[0].token_budget = 'residual', 4096
  first, *_ = found = plan.remedies(cfg, 0, MODEL)
  assert first[2] == MODEL and first[1].stages[0].token_budget == 4096
  for text, changed, _ in found:
    assert 'stages[0].chunk_remat=full' in text
    assert changed.stages[0].chunk_remat == 'full'


@pytest.mark.thorough
def test_the_real_step_compiles_for_a_tpu():
  pytest.importorskip('libtpu', reason='libtpu compiles for TPUs on a CPU host')
  where, chip = plan.devices('v5e:2x2')
  assert len(where) == 4
  cfg, mesh = _config(), sharding.make_mesh((2, -1, 1), where)
  fresh = dataclasses.replace(MODEL, max_length=63)  # its shapes are not yet known
  assert 'tokens fits' in plan.encoding(fresh, mesh, chip)
  found = plan.compile_stage(cfg, 0, MODEL, mesh)
  assert plan.fits(found, chip)
  assert found.collectives['all-gather'][0] > 0
  assert not plan.fits(found, dataclasses.replace(chip, hbm=1e5))


@pytest.mark.parametrize('message,gib', [
    ('E1000: Ran out of memory on HBM, the total memory required for HLO temporaries '
     '(357.87G) exceeds available HBM (15.75G).', 357.87),
    ('Ran out of memory in memory space hbm. Used 26.51G of 15.75G hbm. Exceeded hbm '
     'capacity by 10.76G.', 26.51)])
def test_what_a_compiler_would_need_is_read(message, gib):
  assert plan.needed(f'RESOURCE_EXHAUSTED: {message}') == pytest.approx(gib * 2**30)


def _huge():
  """(config, mesh, chip, plan) of a step far beyond a v5e."""
  where, chip = plan.devices('v5e:2x2')
  cfg = _config(data=config.DataConfig(
      batch_size=2**18, query_lengths=(128,), passage_lengths=(128,)))
  mesh = sharding.make_mesh((4, 1, 1), where)
  return cfg, mesh, chip, plan.compile_stage(cfg, 0, MODEL, mesh)


@pytest.mark.thorough
def test_a_step_that_the_compiler_refuses_has_a_plan():
  pytest.importorskip('libtpu', reason='libtpu compiles for TPUs on a CPU host')
  cfg, _, chip, found = _huge()
  assert found.memory > chip.hbm and not plan.fits(found, chip)
  assert 'program cannot be read' in plan.describe(found, cfg.stages[0], chip, 4)


@pytest.mark.thorough
def test_a_step_that_the_compiler_refuses_has_a_remedy_that_fits():
  pytest.importorskip('libtpu', reason='libtpu compiles for TPUs on a CPU host')
  cfg, mesh, chip, found = _huge()
  said = plan.refusal(found, cfg, 0, MODEL, mesh, chip)
  changed, model = next(changed for text, *changed in plan.remedies(cfg, 0, MODEL)
                        if said.endswith(f'this does: {text}'))
  assert plan.fits(plan.compile_stage(changed, 0, model, mesh), chip)


def test_stages_of_one_program_differ_in_nothing_that_is_compiled():
  base = _config().stages[0]
  source = config.SourceConfig(name='a', path='a.jsonl')

  def program(optim=(), data=(), **stage):
    return plan.program(dataclasses.replace(
        base, optim=dataclasses.replace(base.optim, **dict(optim)),
        data=dataclasses.replace(base.data, **dict(data)), **stage))

  for same in ({'name': 'other', 'steps': 7}, {'optim': {'peak_lr': 1e-3}},
               {'data': {'prefetch': 9, 'query_lengths': (8, 16)}}):
    assert program(**same) == program()
  one = program(data={'sources': [source]})
  other = dataclasses.replace(source, name='b')
  assert one == program(data={'sources': [other]})
  # They share the program's cost, but for a record of each source.
  assert one == program(data={'sources': [source, other]})
  for other in ({'optim': {'clip_norm': 0.0}}, {'optim': {'ema_decay': 0.9}},
                {'optim': {'weight_decay': 0.0}}, {'data': {'batch_size': 32}},
                {'data': {'known_positives': 2}}, {'chunk_remat': 'dots'},
                {'loss': config.LossConfig(widths=(8,))}):
    assert program(**other) != program(), other
  warm = dataclasses.replace(source, temperature=0.1)
  assert program(data={'sources': [warm]}) != one


def test_float32_products_take_the_passes_of_their_precision():
  found = plan.StagePlan('a', 1, 1, 1, 1, 1e18, {})
  least = plan.seconds(found, chips.CHIPS['v5e'], 4)[0]
  for name, chip in chips.CHIPS.items():
    bare, _ = plan.seconds(found, chip, 1)
    exact, _ = plan.seconds(dataclasses.replace(found, precision='highest'), chip, 1)
    assert exact == pytest.approx(bare * (6 if name[0] == 'v' else 989 / 67))
  assert least == pytest.approx(1e18 / 4 / 197e12)


def test_a_batch_has_all_that_its_stage_reads():
  stage = dataclasses.replace(
      _config().stages[0], loss=config.LossConfig(name='distill_kl'))
  stage.data.known_positives = 3
  pairing = plan.largest_batch(stage, sharding.make_mesh((8, 1, 1))).pairing
  assert pairing.score.shape == (16,) and pairing.known.shape == (16, 3)


def test_the_forecast_counts_as_plans_do():
  mesh, cfg = sharding.make_mesh((8, 1, 1)), _config(steps=5)
  params = encoder.param_shapes(MODEL)
  with jax.set_mesh(mesh):
    told = forecast.describe(cfg, MODEL, params, mesh, [
        python_types.SimpleNamespace(sizes=[7])])
  assert f'{5 * cost.step_flops(MODEL, cfg.stages[0], 8):.1e} FLOP' in told
