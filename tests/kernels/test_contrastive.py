"""masked_lse: every implementation, one table of cases, one dense float64 oracle."""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.kernels import dispatch
from jaxembed.kernels.contrastive import (
    MaskVectors,
    blockwise,
    masked_lse,
    tpu_call,
    tpu_pairs,
)
from tests.helpers.contrastive_cases import MASKS, Case, build, check, unit
from tests.helpers.tiers import after, thorough

SMALL = [
    Case(1, 1, 64),
    Case(8, 7, 96, masks=('ids',)),
    Case(127, 130, 64, masks=MASKS),
    Case(127, 130, 64, masks=MASKS, dtype='bfloat16'),
    Case(64, 128, 64, masks=MASKS, hardness=(5.0, 1.0), directions=('row',)),
    Case(128, 256, 128, masks=('ids',), bounded=True),
    Case(128, 256, 128, masks=MASKS, bounded=True, dtype='bfloat16'),
    Case(128, 128, 64, directions=('col',), masks=('group', 'bias')),
    # Trained to death, and the coldest temperature in use.
    Case(128, 256, 256, temperature=0.02, positive=0.95, dtype='bfloat16'),
    Case(128, 256, 256, temperature=0.01, positive=0.9, masks=('ids',)),
    Case(128, 256, 256, temperature=0.01, dtype='bfloat16', directions=('row',),
         lone=True),
    Case(127, 130, 64, masks=MASKS, directions=('row',), scales=True,
         hardness=(5.0, 1.0), dtype='bfloat16'),
    Case(128, 250, 64, masks=MASKS, directions=('col',), scales=True, bounded=True),
]
GRID = [Case(b, n, d, masks=m, dtype=t, temperature=tau, positive=s)
        for b, n in ((1, 7), (7, 1), (8, 127), (128, 1000), (1000, 1024), (1024, 128))
        for d in (64, 96, 768, 1000, 1024)
        for m in ((), MASKS) for t in ('float32', 'bfloat16')
        for tau, s in ((0.05, 0.6), (0.02, 0.95), (0.01, 0.5))]
GRID += [Case(128, 128, 4096, masks=MASKS, dtype=t) for t in ('float32', 'bfloat16')]


@pytest.mark.parametrize('case', after(7, SMALL), ids=str)
@pytest.mark.parametrize('impl', ['blockwise', thorough('reference')])
def test_equals_float64(case, impl):
  # Tiles of 64 x 64: several both ways, with ragged ends.
  check(case, impl, tile_bytes=4 * 64 * 64)


@pytest.mark.parametrize('case', [
    case if i in (6, 11) else thorough(case)
    for i, case in enumerate(SMALL)], ids=str)
def test_tpu_interpreted(case):
  check(case, 'tpu', tile_bytes=4 * 128 * 256, interpret=True)


def test_words_hold_two_rows_of_16_bits():
  """Beyond one block both ways, with ragged ends; the first row in the low half."""
  x = np.random.default_rng(0).normal(size=(300, 1100)).astype(jnp.bfloat16)
  bits = x.view(np.uint16).astype(np.uint32)
  words = tpu_pairs.of(jnp.asarray(x), interpret=True)
  np.testing.assert_array_equal(words, bits[::2] | bits[1::2] << 16)
  assert tpu_pairs.of(jnp.asarray(x[:3]), interpret=True).dtype == jnp.bfloat16
  assert tpu_pairs.of(jnp.ones((4, 8)), interpret=True).dtype == jnp.float32
  large = jax.ShapeDtypeStruct((1 << 18, 1024), jnp.bfloat16)
  assert jax.eval_shape(tpu_pairs.of, large).dtype == jnp.bfloat16


@pytest.mark.thorough
@pytest.mark.parametrize('case', after(1, [
    Case(256, 256, 128, masks=MASKS, dtype='bfloat16'),
    Case(256, 128, 64, dtype='bfloat16', directions=('row',)),
    Case(256, 128, 64, dtype='bfloat16', directions=('row',), scales=True,
         bounded=True, masks=('ids', 'owner')),
    Case(256, 128, 64, dtype='bfloat16', directions=('row',), scales=True,
         masks=MASKS),
    Case(512, 256, 64, masks=('ids',), dtype='bfloat16', bounded=True),
    Case(256, 256, 256, masks=('owner', 'threshold'), dtype='bfloat16',
         hardness=(5.0, 1.0), directions=('row',), lone=True),
    Case(256, 256, 256, temperature=0.02, positive=0.95, dtype='bfloat16')]), ids=str)
