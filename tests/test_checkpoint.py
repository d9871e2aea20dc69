"""Checkpoints come back bit for bit, on any mesh, or say why not."""

import dataclasses
import pathlib
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import optax
import pytest

from jaxembed import checkpoint, checksum, sharding, types

TX = optax.adamw(1e-3)


def _state(seed=0, step=3):
  params = {'backbone': {'w': jax.random.normal(jax.random.key(seed), (64, 32))},
            'pooling': {'b': jnp.arange(8, dtype=jnp.bfloat16)}}
  return types.TrainState(jnp.int32(step), params, TX.init(params))


def _like(state):
  return lambda step: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _bits_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _save(folder, states, keep=5):
  with checkpoint.Checkpoints(folder, keep=keep) as saved:
    for state in states:
      saved.save(int(state.step), state, {'stage': 1})
      saved.wait()


def test_round_trip_is_bit_exact(tmp_path):
  state = _state()
  _save(tmp_path, [state])
  with checkpoint.Checkpoints(tmp_path) as saved:
    again, position = saved.restore(_like(state))
  _bits_equal(state, again)
  assert position == {'stage': 1}
  params, step = checkpoint.load_params(tmp_path)
  _bits_equal(state.params, params)
  assert step == 3


def test_empty_folder_has_nothing_to_restore(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.restore(_like(_state())) is None
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    checkpoint.load_params(tmp_path)


def test_only_the_newest_are_kept(tmp_path):
  _save(tmp_path, [_state(step=s) for s in (1, 2, 3, 4)], keep=2)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.steps() == [3, 4]


def test_restores_onto_another_mesh(tmp_path):
  state = _state()
  _save(tmp_path, [state])
  mesh = sharding.make_mesh((4, 2, 1))

  def like(_):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
            mesh, P('fsdp') if x.ndim else P())), state)

  with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as saved:
    again, _ = saved.restore(like)
  _bits_equal(state, again)
  assert again.params['backbone']['w'].sharding.spec == P('fsdp')


def _largest_file(folder):
  return max((f for f in folder.rglob('*') if f.is_file()),
             key=lambda f: f.stat().st_size)


def _cut(file):
  file.write_bytes(file.read_bytes()[:10])


