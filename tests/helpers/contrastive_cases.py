"""Cases of masked_lse, a dense float64 oracle, and the comparison of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed.kernels.contrastive import MaskVectors, masked_lse

MASKS = ('ids', 'group', 'owner', 'threshold', 'bias')


@dataclasses.dataclass(frozen=True)
class Case:
  b: int
  n: int
  d: int
  masks: tuple[str, ...] = ()
  directions: tuple[str, ...] = ('row', 'col')
  dtype: str = 'float32'
  temperature: float = 0.05
  positive: float = 0.6  # cosine of each row and its positive, about
  bounded: bool = False
  hardness: tuple[float, float] = (0.0, 0.0)
  lone: bool = False  # a few pairs carry nearly the whole gradient
  scales: bool = False  # each vector of the one direction's side has its own

  @property
  def scale(self):
    """1/temperature, [] or a factor of 0.5 to 2 apart."""
    if not self.scales:
      return np.float32(1 / self.temperature)
    size = self.b if 'row' in self.directions else self.n
    return np.geomspace(0.5, 2, size, dtype=np.float32) / self.temperature

  def __str__(self):
    extra = [*self.masks, *self.directions, self.dtype, f't{self.temperature}']
    extra += ['bounded'] * self.bounded + ['hard'] * any(self.hardness)
    extra += ['scales'] * self.scales
    return f'{self.b}x{self.n}x{self.d}-' + '-'.join(extra)


def unit(rng, n, d):
  x = rng.normal(size=(n, d))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def build(case: Case, seed=0):
  """Vectors (rounded as the case says, float32), positives and masks."""
  rng = np.random.default_rng(seed)
  q = unit(rng, case.b, case.d)
  c = case.positive
  # The positive itself stays outside the primitive.
  p = c * q + np.sqrt(1 - c * c) * unit(rng, case.b, case.d)
  k = 0.3 * q[rng.integers(0, case.b, case.n)] + unit(rng, case.n, case.d)
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  q, p, k = (np.asarray(jnp.asarray(x, case.dtype).astype(jnp.float32))
             for x in (q, p, k))
  ints = functools.partial(rng.integers, 0, 5)
  s = np.float64(q) @ np.float64(k).T
  # Thresholds in the middle of a wide gap: no last bit decides on which side.
  def between(s):
    s = np.sort(s)
    if len(s) < 2:
      return s[0] + 0.1
    low = int(0.8 * (len(s) - 1))
    at = low + np.diff(s[low:]).argmax()
    return (s[at] + s[at + 1]) / 2

  def side(size, s):
    return MaskVectors(
        ids=tuple(ints(size).astype(np.int32) for _ in range(2))
        if 'ids' in case.masks else (),
        group=rng.integers(0, 2, size).astype(np.int32)
        if 'group' in case.masks else None,
        owner=ints(size).astype(np.int32) if 'owner' in case.masks else None,
        threshold=np.array([between(x) for x in s], np.float32)
        if 'threshold' in case.masks else None,
        bias=np.where(rng.random(size) < 0.2, -np.inf, rng.normal(size=size) / 4
                      ).astype(np.float32) if 'bias' in case.masks else None)

  row, col = side(case.b, s), side(case.n, s.T)
  # Where there is room, a row and a column that nothing may meet.
  for part, size in ((row, case.b), (col, case.n)):
    if size > 4:
      for x, value in ((part.ids and part.ids[0], 99), (part.threshold, -2)):
        if x is not None and len(x):
          x[3] = value
  return q, p, k, row, col


def oracle(case: Case, q, p, k, row: MaskVectors, col: MaskVectors, weights):
  """Loss, dq, dk, dscale, kept counts in float64, from the definition."""
  q, p, k = np.float64(q), np.float64(p), np.float64(k)
  scale = np.float64(case.scale)
  if case.scales:
    scale = np.expand_dims(scale, 1 if 'row' in case.directions else 0)
  s = q @ k.T
  keep = np.ones_like(s, bool)
  for a, b in zip(row.ids, col.ids):
    keep &= a[:, None] != b[None]
  meet = np.zeros_like(keep) | (row.group is None and row.owner is None)
  own = np.zeros_like(keep)
  if row.owner is not None:
    own = row.owner[:, None] == col.owner[None]
    meet = meet | own
  if row.group is not None:
    meet = meet | (row.group[:, None] == col.group[None])
  keep &= meet
  alpha = np.where(own, *case.hardness)
  dz, loss, ds_pos, counts = np.zeros_like(s), 0.0, np.zeros(len(q)), []
  positive = (q * p).sum(-1)
  for name, axis in (('row', 1), ('col', 0)):
    if name not in case.directions:
      continue
    me, other = (row, col) if axis else (col, row)
    z, kp = (scale + alpha) * s, keep
    if other.bias is not None:
      with np.errstate(invalid='ignore'):
        z = z + np.expand_dims(np.float64(other.bias), 1 - axis)
      kp = kp & np.isfinite(z)
    if me.threshold is not None:
      kp = kp & (s <= np.expand_dims(np.float64(me.threshold), axis))
    z = np.where(kp, z, -np.inf)
    with np.errstate(divide='ignore'):
      lse = np.logaddexp.reduce(z, axis)
    # Rows lose against their positive; columns against a constant.
    anchor = case.scale * positive if axis else np.full(len(k), 1.0)
    w = weights[0] if axis else weights[1]
    loss += (w * np.logaddexp(0, lse - anchor)).sum()
    g = w / (1 + np.exp(-np.maximum(lse - anchor, -700))) * np.isfinite(lse)
    if axis:
      ds_pos = -g
    safe = np.expand_dims(np.where(np.isfinite(lse), lse, 0), axis)
    dz += np.expand_dims(g, axis) * np.exp(z - safe)
    counts.append(kp.sum(axis))
  dq = (scale * dz) @ k
  if ds_pos.any():
    dq += (case.scale * ds_pos)[:, None] * p
  axis = None if not case.scales else 1 if 'row' in case.directions else 0
  dscale = (dz * s).sum(axis)
  if axis != 0:
    dscale = dscale + (ds_pos * positive if axis else (ds_pos * positive).sum())
  return loss, dq, (scale * dz).T @ q, dscale, counts


def run(case: Case, impl, q, p, k, row, col, weights, **options):
  def loss(q, k, scale):
    sums = masked_lse(q, k, scale=scale, row=row, col=col,
                      directions=case.directions, bounded=case.bounded,
                      hardness=case.hardness, dtype=case.dtype, impl=impl, **options)
    total = 0.0
    positive = (scale if 'row' in case.directions else 1.0) * (q * p).sum(-1)
    for part, anchor, w in zip(sums, (positive, 1.0), weights):
      if part is not None:
        total += (w * jax.nn.softplus(jnp.maximum(part.lse, -1e30) - anchor)).sum()
    return total, sums

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
      q, k, jnp.asarray(case.scale))


def distance(got, want):
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300)


def check(case: Case, impl, **options):
  rng = np.random.default_rng(1)
  q, p, k, row, col = build(case)
  # A mean with unequal weights: no symmetry hides a mistake.
  weights = [(rng.random(n) + 0.5).astype(np.float32) / n for n in (case.b, case.n)]
  args = q, p, k, row, col, weights
  (loss, sums), (dq, dk, dscale) = run(case, impl, *args, **options)
  want, wq, wk, wscale, counts = oracle(case, *args)
  kept = [np.asarray(s.num_kept) for s in sums if s is not None]
  for got, ref in zip(kept, counts, strict=True):
    np.testing.assert_array_equal(got, ref)
  if not any(c.any() for c in counts):
    assert loss == 0 and not dq.any() and not dk.any()
    return
  # float32: the logits are scale*s with scale up to 100, so that a rounding of s
  # (6e-8) is 6e-6 in a logit at worst; averaged over a row it stays below 2e-6
  # of the loss at scale 20. A float32 sum of D products drifts as sqrt(D), which
  # shows in gradients beyond D = 512 or so (2.03e-6 at D = 1000). bfloat16:
  # products of rounded inputs are exact, and only dS is rounded again, by 2^-9 or
  # so per pair, independently.
  bf16 = case.dtype == 'bfloat16'
  cold = 0.05 / min(case.temperature, 0.05)
  np.testing.assert_allclose(loss, want, rtol=(1e-6 if bf16 else 2e-6) * cold)
  bound = 2e-3 if bf16 else 2e-6 * cold * max(1, case.d / 512)**0.5
  if bf16 and case.lone and options.get('interpret'):
    bound = 2**-8  # the rounding of one bfloat16 number
  assert distance(dq, wq) <= bound
  assert distance(dk, wk) <= bound
  # A sum that may cancel: relative to the sum of its terms' sizes.
  sizes = np.abs(wq * q).sum()
  if case.scales:
    sizes = np.maximum(np.abs(wq * q).sum(), np.abs(wk * k).sum())
  np.testing.assert_allclose(dscale, wscale, rtol=bound,
                             atol=bound * sizes * case.temperature)
