"""Attention by every form that runs here: forward, and value and gradient.

  dense      all scores at once
  blockwise  tiles with an online softmax
  splash     JAX's kernel, on a TPU
  cudnn      NVIDIA's, on a GPU in bfloat16

8,192 tokens in all, in rows of 128 to 8,192; 12 heads of 32 in float32 on a CPU, 32
heads of 128 with 8 key heads in bfloat16 elsewhere; `packed` rows hold four texts each.
`torch sdpa` is scaled_dot_product_attention in the same process, forward alone.
`temporaries` is the compiler's figure.
"""

from collections.abc import Callable
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxembed.kernels import dispatch
from jaxembed.kernels.attention import IMPLS, attend, pattern

from .. import timing

_TOKENS = 8192
_LENGTHS = (128, 512, 2048, 8192)
# A form whose scores would take more than this is left out; a gradient holds four times
# as much.
_MOST_SCORES = 2**32  # bytes


def run(repeats: int, small: bool) -> list[dict]:
  """A row per length, kind of rows, direction and form."""
  on_cpu = jax.default_backend() == 'cpu'
  shape = (12, 12, 32, jnp.float32) if on_cpu else (32, 8, 128, jnp.bfloat16)
  total, lengths = (1024, (128, 512)) if small else (_TOKENS, _LENGTHS)
  return [row for length in lengths for packed in (False, True)
          for gradient in (False, True)
          for row in _compare(total // length, length, shape, packed, gradient,
                              repeats)]


def _compare(rows: int, length: int, shape, packed: bool, gradient: bool, repeats: int
             ) -> list[dict]:
  heads, groups, width, dtype = shape
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (rows, length, n, width), dtype)
             for key, n in zip(keys, (heads, groups, groups)))
  segment = jnp.broadcast_to(jnp.arange(length) * 4 // length, (rows, length))
  mask = jnp.ones((rows, length), bool)

  def form(impl, q, k, v):
    seen = pattern.of_tokens('bidirectional', mask, segment if packed else None)
    with jax.default_matmul_precision('highest' if dtype == jnp.float32 else 'default'):
      return attend(q, k, v, seen, scale=width**-0.5, impl=impl)

  programs = {}
  for impl in IMPLS[1:]:
    scores = 4 * rows * heads * length**2 * (4 if gradient else 1)
    if impl == 'dense' and scores > _MOST_SCORES:
      continue
    try:
      programs[impl] = _compile(functools.partial(form, impl), (q, k, v), gradient)
    except dispatch.Unsupported:
      continue
  runs: dict[str, Callable] = {
      name: functools.partial(f, q, k, v) for name, f in programs.items()}
  if jax.default_backend() == 'cpu' and not packed and not gradient:
    runs['torch sdpa'] = _torch(q, k, v)
  for f in runs.values():
    jax.block_until_ready(f())
  times = timing.alternating(runs, repeats)
  ours = statistics.median(times['blockwise'])
  return [{
      'rows': f'{rows} x {length}' + (', packed' if packed else ''),
      'direction': 'forward and backward' if gradient else 'forward', 'form': name,
      'ms': statistics.median(times[name]) * 1e3,
      'blockwise is faster by': statistics.median(times[name]) / ours,
      'temporaries MiB': '' if name not in programs else
          programs[name].memory_analysis().temp_size_in_bytes / 2**20}
      for name in runs]


def _compile(form: Callable, args: tuple, gradient: bool):
  def value(*args):
    return jnp.square(form(*args).astype(jnp.float32)).sum()

  step = jax.value_and_grad(value, (0, 1, 2)) if gradient else form
  return jax.jit(step).lower(*args).compile()


def _torch(q, k, v) -> Callable[[], object]:
  q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v))
  sdpa = torch.nn.functional.scaled_dot_product_attention
  return lambda: sdpa(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