def _flip_one_bit(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 0x10
  file.write_bytes(data)


@pytest.mark.parametrize('damage', [_cut, _flip_one_bit])
@pytest.mark.parametrize('part', ['params', 'opt_state'])
def test_a_damaged_checkpoint_is_set_aside_and_said(tmp_path, damage, part):
  good, bad = _state(0, 3), _state(1, 4)
  bad = types.TrainState(bad.step, bad.params, jax.tree.map(
      lambda x: x + jnp.asarray(0.1, x.dtype) if x.ndim else x, bad.opt_state))
  _save(tmp_path, [good, bad])
  damage(_largest_file(tmp_path / '4' / part))
  said = []
  with checkpoint.Checkpoints(tmp_path) as saved:
    again, _ = saved.restore(_like(good), log=said.append)
    assert saved.steps() == [3]
  _bits_equal(good, again)
  assert '4.unreadable' in said[0]
  assert (tmp_path / '4.unreadable').is_dir()


def _wrapped(cause):
  """An error as Orbax reports one: of another type, with its cause behind it."""
  try:
    raise KeyError('Failed to load checkpointable') from cause
  except KeyError as e:
    return e


@pytest.mark.parametrize('error', [
    OSError(24, 'Too many open files'), _wrapped(OSError(5, 'Input/output error')),
    ValueError('PERMISSION_DENIED: Error opening d/x [OS error 13: EACCES]')],
    ids=['as it is', 'wrapped', 'in words'])
def test_an_error_that_passes_sets_nothing_aside(tmp_path, monkeypatch, error):
  state = _state()
  _save(tmp_path, [state])
  failures = []

  def failing(load):
    def run(*args):
      if failures:
        raise failures.pop()
      return load(*args)
    return run

  monkeypatch.setattr(time, 'sleep', lambda _: None)
  load = failing(checkpoint.ocp.load_checkpointables)
  monkeypatch.setattr(checkpoint.ocp, 'load_checkpointables', load)
  with checkpoint.Checkpoints(tmp_path) as saved:
    monkeypatch.setattr(saved, '_load', failing(saved._load))
    for read in (lambda: saved.restore(_like(state))[0].params,
                 lambda: checkpoint.load_params(tmp_path)[0]):
      failures += [error] * 2
      with pytest.raises(OSError, match='/3 cannot be read now .*(Too|Input|PERM)'):
        read()
      failures.append(error)  # a disk that hiccups once is not even told
      _bits_equal(read(), state.params)
      failures += [MemoryError()] * 2
      with pytest.raises(MemoryError):
        read()
  assert [p.name for p in tmp_path.iterdir()] == ['3']


@pytest.mark.parametrize('damage', [_cut, _flip_one_bit, pathlib.Path.unlink])
def test_every_reader_of_parameters_notices_damage(tmp_path, damage):
  good, bad = _state(0, 3), _state(1, 4)
  _save(tmp_path, [good, bad])
  damage(_largest_file(tmp_path / '4' / 'params'))
  with pytest.raises(checkpoint.Damaged, match=r'/4 .*use step 3'):
    checkpoint.load_params(tmp_path)
  _bits_equal(checkpoint.load_params(tmp_path, 3)[0], good.params)
  checkpoint.save_params(tmp_path / 'alone', 7, good.params)
  damage(_largest_file(tmp_path / 'alone' / '7' / 'params'))
  with pytest.raises(checkpoint.Damaged, match='there is no other'):
    checkpoint.load_params(tmp_path / 'alone')


@pytest.mark.parametrize('where', ['params', 'opt_state', 'ema'])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, where):
  good = _state()
  bad = dataclasses.replace(good, step=jnp.int32(4), **{where: jax.tree.map(
      lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x,
      getattr(good, where) or good.params)})
  _save(tmp_path, [good])
  with pytest.raises(FloatingPointError, match=r'after step 4 .* steps \[3\] are'):
    _save(tmp_path, [bad])
  assert checkpoint.steps(tmp_path) == [3]
  with pytest.raises(FloatingPointError):
    checkpoint.save_params(tmp_path / 'alone', 1, {'w': jnp.float32([1, jnp.inf])})
  assert not (tmp_path / 'alone').exists()


def test_the_best_stays_beside_the_newest(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    for step in range(1, 7):
      saved.save(step, _state(step=step), {})
      if step == 2:
        saved.keep_best(2, 'eval/ndcg@10', 0.9)
  assert checkpoint.steps(tmp_path) == [2, 5, 6]
  assert checkpoint.load_params(tmp_path, 'best')[1] == 2
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:  # another process goes on
    saved.save(7, _state(step=7), {})
    saved.wait()
    assert saved.steps() == [2, 6, 7]  # the newest is not yet known to be good
    saved.trim()
    assert saved.steps() == [2, 7]
  assert checkpoint.steps(tmp_path) == [2, 7]
  shutil.rmtree(tmp_path / '2')
  with pytest.raises(FileNotFoundError, match='no best checkpoint'):
    checkpoint.load_params(tmp_path, 'best')


def test_a_checkpoint_from_before_parts_had_fingerprints_opens(tmp_path):
  """Such as these had one sum over the whole state."""
  state = _state()
  checkpoint.ocp.save_checkpointables(
      tmp_path / '3', checkpoint._parts(state), custom_metadata={
          'position': {'stage': 0}, 'fingerprint': checksum.of_tree(state)})
  with checkpoint.Checkpoints(tmp_path) as saved:
    again, _ = saved.restore(_like(state))
  _bits_equal(state, again)
  _bits_equal(checkpoint.load_params(tmp_path)[0], state.params)
  _flip_one_bit(_largest_file(tmp_path / '3' / 'opt_state'))
  with (checkpoint.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match='no checkpoint .* can be read')):
    saved.restore(_like(state), log=lambda _: None)


