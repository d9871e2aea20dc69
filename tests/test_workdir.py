"""A run's folder belongs to one configuration."""

import copy
import json

import pytest

from jaxembed import config, workdir


def _config(**kw):
  return config.Config(model=config.ModelSpec(source='somewhere'), **kw)


def test_the_same_configuration_claims_it_again(tmp_path):
  workdir.claim(tmp_path / 'run', _config())
  workdir.claim(tmp_path / 'run', _config(log_every=99))


def test_another_configuration_is_refused_by_field(tmp_path):
  workdir.claim(tmp_path, _config())
  before = (tmp_path / 'config.json').read_bytes()
  other = copy.deepcopy(_config())
  other.stages[0].optim.peak_lr = 0.5
  with pytest.raises(
      ValueError, match=r'stages\[0\]\.optim\.peak_lr was 2e-05, is 0.5'):
    workdir.claim(tmp_path, other)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_folder_from_before_a_field_existed_is_claimed_with_its_default(tmp_path):
  workdir.claim(tmp_path, _config())
  file = tmp_path / 'config.json'
  stored = json.loads(file.read_text())
  assert stored['stages'][0]['optim'].pop('keep_optimizer_state') is False
  file.write_text(json.dumps(stored))
  workdir.claim(tmp_path, _config())
  other = _config()
  other.stages[0].optim.keep_optimizer_state = True
  with pytest.raises(ValueError, match='keep_optimizer_state was False, is True'):
    workdir.claim(tmp_path, other)


def test_a_folder_without_a_model_is_no_workdir(tmp_path):
  with pytest.raises(FileNotFoundError, match='no jaxembed workdir'):
    workdir.load(tmp_path)
