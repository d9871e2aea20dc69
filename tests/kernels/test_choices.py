"""Which implementation 'auto' takes: the table, a machine's own, and shapes."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxembed.kernels import choices
from jaxembed.kernels.contrastive import api
from jaxembed.kernels.latent_pool import api as latent


def choose(**changed):
  return choices.choose(**{'operation': 'contrastive', 'rows': 8192, 'width': 768,
                           'dtype': jnp.bfloat16, 'chip': 'v6e'} | changed)


def test_every_chip_has_an_entry_with_its_reason():
  for chip in ('v5e', 'v5p', 'v6e'):
    found = choose(chip=chip)
    assert found.impl == 'tpu' and len(found.reason) > 20
  for other in ({'chip': 'cpu'}, {'chip': 'NVIDIA H100'}, {'dtype': jnp.float32},
                {'width': 8192}, {'rows': 100}):
    assert choose(**other).impl == 'blockwise'
    assert choose(operation='latent_pool', **other).impl == 'blockwise'
  assert choose(operation='latent_pool', width=4096).impl == 'tpu'
  assert choose(operation='latent_pool', width=256).impl == 'blockwise'
  assert choose(operation='latent_pool', width=1024, chip='v5p').impl == 'blockwise'


@pytest.mark.parametrize('kind, named', [
    ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v6 lite', 'v6e')])
def test_the_mesh_in_force_says_which_chip_it_is(kind, named):
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform='tpu')
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  x = jax.ShapeDtypeStruct((4096, 768), jnp.bfloat16)
  with jax.sharding.use_abstract_mesh(mesh):
    assert choices.chip() == named
    assert api._pick('auto', x, x, x.dtype, api.NO_MASK, ()) == 'tpu'
    # The width of the feed-forward is a multiple of 128, and rows of several texts are
    # not short; else 'auto' stays with what can run, where 'tpu' is refused.
    for inner, length, texts, want in (
        (3072, 512, 1, 'tpu'), (3072, 512, 8, 'tpu'), (3000, 512, 1, 'blockwise'),
        (3072, 128, 8, 'blockwise'), (3072, 128, 1, 'tpu')):
      head = {'mlp': {'up': {'kernel': jax.ShapeDtypeStruct((768, inner), x.dtype)}}}
      states = jax.ShapeDtypeStruct((64, length, 768), x.dtype)
      assert latent._pick(head, states, texts) == want
  assert api._pick('auto', x, x, x.dtype, api.NO_MASK, ()) == 'blockwise'


def test_a_machine_s_own_choices_come_first_and_can_be_taken_back(tmp_path):
  own = choices.Choice('contrastive', 'v6e', 'bfloat16', 'blockwise', 'timed here',
                       rows=(0, 10000))
  path = tmp_path / 'kernels.json'
  path.write_text(choices.as_json([own], 'a note'))
  try:
    assert choices.use(path) == [own]
    assert choose() == own and choose(rows=20000).impl == 'tpu'
    assert choices.in_force()[0]['because'] == 'timed here'
  finally:
    path.write_text(choices.as_json([], ''))
    choices.use(path)
  assert choose().impl == 'tpu'


def test_blocks_of_a_gpu_that_do_not_divide_a_side_are_no_choice(monkeypatch):
  own = choices.Choice('contrastive', '*', 'bfloat16', 'gpu', 'timed here')
  monkeypatch.setattr(choices, '_own', [own])

  def pick(rows, columns, width=768):
    q, k = (jax.ShapeDtypeStruct((n, width), jnp.bfloat16) for n in (rows, columns))
    return api._pick('auto', q, k, q.dtype, api.NO_MASK, ())

  assert pick(512, 640) == 'gpu'
  for sizes in ((1000, 512), (512, 1000), (512, 512, 96)):
    assert pick(*sizes) == 'blockwise'


@pytest.mark.parametrize('text', [
    'x', '{}', '{"choices": [{}]}',
    json.dumps({'choices': [{'operation': 'contrastive', 'chip': 'v6e', 'reason': '',
                             'dtype': 'float32', 'impl': 'cuda'}]})])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
  path = tmp_path / 'kernels.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'kernels\.json is no table of kernels.*tune'):
    choices.use(path)