def test_another_optimiser_is_refused_and_nothing_set_aside(tmp_path):
  state = _state()
  _save(tmp_path, [state])
  other = dataclasses.replace(state, opt_state=optax.sgd(1e-3, 0.9).init(state.params))
  with (checkpoint.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match='belongs to another optimiser')):
    saved.restore(_like(other))
  assert checkpoint.steps(tmp_path) == [3]


def test_all_damaged_is_an_error(tmp_path):
  _save(tmp_path, [_state()])
  _cut(_largest_file(tmp_path / '3' / 'params'))
  with (checkpoint.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match='no checkpoint .* can be read')):
    saved.restore(_like(_state()), log=lambda _: None)


def test_a_damaged_record_of_saving_hinders_no_other_checkpoint(tmp_path):
  states = [_state(), dataclasses.replace(_state(), step=_state().step + 1)]
  _save(tmp_path, states)
  first, last = checkpoint.steps(tmp_path)

  def damage(step):
    file = tmp_path / str(step) / '_CHECKPOINT_METADATA'
    file.write_text(file.read_text().replace('commit_time', 'colmit_time'))

  damage(last)
  said = []
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.steps() == [first]
    again, _ = saved.restore(_like(states[0]), log=said.append)
  _bits_equal(states[0], again)
  assert 'set aside as' in said[0] and (tmp_path / f'{last}.unreadable').is_dir()
  damage(first)
  with pytest.raises(ValueError, match=r'no checkpoint .* can be read'):
    checkpoint.Checkpoints(tmp_path)
  assert checkpoint.steps(tmp_path) == [first]


def test_a_half_written_checkpoint_is_not_listed(tmp_path):
  """What a kill during a save leaves is a folder without Orbax's commit."""
  state = _state()
  _save(tmp_path, [state])
  half = tmp_path / '9.orbax-checkpoint-tmp'
  half.mkdir()
  (half / 'params').mkdir()
  before = set(threading.enumerate())
  with checkpoint.Checkpoints(tmp_path) as saved:
    # Removed by now: a thread that is no daemon outlives a program that ends with
    # an error.
    assert not half.exists()
    assert not [t for t in {*threading.enumerate()} - before if not t.daemon]
    assert saved.steps() == [3]
    again, _ = saved.restore(_like(state))
  _bits_equal(state, again)


def test_a_disk_that_takes_no_more_keeps_what_is_there(tmp_path):
  """A limit on the size of files stands in for a full disk: writes really fail."""
  good = _state()
  noise = np.random.default_rng(0).normal(size=1 << 20)  # does not compress
  big = types.TrainState(
      jnp.int32(4), good.params | {'big': jnp.asarray(noise)}, good.opt_state)
  _save(tmp_path, [good])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with pytest.raises(OSError, match=r'could not be saved .* steps \[3\] are there'):
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
      _save(tmp_path, [big])
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.steps() == [3]
    again, _ = saved.restore(_like(good))
  _bits_equal(good, again)
  _save(tmp_path, [big])  # and goes on once there is room
  assert checkpoint.load_params(tmp_path)[1] == 4


def test_another_model_is_refused_by_name(tmp_path):
  _save(tmp_path, [_state()])
  other = {'backbone': {'w': jnp.zeros((64, 16))},
           'pooling': {'b': jnp.zeros(8, jnp.bfloat16)}}
  other = types.TrainState(jnp.int32(0), other, TX.init(other))
  with (checkpoint.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r'backbone/w: stored \(64, 32\)')):
    saved.restore(_like(other), log=lambda _: None)
  assert (tmp_path / '3').is_dir()  # and left as it was


def test_fingerprint_sees_every_bit_and_no_mesh():
  state = _state()
  mesh = sharding.make_mesh((8, 1, 1))
  spread = jax.tree.map(lambda x: jax.device_put(
      x, NamedSharding(mesh, P('data') if x.ndim else P())), state)
  with jax.set_mesh(mesh):
    assert checksum.of_tree(spread) == checksum.of_tree(state)
  w = state.params['backbone']['w']
  bit = w.at[5, 7].set(jnp.nextafter(w[5, 7], 9.0))
  other = types.TrainState(
      state.step, state.params | {'backbone': {'w': bit}}, state.opt_state)
  assert checksum.of_tree(other) != checksum.of_tree(state)