def test_gpu_interpreted(case):
  # The interpreter has no public name in this release of JAX.
  params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
  with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
    check(case, 'gpu', tile_bytes=4 * 256 * 256, interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize('case', GRID, ids=str)
def test_grid_equals_float64(case):
  check(case, 'blockwise', tile_bytes=4 * 300 * 300)


def arrays(b=6, n=5, d=8, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return (jnp.asarray(unit(rng, b, d), dtype), jnp.asarray(unit(rng, n, d), dtype))


@pytest.mark.parametrize('bounded', [False, True])
@pytest.mark.parametrize('impl', [
    'reference', 'blockwise', thorough('tpu'), thorough('gpu')])
def test_what_is_not_finite_is_never_no_candidate(impl, bounded):
  """Rows that meet a NaN or an infinity say so, forward and backward; others do not."""
  case = Case(256, 256, 64, dtype='bfloat16')
  q, _, k = (np.array(x) for x in build(case)[:3])
  # Two groups; the columns 3 (NaN) and 200 (inf) are of the second.
  k[3], k[200, 5] = np.nan, np.inf
  side = MaskVectors(group=(np.arange(256) % 2).astype(np.int32),
              threshold=np.full(256, 2, np.float32))
  side.group[200] = 1

  def loss(q, k):
    rows, cols = masked_lse(
        q, k, scale=20.0, row=side, col=side, directions=('row', 'col'),
        bounded=bounded, impl=impl, dtype=case.dtype, interpret=impl in ('tpu', 'gpu'),
        tile_bytes=4 * 128 * 128)
    return rows.lse.sum(), (rows, cols)

  def run():
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(q, k)

  if impl == 'gpu':
    params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
    with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
      (_, (rows, cols)), dq = run()
  else:
    (_, (rows, cols)), dq = run()
  meets = side.group == 1
  np.testing.assert_array_equal(np.isfinite(rows.lse), ~meets)
  np.testing.assert_array_equal(np.isnan(cols.lse)[[3, 4, 5]], [True, False, False])
  assert not np.isfinite(cols.lse[200]) and (rows.num_kept > 0).all()
  assert not np.isfinite(dq[meets]).any()


def ids(n, dtype=jnp.int32):
  return jnp.arange(n, dtype=dtype)


BAD = [
    ({'k': jnp.zeros((5, 9))}, 'must be .B,D. and .N,D. with one D'),
    ({'k': jnp.zeros((5, 8), jnp.bfloat16)}, 'cast both to float32'),
    ({'k': jnp.zeros((0, 8))}, 'at least one row each'),
    ({'row': MaskVectors(ids=(ids(6, jnp.float32),)),
      'col': MaskVectors(ids=(ids(5),))},
     r'row.ids\[0\] is float32; ids must be int32'),
    ({'row': MaskVectors(ids=(ids(6),))}, '1 ids per row but 0 per column'),
    ({'row': MaskVectors(group=ids(6))}, 'group is given on one side only'),
    ({'col': MaskVectors(bias=jnp.zeros(6))}, r'col.bias has shape \(6,\), not \(5,\)'),
    ({'row': MaskVectors(threshold=ids(6))},
     'row.threshold is int32; it must be a float'),
    ({'directions': ('rows',)}, "must be 'row', 'col' or both"),
    ({'impl': 'cuda'}, 'choose one of'),
    ({'scale': 0.0}, 'must be above 0'),
    ({'scale': np.full(5, 20.0)}, r'scale has shape \(5,\), not \(\) or \(6,\)'),
    ({'scale': np.full(6, 20.0), 'directions': ('row', 'col')},
     'ask for one direction'),
    ({'tile_bytes': -1}, 'at least 0'),
    ({'mode': 'tree'}, 'choose one of'),
    ({'axes': ('data',)}, 'not in the mesh in force'),
]


@pytest.mark.parametrize('change, message', BAD)
def test_bad_input_is_named(change, message):
  q, k = arrays()
  with pytest.raises(ValueError, match=message):
    masked_lse(**{'q': q, 'k': k, 'scale': 20.0} | change)


def test_a_named_implementation_never_falls_back():
  q, k = arrays()
  with pytest.raises(dispatch.Unsupported, match="use impl='auto'"):
    masked_lse(q, k, scale=20.0, impl='tpu')
  with pytest.raises(dispatch.Unsupported, match="use impl='auto'"):
    masked_lse(q, k, scale=20.0, impl='gpu')
  with pytest.raises(dispatch.Unsupported, match='multiplies bfloat16, not float32'):
    masked_lse(q, k, scale=20.0, impl='gpu', interpret=True)
  with pytest.raises(dispatch.Unsupported, match='no scale per column; swap q and k'):
    x = jnp.zeros((256, 64), jnp.bfloat16)
    masked_lse(x, x, scale=jnp.ones(256), directions=('col',), impl='gpu',
               interpret=True)
  with pytest.raises(dispatch.Unsupported, match='rows in multiples of 256, got 6'):
    masked_lse(q, k, scale=20.0, impl='gpu', dtype='bfloat16', interpret=True)
  wide = jnp.zeros((8, 1 << 17))
  with pytest.raises(dispatch.Unsupported, match="use impl='blockwise'"):
    masked_lse(wide, wide, scale=20.0, impl='tpu', interpret=True)


@pytest.mark.parametrize('impl', ['blockwise', thorough('tpu')])
def test_two_passes_equal_one(impl, monkeypatch):
  case = Case(300, 200, 64, masks=MASKS, dtype='bfloat16')
  q, _, k, row, col = build(case)
  q, k = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)

  def loss(q, k, scale):
    rows, cols = masked_lse(
        q, k, scale=scale, row=row, col=col, directions=('row', 'col'), impl=impl,
        tile_bytes=4 * 128 * 128, interpret=impl == 'tpu')
    return sum(jax.nn.softplus(jnp.maximum(x.lse, -9)).sum() for x in (rows, cols))

  def gradients(limit):
    monkeypatch.setattr(blockwise, 'ACCUMULATOR_BYTES', limit)
    return jax.jit(lambda *args: jax.grad(loss, (0, 1, 2))(*args))(
        q, k, jnp.float32(20))

  one, two = gradients(1 << 30), gradients(0)
  for a, b in zip(one[:2], two[:2]):
    assert b.dtype == jnp.bfloat16
    # Sums of another order in float32, then one rounding to bfloat16.
    np.testing.assert_allclose(np.float32(b), np.float32(a), rtol=2**-7, atol=1e-6)
  np.testing.assert_allclose(two[2], one[2], rtol=1e-5)


def test_second_derivative_is_refused():
  q, k = arrays()

  def slope(q):
    return jax.grad(lambda q: masked_lse(q, k, scale=2.0)[0].lse.sum())(q).sum()

  with pytest.raises(dispatch.Unsupported, match='no second derivative'):
    jax.jvp(slope, (q,), (q,))


def test_splitting_columns_is_logaddexp():
  q, k = arrays(40, 30, 16)

  def part(k, bias):
    return masked_lse(q, k, scale=20.0, col=MaskVectors(bias=bias))[0]

  bias = jnp.linspace(-1, 1, 30)
  whole = part(k, bias)
  a, b = part(k[:11], bias[:11]), part(k[11:], bias[11:])
  np.testing.assert_allclose(np.logaddexp(a.lse, b.lse), whole.lse, rtol=3e-7)
  np.testing.assert_array_equal(a.num_kept + b.num_kept, whole.num_kept)


def test_swapping_sides_swaps_results():
  q, k = arrays(40, 30, 16)
  row, col = MaskVectors(ids=(ids(40) % 7,)), MaskVectors(ids=(ids(30) % 7,))
  both = ('row', 'col')
  r, c = masked_lse(q, k, scale=20.0, row=row, col=col, directions=both)
  r2, c2 = masked_lse(k, q, scale=20.0, row=col, col=row, directions=both)
  np.testing.assert_allclose(r.lse, c2.lse, rtol=3e-7)
  np.testing.assert_allclose(c.lse, r2.lse, rtol=3e-7)


def test_underflow_in_bounded_mode_can_be_counted():
  q = jnp.ones((1, 1))
  sums, _ = masked_lse(q, -q, scale=100.0, bounded=True)
  assert sums.lse[0] == -jnp.inf and sums.num_kept[0] == 1


@pytest.mark.thorough
def test_double_use_vmap_and_remat():
  """An array on both sides, batched and rematerialised, equals the plain sum."""
  x, _ = arrays(12, 12, 8)
  me = MaskVectors(ids=(ids(12),))

  def fused(x):
    return masked_lse(x, x, scale=10.0, row=me, col=me)[0].lse.sum()

  def plain(x):
    z = jnp.where(jnp.eye(12, dtype=bool), -jnp.inf, 10 * x @ x.T)
    return jax.nn.logsumexp(z, 1).sum()

  xs = jnp.stack([x, x[::-1]])
  got = jax.vmap(jax.value_and_grad(jax.checkpoint(fused)))(xs)
  want = jax.vmap(jax.value_and_grad(plain))(xs)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def detector(monkeypatch, cores):
  """Makes the TPU's interpreter look for races. -> what it has found."""
  interpreter = pytest.importorskip(
      'jax._src.pallas.mosaic.interpret.interpret_pallas_call',
      reason='its findings have no public name in this release of JAX')
  monkeypatch.setattr(tpu_call.pltpu, 'InterpretParams', functools.partial(
      pltpu.InterpretParams, detect_races=True, num_cores_or_threads=cores))
  return lambda: interpreter.races.races_found


def small_tiles(monkeypatch, cores=1, strips=2):
  monkeypatch.setattr(tpu_call, 'TILES', ((128, 128),))
  monkeypatch.setattr(tpu_call, 'MOST_STRIPS', strips)
  monkeypatch.setattr(tpu_call, 'CORES', {'cpu': cores})


@pytest.mark.thorough
@pytest.mark.parametrize('cores, case', [
    (1, Case(500, 300, 64, masks=MASKS)),
    (2, Case(512, 400, 64, masks=('ids',), bounded=True, dtype='bfloat16')),
    (2, Case(512, 512, 64, directions=('row',), scales=True))], ids=str)
def test_groups_of_rows_on_one_core_or_two_do_not_race(cores, case, monkeypatch):
  """Two groups of two tiles of rows; of the columns three or four."""
  found = detector(monkeypatch, cores)
  small_tiles(monkeypatch, cores)
  check(case, 'tpu', interpret=True)
  assert not found()


@pytest.mark.thorough
def test_a_race_would_be_found(monkeypatch):
  """Both cores write the gradient of the same columns: that must be seen."""
  found = detector(monkeypatch, 2)

  def body(out_ref):
    out_ref[...] = jnp.ones(out_ref.shape)

  pl.pallas_call(
      body, grid=(2,), out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
      out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
      interpret=tpu_call.pltpu.InterpretParams())()
  assert found()


@pytest.mark.thorough
@pytest.mark.parametrize('bounded', [False, True])
def test_tiles_of_every_level_give_the_sums_of_all_masks(bounded, monkeypatch):
  """Four tiles a side: some share no id, some do, some hold two groups, some end."""
  small_tiles(monkeypatch)
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(unit(rng, n, 64), jnp.float32) for n in (500, 400))
  row = MaskVectors(ids=(ids(500), ids(500) + 1000), owner=ids(500),
                    group=(ids(500) >= 450).astype(jnp.int32))
  col = MaskVectors(ids=(ids(400), ids(400) + 1399), owner=ids(400) - 7,
                    group=(ids(400) >= 390).astype(jnp.int32))

  def run(impl):
    def loss(q, k):
      rows, cols = masked_lse(
          q, k, scale=20.0, row=row, col=col, directions=('row', 'col'), impl=impl,
          bounded=bounded, interpret=impl == 'tpu', tile_bytes=4 * 256 * 256)
      kept = rows.num_kept.sum(), cols.num_kept.sum()
      return rows.lse.sum() + cols.lse.sum(), (rows, cols, kept)
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(q, k)

  for got, want in zip(jax.tree.leaves(run('tpu')), jax.tree.leaves(run('reference')),
                       strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
