"""Programs compiled for TPUs that are not here, each in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import jax
from jax.experimental import topologies

from jaxembed import sharding

TOPOLOGY = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
# Multiply-adds of a core per cycle in bfloat16: four matrix units of 128 x 128, or two
# of 256 x 256 that take two rows (an instruction of 16 rows every 8 bundles).
RATE = {'v5e': 65536, 'v5p': 65536, 'v6e': 262144}
_FLAGS = ('--xla_jf_dump_to={} --xla_jf_dump_llo_text=true '
          '--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*')


def in_child(module: str, program: Any) -> dict:
  """What `python -m module FOLDER PROGRAM` prints last, read as JSON; of one that
  fails its error, as 'note'.

  The compiler, which takes its flags at the start of a process, leaves the schedules of
  kernels in FOLDER (launch/bundles.py). program: a dataclass, given as JSON.
  """
  with tempfile.TemporaryDirectory() as folder:
    env = {**os.environ, 'LIBTPU_INIT_ARGS': _FLAGS.format(folder),
           'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true', 'JAX_PLATFORMS': 'cpu',
           'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    done = subprocess.run(
        [sys.executable, '-m', module, folder,
         json.dumps(dataclasses.asdict(program))],
        env=env, capture_output=True, text=True, check=False)
  if done.returncode:
    return {'note': next((line for line in reversed(done.stderr.splitlines())
                          if 'Error' in line), 'failed')[:100]}
  return json.loads(done.stdout.splitlines()[-1])


def mesh(chip: str) -> jax.sharding.Mesh:
  """One chip that is described, not present."""
  described = topologies.get_topology_desc(
      platform='tpu', topology_name=TOPOLOGY[chip])
  return sharding.make_mesh((1, 1, 1), described.devices[:1])
