"""What cannot be trained is refused while the folder is still nobody's."""

import pytest

from jaxembed import config
from jaxembed.train import loop
from tests.helpers import tiny_run
from tests.helpers.tiers import after


def _wide(cfg):
  cfg.stages[0].loss = config.LossConfig(widths=(16, 64))


def _long_prompt(cfg):
  cfg.stages[0].data.sources[0].query_prompt = 'one two three four five six: '


def _undivided(cfg):
  cfg.stages[0].data.batch_size = 12


def _unknown_loss(cfg):
  cfg.stages[0].loss = config.LossConfig(name='no such')


def _packed(cfg):
  cfg.stages[0].data.pack, cfg.model.pooling = 16, 'layer_attention'


@pytest.mark.parametrize('change, message', after(2, [
    (_wide, r'stages\[0\]\.loss\.widths is \(16, 64\), and .* 32 dimensions'),
    (_long_prompt, "query_prompt 'one two .* leave no room"),
    (_undivided, 'batch_size=12'), (_unknown_loss, "'no such'"),
    (_packed, 'layer_attention')]))
def test_a_refused_run_leaves_its_folder_free(tmp_path, minilm, change, message):
  cfg = tiny_run.in_folder(tmp_path, minilm)
  change(cfg)
  run = tmp_path / 'run'
  with pytest.raises(ValueError, match=message):
    loop.train(cfg, run, log=lambda _: None)
  kept = [p.name for p in run.iterdir()] if run.exists() else []
  assert not {'manifest.json', 'config.json', 'model'} & set(kept)
