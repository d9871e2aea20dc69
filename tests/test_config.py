"""The configuration tree: JSON round trip, unknown keys, validation."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from jaxembed import config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem != 'repeat')


def _load(path, *args):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*args)


def test_a_run_can_be_repeated_from_its_folder(tmp_path):
  cfg = _load(ROOT / 'configs' / 'quickstart.py')
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict(cfg)))
  assert _load(ROOT / 'configs' / 'repeat.py', str(tmp_path)) == cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_experiment_is_valid_and_survives_json(path):
  cfg = config.validate(_load(path))
  data = json.loads(json.dumps(config.to_dict(cfg)))
  assert config.from_dict(config.Config, data) == cfg


def test_factors_by_path_survive_json():
  cfg = config.OptimConfig(lr_factors=(('embed', 0.1), ('norm', 2.0)))
  data = json.loads(json.dumps(config.to_dict(cfg)))
  assert config.from_dict(config.OptimConfig, data) == cfg


def test_model_config_is_hashable_and_survives_json():
  model = config.ModelConfig(backbone=config.BackboneConfig(
      family='mistral', vocab_size=10, dim=8, ff_dim=16, num_layers=1, num_heads=2,
      num_kv_heads=1, head_dim=4, max_positions=16))
  assert hash(model) == hash(dataclasses.replace(model))
  data = json.loads(json.dumps(dataclasses.asdict(model)))
  assert config.from_dict(config.ModelConfig, data) == model


def test_unknown_key_names_path_and_nearest_field():
  data = config.to_dict(config.Config())
  data['stages'][0]['optim']['peek_lr'] = 1.0
  with pytest.raises(ValueError, match=r'stages\[0\]\.optim\.peek_lr.*peak_lr'):
    config.from_dict(config.Config, data)


def test_former_names_of_fields_are_understood_wherever_they_stand():
  assert config.field_path('stages[1].optim.carry') == (
      'stages[1].optim.keep_optimizer_state')
  for name in ('stages[0].data.sources[1].min_score', 'model.pooling', 'seed',
               'eval.source.path', 'stages[0].loss.widths'):
    assert config.field_path(name) == name
  data = config.to_dict(config.Config(model=config.ModelSpec(source='somewhere')))
  optim = data['stages'][0]['optim']
  optim['carry'] = not optim.pop('keep_optimizer_state')
  assert config.from_dict(config.Config, data).stages[0].optim.keep_optimizer_state
  assert config.OptimConfig(carry=True).keep_optimizer_state


@pytest.mark.parametrize('path, said', [
    ('model.pooling.latents', 'set config.model.latents'),
    ('model.lora.rank', 'set config.model.lora_rank'),
    ('model.lora.rslora', "in the experiment's file"),
    ('stages[0].loss.temprature', "did you mean 'temperature'"),
    ('stages..optim', 'no field of StageConfig|set as a whole')])
def test_a_flag_of_no_field_says_what_to_set(path, said):
  with pytest.raises(ValueError, match=said):
    config.field_path(path)


def test_the_command_line_sets_fields_by_their_former_names(tmp_path):
  (tmp_path / 'experiment.py').write_text(
      'from jaxembed import config\n\n\ndef get_config():\n'
      "  return config.Config(model=config.ModelSpec(source='a'), stages=[\n"
      "      config.StageConfig(name=n) for n in 'ab'])\n")
  program = ('from ml_collections import config_flags\n'
             'from jaxembed import config\n'
             'from launch import cli\n'
             "found = config_flags.DEFINE_config_file('config')\n"
             'cli.run(lambda: print([s.optim.keep_optimizer_state for s in '
             'config.validate(found.value).stages]))')
  done = subprocess.run(
      [sys.executable, '-c', program, f'--config={tmp_path}/experiment.py',
       '--config.stages[1].optim.carry'], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == '[False, True]', done.stderr


def test_exactly_one_origin_of_weights():
  with pytest.raises(ValueError, match='exactly one'):
    config.validate(config.Config())
  cfg = config.Config(model=config.ModelSpec(source='a', preset='b'))
  with pytest.raises(ValueError, match='exactly one'):
    config.validate(cfg)


def test_unknown_flag_on_the_command_line_is_refused(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'launch.train', '--config=configs/quickstart.py',
       f'--workdir={tmp_path}/run', '--config.stages[0].optim.peek_lr=1'],
      cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode != 0
  assert 'peek_lr' in done.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('change,message', [
    (lambda c: setattr(c.stages[0].optim, 'keep_optimizer_state', True),
     'first stage has none'),
    (lambda c: setattr(c.stages[1].optim, 'name', 'sgd'), "optim.name is 'sgd'"),
    (lambda c: setattr(c.stages[1].optim, 'freeze', 'embed'), 'optim.freeze'),
    (lambda c: setattr(c.stages[1].loss, 'learn_temperature', True), 'both the same')])
def test_an_optimiser_that_cannot_be_carried_is_refused(change, message):
  cfg = config.Config(model=config.ModelSpec(source='here'), stages=[
      config.StageConfig(name=name, optim=config.OptimConfig(
          keep_optimizer_state=name == 'second'))
      for name in ('first', 'second')])
  config.validate(cfg)
  change(cfg)
  with pytest.raises(ValueError, match=message):
    config.validate(cfg)


@pytest.mark.parametrize('pack,budget', [(0, 127), (160, 159)])
def test_a_token_budget_below_one_row_is_refused(pack, budget):
  data = config.DataConfig(pack=pack)  # passages of up to 128 tokens
  with pytest.raises(ValueError, match=f'token_budget is {budget}, less than one row'):
    config.StageConfig(data=data, token_budget=budget)
  config.StageConfig(data=data, token_budget=budget + 1)
