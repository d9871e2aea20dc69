"""Two processes of four devices make the run that one process of eight makes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxembed import config, data, teach
from jaxembed.embedder import Embedder
from jaxembed.train import loop, metrics
from tests.helpers import tiny_run

ROOT = pathlib.Path(__file__).parents[2]


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _teach(cfg: config.Config, folder: pathlib.Path):
  """Gives the run adapters, and a teacher whose vectors two added losses read."""
  model, (source,) = Embedder.load(cfg.model.source), cfg.stages[0].data.sources
  teach.encode(model, teach.texts([data.load(source)]), folder / 'taught')
  source.teacher, cfg.model.lora_rank = (str(folder / 'taught'),), 2
  cfg.stages[0].loss.options = (('guide', 'relative'),)
  cfg.stages[0].loss.plus = [
      config.LossConfig(name='distill_batch'), config.LossConfig(
          name='embed_match', options=(('teacher_width', model.width()),))]


# Processes side by side; in turns, as a torus may lay them; with `tensor` across both,
# so that each has all rows.
@pytest.mark.thorough
@pytest.mark.parametrize('mesh,order,pack,taught', [
    ((8, 1, 1), [], 0, False), ((4, 2, 1), ['interleave'], 0, False),
    ((2, 4, 1), ['interleave'], 64, True), ((4, 1, 2), ['interleave'], 64, False)])
def test_two_processes_equal_one(tmp_path, minilm, mesh, order, pack, taught):
  cfg = tiny_run.in_folder(tmp_path, minilm)
  if taught:
    _teach(cfg, tmp_path)
  cfg.mesh = config.MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
  cfg.stages[0].data.pack = pack
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(config.to_dict(cfg)))
  loop.train(cfg, tmp_path / 'one', log=lambda _: None)

  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=4')
  coordinator = f'localhost:{_free_port()}'
  both = [subprocess.Popen(
      [sys.executable, '-c', tiny_run.SCRIPT, str(file), str(tmp_path / 'two'),
       coordinator, '2', str(i), *order],
      cwd=ROOT, env=os.environ | {'XLA_FLAGS': flags}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
  said = [p.communicate(timeout=900)[0] for p in both]
  assert [p.returncode for p in both] == [0, 0], said[0][-3000:] + said[1][-3000:]

  one, two = (tiny_run.parameters(tmp_path / name) for name in ('one', 'two'))
  assert one.keys() == two.keys()
  for path in one:  # gloo sums in another order than one process does
    np.testing.assert_allclose(two[path], one[path], atol=2e-5, err_msg=path)
  losses = [[r['train/loss'] for r in metrics.read(tmp_path / name)]
            for name in ('one', 'two')]
  assert len(losses[1]) == 6
  np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
