"""One run, killed thirty times: the same bits, every record in its turn."""

import json
import signal
import time

import numpy as np
import pytest

from jaxembed import config
from tests.helpers import lives, tiny_run
from tests.helpers.lives import Life

STEPS, ROWS = 200, 37
# When a life ends: in a save, between two moments of training, by a preemption
# notice, or before the first step.
ENDS = ['save'] * 15 + ['step'] * 7 + ['notice'] * 4 + ['start'] * 4

@pytest.mark.thorough
def test_thirty_kills_change_nothing(tmp_path, minilm):
  cfg = tiny_run.in_folder(tmp_path, minilm, ROWS, steps=STEPS)
  cfg.checkpoint = config.CheckpointConfig(every=3)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(config.to_dict(cfg)))
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert Life(file, whole, tmp_path / 'whole.log').end() == 0

  rng, unfinished = np.random.default_rng(0), 0
  for i, how in enumerate(rng.permutation(ENDS)):
    life = Life(file, killed, tmp_path / 'killed.log')
    if how == 'start':
      time.sleep(rng.uniform(0.1, 6))
    else:
      life.until_step(6 * (i + 1) + int(rng.integers(5)))
      if how == 'save':
        life.until(life.saving)
      time.sleep(rng.uniform(0, 0.02 if how == 'save' else 0.2))
    code = life.end(signal.SIGTERM if how == 'notice' else signal.SIGKILL)
    assert code == (0 if how == 'notice' else -signal.SIGKILL), (i, how, code)
    # One that ends early may still see what the life before it left.
    unfinished += how in ('save', 'step') and life.saving()
  assert Life(file, killed, tmp_path / 'killed.log').end() == 0
  print(f'{unfinished} of {len(ENDS)} kills left a save unfinished')
  assert unfinished >= len(ENDS) // 3
  assert not list((killed / 'checkpoints').glob('*.unreadable'))

  lives.assert_same(STEPS, ROWS, (tmp_path / 'whole.log', tmp_path / 'killed.log'),
                    (whole, killed))
