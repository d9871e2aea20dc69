"""The contrastive loss, value and gradient, against the dense matrix.

Unit-norm random vectors; the row is InfoNCE (or both directions) over in-batch
negatives. Variants of one shape alternate within a repeat, so that ratios hold on a
noisy machine. 'useful TFLOP/s' counts three products of B*N*D whatever was spent;
'temporaries' is the compiler's own account.
"""

from collections.abc import Callable
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from jaxembed.kernels.contrastive import MaskVectors, masked_lse

from .. import timing

_TEMPERATURE = 0.05
_MIB = 1 << 20
# (B, N, D, operands)
_SHAPES = {
    'cpu': [(8192, 8192, 768, 'float32'), (32768, 32768, 768, 'float32')],
    'gpu': [(32768, 32768, 768, 'bfloat16'), (65536, 65536, 768, 'bfloat16'),
            (32768, 131072, 4096, 'bfloat16'), (262144, 262144, 768, 'bfloat16')],
    'tpu': [(32768, 32768, 768, 'bfloat16'), (32768, 32768, 1024, 'bfloat16'),
            (32768, 128256, 4096, 'bfloat16'), (262144, 262144, 1024, 'bfloat16')],
}
_SMALL = [(256, 384, 64, 'float32')]
_DENSE_BYTES = {'cpu': 12 << 30, 'gpu': 60 << 30, 'tpu': 12 << 30}
_LONG = 1 << 29  # pairs beyond which a CPU repeats twice only


def run(repeats: int, small: bool) -> list[dict]:
  """A row per shape and variant."""
  platform = jax.default_backend()
  rows = []
  for shape in _SMALL if small else _SHAPES[platform]:
    slow = platform == 'cpu' and shape[0] * shape[1] > _LONG
    rows += _compare(*shape, platform, min(repeats, 2) if slow else repeats)
  return rows


def tuned(small: bool) -> list[tuple[int, int, str]]:
  """(rows and columns, width, operands) that stand for the classes of `tune`."""
  dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  sizes, widths = ((8192,), (384, 1024)) if dtype == 'float32' else (
      (8192, 32768), (384, 1024, 4096))
  return [(256, 64, dtype)] if small else [
      (n, d, dtype) for n in sizes for d in widths]


def step(impl: str, rows: int, width: int, dtype: str) -> tuple[Callable, tuple]:
  """(value and gradient of the loss by `impl`, its arguments)."""
  run = functools.partial(_fused, impl=impl)
  return jax.jit(jax.value_and_grad(run, argnums=(0, 1))), _vectors(
      rows, rows, width, dtype)


def _variants(platform: str, b: int, n: int) -> dict[str, Callable]:
  own = [platform] if platform in ('tpu', 'gpu') else []
  variants = {}
  if 8.0 * b * n <= _DENSE_BYTES[platform]:
    variants['dense'] = _dense
    variants['dense, both ways'] = functools.partial(_dense, both=True)
  for impl in ['blockwise', *own]:
    fused = functools.partial(_fused, impl=impl)
    variants |= {
        impl: fused, f'{impl}, masks': functools.partial(fused, masks=True),
        f'{impl}, bounded': functools.partial(fused, bounded=True),
        f'{impl}, both ways': functools.partial(fused, both=True)}
  return variants


def _compare(b, n, d, dtype, platform, repeats):
  args = _vectors(b, n, d, dtype)
  compiled, skipped = {}, []
  for name, fn in _variants(platform, b, n).items():
    try:
      step = jax.jit(jax.value_and_grad(fn, argnums=(0, 1))).lower(*args).compile()
      jax.block_until_ready(step(*args))
      compiled[name] = step
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
      # Reported, not hidden: a kernel that cannot run here, or memory.
      skipped.append({'B': b, 'N': n, 'D': d, 'variant': name,
                      'note': str(error).splitlines()[0][:80]})
  times = timing.alternating({
      name: functools.partial(step, *args) for name, step in compiled.items()}, repeats)
  return [_row(b, n, d, dtype, name, times, compiled[name]) for name in compiled
          ] + skipped


def _row(b, n, d, dtype, name, times, step):
  base = 'dense, both ways' if 'both' in name else 'dense'
  seconds = statistics.median(times[name])
  row = {'B': b, 'N': n, 'D': d, 'operands': dtype, 'variant': name,
         'ms': 1e3 * seconds, 'ps/logit': 1e12 * seconds / (b * n),
         'useful TFLOP/s': 6e-12 * b * n * d / seconds,
         'temporaries MiB': step.memory_analysis().temp_size_in_bytes / _MIB}
  if base in times:
    row['time / dense'] = statistics.median(
        x / y for x, y in zip(times[name], times[base]))
  return row


def _vectors(b, n, d, dtype):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((b + n, d), dtype=np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return jnp.asarray(x[:b], dtype), jnp.asarray(x[b:], dtype)


def _positive(q, k):
  m = min(len(q), len(k))
  return jnp.einsum('BD,BD->B', q[:m], k[:m], preferred_element_type=jnp.float32)


def _dense(q, k, both=False):
  """What one would write: the whole matrix, positive on the diagonal."""
  z = jnp.einsum('BD,ND->BN', q, k, preferred_element_type=jnp.float32) / _TEMPERATURE
  positive = _positive(q, k) / _TEMPERATURE
  m = len(positive)
  loss = (jax.nn.logsumexp(z, 1)[:m] - positive).mean()
  if both:
    loss = (loss + (jax.nn.logsumexp(z, 0)[:m] - positive).mean()) / 2
  return loss


def _fused(q, k, impl, masks=False, bounded=False, both=False):
  """The library's way: negatives in the kernel, positive outside."""
  b, n = len(q), len(k)
  row = MaskVectors(ids=(jnp.arange(b, dtype=jnp.int32),))
  col = MaskVectors(ids=(jnp.arange(n, dtype=jnp.int32),))
  if masks:
    row = MaskVectors(row.ids, threshold=jnp.full((b,), 0.9, jnp.float32))
    col = MaskVectors(col.ids, bias=jnp.zeros((n,), jnp.float32))
  sums = masked_lse(q, k, scale=1 / _TEMPERATURE, row=row, col=col, impl=impl,
                    bounded=bounded, directions=('row', 'col') if both else ('row',))
  positive = _positive(q, k) / _TEMPERATURE
  m = len(positive)
  parts = [jax.nn.softplus(s.lse[:m] - positive).mean() for s in sums if s is not None]
  return sum(parts) / len(parts)
