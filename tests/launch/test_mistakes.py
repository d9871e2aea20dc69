"""Common mistakes at every command: one line with the remedy, and the exit code."""

import builtins
import json
import pathlib
import signal
import socket

import pytest

from jaxembed import config
from launch import commands, errors, remedies
from tests.helpers import launcher, tiny_run
from tests.helpers.tiers import thorough

RECIPE = '--config=quickstart'
SOURCE = ("from jaxembed import config\n\n\ndef get_config():\n  return config.Config("
          "model=config.ModelSpec(source='m'), stages=[config.StageConfig({})])\n")

# What is typed, what is said, the exit code. FOLDER is a folder with the files below.
COMMAND_LINES = [
    (['train'], '--config is missing; jaxembed train --help', 2),
    (['train', RECIPE], '--workdir is missing', 2),
    (['train', RECIPE, '--workdri=w'], 'Did you mean: workdir', 2),
    (['train', RECIPE, '--workdir=w', 'more'], 'more: every argument has the form', 2),
    (['train', '--config=nope.py', '--workdir=w'], 'such file, and no such recipe', 2),
    (['train', '--config=quikstart', '--workdir=w'], "did you mean 'quickstart'?", 2),
    (['train', '--config=nope.json', '--workdir=w'], 'nope.json', 2),
    (['train', RECIPE, '--workdir=w', '--config.stages[0].optim.peek_lr=1'],
     "did you mean 'peak_lr'?", 2),
    (['train', RECIPE, '--workdir=w', '--config.stages[0].steps=few'],
     "--config.stages[0].steps is 'few'; give a whole number", 2),
    (['train', RECIPE, '--workdir=w', '--config.stages[7].steps=1'],
     'no such entry', 2),
    (['train', '--config=syntax.py', '--workdir=w'], 'syntax.py:1: ', 2),
    (['train', '--config=key.py', '--workdir=w'], "did you mean 'steps'?", 2),
    (['train', '--config=empty.py', '--workdir=w'], 'has no get_config()', 2),
    (['train', '--config=dict.py', '--workdir=w'], 'let it return a', 2),
    (['train', '--config=raises.py', '--workdir=w'], 'raises.py:2: ZeroDivisionErr', 2),
    (['train', '--config=imports.py', '--workdir=w'], 'pip install', 2),
    (['train', RECIPE, '--workdir=w', '--config.log_every=-1'], 'Config.log_every', 1),
    (['train', RECIPE, '--workdir=file'], 'choose another --workdir', 1),
    (['train', RECIPE, '--workdir=taken'], 'choose another --workdir', 1),
    (['train', RECIPE, '--workdir=w', '--profile_steps=5'], 'give A:B', 2),
    (['train', RECIPE, '--workdir=w', '--coordinator=here:1'], '--num_processes', 2),
    (['train', RECIPE, '--workdir=w', '--process_id=0'], '--coordinator=HOST:PORT', 2),
    (['train', RECIPE, '--workdir=w', '--coordinator=here', '--num_processes=1',
      '--process_id=0'], 'give HOST:PORT', 2),
    (['evaluate'], '--model is missing', 2),
    (['evaluate', '--model=m', '--data=d', '--task=retreival'],
     "--task is 'retreival'; did you mean 'retrieval'?", 2),
    (['evaluate', '--model=m', '--data=d', '--task=sts', '--out=taken.json'],
     'pass --overwrite', 1),
    (['evaluate', '--model=m', '--data=d', '--task=sts', '--out=file/s.json'],
     'choose another path', 1),
    (['evaluate', '--model=m', '--data=d', '--task=sts', '--batch_size=0'],
     'give 1 or more', 1),
    (['evaluate', '--model=./m', '--data=d', '--task=sts'], 'and no hub id', 1),
    (['encode', '--model=./m', '--input=i.txt', '--output=o.npy'], 'and no hub id', 1),
    (['encode', '--model=m', '--input=i', '--output=o.npy', '--step=x'],
     "or 'best'", 2),
    (['convert', '--source=./m', '--target=t'], 'and no hub id', 1),
    (['convert', '--source=m', '--target=t', '--format=onx'], '--format is', 2),
    (['average', '--workdir=taken', '--target=t', '--last=0'], '--last', 2),
    (['average', '--workdir=taken', '--target=taken'], 'choose another', 1),
    (['convert', '--source=m', '--target=t', '--push=name'], 'give org/name', 1),
    (['convert', '--source=m', '--target=t', '--results=taken.json'], 'taken.json', 1),
    (['merge', '--source=./m', '--target=t'], 'and no hub id', 1),
    (['merge', '--source=m', '--target=t', '--method=tie'], "did you mean 'ties'", 2),
    (['cut', '--source=./m', '--target=t', '--layers=2'], 'and no hub id', 1),
    (['vocabulary', '--source=./m', '--target=t'], 'and no hub id', 1),
    (['plain', '--source=m', '--target=t'], '--texts is missing', 2),
    (['plan', RECIPE], 'give --topology=CHIP:SHAPE', 2),
    (['plan', RECIPE, '--topology=h100:1'], '--target_config', 2),
    (['plan', RECIPE, '--topology=v9:2x2'], 'CHIP:SHAPE', 1),
    (['bench', '--suite=encod'], "did you mean 'encode'?", 2),
    (['quickstart', '--config.stages[0].stpes=1'], "did you mean 'steps'?", 2),
    (['demo', '--model=./m'], 'and no hub id', 1),
    (['demo', '--top=0'], '--top', 2),
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  for name, text in {
      'file': '', 'taken.json': '', 'empty.py': '', 'syntax.py': 'def get_config(:\n',
      'dict.py': 'def get_config():\n  return {}\n', 'key.py': SOURCE.format('stpes=1'),
      'raises.py': 'def get_config():\n  return 1 / 0\n',
      'imports.py': 'import no_such_package\n'}.items():
    (tmp_path / name).write_text(text)
  (tmp_path / 'taken' / 'model').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize('argv,said,code', COMMAND_LINES,
                         ids=lambda x: ' '.join(x) if isinstance(x, list) else None)
def test_a_mistake_is_one_line_with_a_remedy(folder, argv, said, code):
  before = sorted(folder.rglob('*'))
  ended = launcher.run(*argv)
  assert said in ended.error and ended.code == code
  assert sorted(p for p in folder.rglob('*') if '__pycache__' not in str(p)) == before


@pytest.mark.parametrize('name', commands.names())
def test_help_begins_with_an_example_and_the_flags_it_uses(name):
  ended = launcher.run(name, '--help')
  lines = ended.out.splitlines()
  assert ended.code == 0 and not ended.err
  assert any(line.startswith(f'  jaxembed {name}') for line in lines[:5])
  flags = [s.split()[0].split('=')[0] for s in lines[lines.index('Flags') + 1:]
           if s.startswith('  --')]
  needed = {'train': ['--config', '--workdir'], 'convert': ['--source', '--target'],
            'evaluate': ['--model', '--task', '--data'],
            'encode': ['--model', '--input', '--output']}.get(name, [])
  assert flags[:len(needed)] == needed


def test_fields_are_described():
  whole = launcher.run('train', '--describe').out
  assert '--config.stages[0].data.sources[0].path=' in whole
  part = launcher.run('train', '--describe', 'stages.optim.peak_lr').out
  assert part.splitlines()[0].startswith('  --config.stages[0].optim.peak_lr=2e-05')
  assert len(part.splitlines()) == 2
  wrong = launcher.run('train', '--describe=stages.optm')
  assert "did you mean 'optim'?" in wrong.error and wrong.code == 2


def test_a_port_in_use_is_told_before_any_work(folder):
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    port = taken.getsockname()[1]
    ended = launcher.run('train', RECIPE, '--workdir=w', '--num_processes=1',
                         f'--coordinator=localhost:{port}', '--process_id=0')
  assert f'port {port}' in ended.error and 'choose another port' in ended.error
  assert ended.code == 1


@pytest.mark.parametrize('signum,code', [
    (signal.SIGINT, 130), thorough(signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_in_flight(tmp_path, minilm, monkeypatch, signum, code):
  cfg = tiny_run.in_folder(tmp_path, minilm, steps=6)
  (tmp_path / 'run.json').write_text(json.dumps(config.to_dict(cfg)))
  monkeypatch.setattr(
      'launch.wandb_log.on_metrics', lambda *_: lambda step, _: step == 2 and
      signal.raise_signal(signum))
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    ended = launcher.run('train', f'--config={tmp_path}/run.json',
                         f'--workdir={tmp_path}/run')
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert ended.code == code
  assert 'which is saved' in ended.err
  assert 'the same command continues' in ended.out
  stopped = max(int(p.name) for p in (tmp_path / 'run/checkpoints').iterdir())
  assert 2 <= stopped < 6


def test_ctrl_c_elsewhere_is_one_line(monkeypatch):
  monkeypatch.setattr('launch.standard_library.functions', _interrupted)
  monkeypatch.setattr('jaxembed.embedder.Embedder.load', _interrupted)
  ended = launcher.run('demo')
  assert ended.code == 130 and 'Ctrl-C' in ended.error


def _interrupted(*_, **__):
  raise KeyboardInterrupt


def test_a_warning_of_ours_is_one_line_and_one_of_a_library_is_asked_for(
    monkeypatch, tmp_path):
  library = compile("import warnings\nwarnings.warn('old')", 'site/lib.py', 'exec')
  ours = compile("import warnings\nwarnings.warn('two\\nlines')",
                 errors.__file__, 'exec')

  def write(_):
    exec(library, {})
    exec(ours, {})
    return 'done'

  monkeypatch.setattr('jaxembed.train.report.write', write)
  ended = launcher.run('report', f'--workdir={tmp_path}')
  assert ended.out == 'done\n' and ended.err == 'note: two lines\n'


@pytest.mark.parametrize('module,install', [
    ('sklearn', 'scikit-learn'), ('torch.nn', 'torch'), ('some_thing', 'some-thing')])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, install):
  told = remedies.of_package(module)
  assert install.split('.')[0] in told and 'pip install' in told
  monkeypatch.setattr(
      'importlib.metadata.requires', lambda _: [
          'numpy>=2', 'torch==2.13.0; extra == "torch"', 'torch; extra == "test"',
          "scikit-learn>=1; extra == 'evaluation'"])
  extra = {'sklearn': 'evaluation', 'torch.nn': 'torch'}.get(module)
  assert remedies.of_package(module).endswith(
      f"pip install '{f'jaxembed[{extra}]' if extra else install}'")


@pytest.mark.parametrize('error,said', [
    (RuntimeError("Unable to initialize backend 'cuda': none"), 'JAX_PLATFORMS=cpu'),
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory for 9 bytes'), 'batch_size'),
    (RuntimeError('DEADLINE_EXCEEDED: Barrier timed out'), '--process_id'),
    (MemoryError('9 bytes'), 'too little memory'),
    (builtins.PermissionError(13, 'Permission denied', 'x'), 'x: permission denied')])
def test_errors_of_machines_have_remedies(error, said):
  assert said in errors.explained(error)


def test_a_fault_of_ours_keeps_its_traceback():
  assert errors.explained(RuntimeError('a step went wrong')) is None
