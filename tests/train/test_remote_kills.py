"""A run on an S3 server behind faults, killed thirty times: the bits of a local run."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from jaxembed import config, workdir
from jaxembed.files import place
from tests.helpers import lives, object_servers, tiny_run
from tests.helpers.lives import Life

pytest.importorskip('obstore')
STEPS, ROWS, KILLS = 200, 37, 30


@pytest.mark.slow
def test_thirty_kills_on_a_faulty_store_change_nothing(tmp_path, minilm, monkeypatch):
  cfg = tiny_run.in_folder(tmp_path, minilm, ROWS, steps=STEPS)
  cfg.checkpoint = config.CheckpointConfig(every=3)
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(config.to_dict(cfg)))
  whole, log = tmp_path / 'whole', tmp_path / 'killed.log'
  assert Life(file, whole, tmp_path / 'whole.log').end() == 0

  monkeypatch.setattr(place, 'HOME', str(tmp_path / '.cache/jaxembed/remote'))
  url = 's3://bucket/runs/killed'
  here = place.staging(url)
  with object_servers.s3() as server:
    faults = object_servers.Faults(server, refuse=0.05, wait=0.05, cut=0.02)
    environment = object_servers.s3_environment(faults.port) | {'HOME': str(tmp_path)}
    for name, value in environment.items():
      if name != 'HOME':
        monkeypatch.setenv(name, value)
    begin = lambda: Life(file, url, log, here=here, environment=environment)
    rng, begun, unsent, moved, sent = (
        np.random.default_rng(0), time.monotonic(), 0, 0, False)
    for i in range(KILLS):
      life = begin()
      life.until_step(6 * (i + 1) + int(rng.integers(5)))
      if i % 2:
        life.until(life.saving)
      time.sleep(rng.uniform(0, 1.0))
      assert life.end(signal.SIGKILL) == -signal.SIGKILL, life.output()
      there = workdir.steps(url)
      local = {int(p.name) for p in (here / 'checkpoints').glob('*')
               if p.name.isdigit()}
      unsent += bool(local - set(there))
      assert there or not sent  # what was sent stays until something newer is
      sent = bool(there)
      if i % 5 == 4:  # the next life is on another machine
        shutil.rmtree(tmp_path / '.cache/jaxembed/remote')
        moved += 1
    last = begin()
    assert last.end() == 0, last.output()
    print(f'{KILLS} kills in {time.monotonic() - begun:.0f} s, {unsent} of them left a '
          f'checkpoint unsent, {moved} moved; faults: {faults.counts}')
    assert unsent and min(faults.counts.values()) > 0
    lives.assert_same(STEPS, ROWS, (tmp_path / 'whole.log', log), (whole, url))
    faults.close()
