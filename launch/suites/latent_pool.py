"""The latent-attention head, value and gradient: the published form and ours.

  per text   keys and values rebuilt for every text, as the published code does
  once       kernels.latent_pool.reference: keys and values once per step
  blockwise  folded latents, pooled before the down-projection
  tpu, gpu   the same with the device's kernel, where one runs

On a CPU the head is 1024 wide with 8 heads of 1024 and 512 latents on 8,192
tokens in float32; on an accelerator it has the released widths on 131,072 tokens
in bfloat16. `temporaries` is the compiler's figure for one device, value and
gradient; a form that does not fit says so.
"""

from collections.abc import Callable
import functools
import statistics

import jax
import jax.numpy as jnp

from jaxembed import config
from jaxembed.kernels import dispatch
from jaxembed.kernels.latent_pool import latent_pool, reference
from jaxembed.pooling import latent_attention
from jaxembed.types import Array, Params

from .. import timing


def run(repeats: int, small: bool) -> list[dict]:
  """A row per form and text length."""
  on_cpu = jax.default_backend() == 'cpu'
  dim, tokens = (1024, 8192) if on_cpu else (4096, 131072)
  lengths, latents = (256, 512), 512
  if small:
    dim, tokens, lengths, latents = 128, 512, (64, 128), 16
  cfg = config.PoolingConfig(kind='latent_attention', latents=latents, heads=8)
  dtype = jnp.float32 if on_cpu else jnp.bfloat16
  params = _params(cfg, dim, dtype)
  return [row for length in lengths
          for row in _compare(params, tokens // length, length, dtype, repeats)]


def tuned(small: bool) -> list[tuple[int, int, str]]:
  """(tokens, width, states' type) that stand for the classes of `tune`."""
  if jax.default_backend() == 'cpu':
    return [(512, 128, 'float32')] if small else [(4096, 1024, 'float32')]
  return [(512, 128, 'bfloat16')] if small else [
      (16384, 1024, 'bfloat16'), (65536, 4096, 'bfloat16')]


def step(impl: str, rows: int, width: int, dtype: str) -> tuple[Callable, tuple]:
  """(value and gradient of the head by `impl` over `rows` tokens, its arguments)."""
  cfg = config.PoolingConfig(kind='latent_attention', latents=512, heads=8)
  length = min(rows, 512)
  hidden = jax.random.normal(
      jax.random.key(1), (rows // length, length, width), jnp.dtype(dtype))
  args = (_params(cfg, width, jnp.dtype(dtype)), hidden,
          jnp.ones(hidden.shape[:2], bool))

  def loss(params, hidden, pool):
    return jnp.sum(latent_pool(params, hidden, pool, impl=impl) ** 2)

  return jax.jit(jax.value_and_grad(loss, (0, 1))), args


def per_text(params: Params, hidden: Array, pool: Array) -> Array:
  """The published order of work: the latents are repeated, then projected."""
  rows = len(hidden)
  latents = jnp.broadcast_to(params['latents'], (rows, *params['latents'].shape))
  # Without the barrier the compiler would see through the repetition.
  latents = jax.lax.optimization_barrier(latents)

  def one(latents, hidden, pool):
    own = {**params, 'latents': latents}
    return reference.latent_pool(own, hidden[None], pool[None])[0]

  return jax.vmap(one)(latents, hidden, pool)


def _compare(params: Params, rows: int, length: int, dtype,
             repeats: int) -> list[dict]:
  hidden = jax.random.normal(
      jax.random.key(1), (rows, length, params['norm']['scale'].shape[0]), dtype)
  pool = jnp.ones((rows, length), bool)
  cotangent = jax.random.normal(jax.random.key(2), (rows, hidden.shape[-1]))
  args = params, hidden, pool, cotangent
  forms = {'per text': per_text, 'once': reference.latent_pool,
           **{impl: functools.partial(latent_pool, impl=impl)
              for impl in ('blockwise', 'tpu', 'gpu')}}
  programs = {}
  for name, form in forms.items():
    try:
      programs[name] = _compile(form, args)
      jax.block_until_ready(programs[name](*args))
    except dispatch.Unsupported:
      programs.pop(name, None)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      programs[name] = None
  times = timing.alternating({
      name: functools.partial(program, *args)
      for name, program in programs.items() if program}, repeats)
  ours = statistics.median(times['blockwise'])
  return [_row(name, program, times.get(name), ours, rows, length)
          for name, program in programs.items()]


def _row(name: str, program, times: list[float] | None, ours: float, rows: int,
         length: int) -> dict:
  row = {'form': name, 'texts': rows, 'tokens/text': length}
  if times is None:
    return row | {'ms': 'out of memory'}
  memory = program.memory_analysis()
  return row | {
      'ms': statistics.median(times) * 1e3,
      'blockwise is faster by': statistics.median(times) / ours,
      'temporaries MiB': memory.temp_size_in_bytes / 2**20}


def _compile(form: Callable, args: tuple):
  def loss(params, hidden, pool, cotangent):
    return jnp.sum(form(params, hidden, pool) * cotangent)

  return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()


def _params(cfg: config.PoolingConfig, dim: int, dtype) -> Params:
  """A head whose zero projections have been moved, as after training."""
  params = latent_attention.init(cfg, dim, jax.random.key(0), dtype)
  for place in (params['out'], params['mlp']['down']):
    shape = place['kernel'].shape
    place['kernel'] = 0.02 * jax.random.normal(jax.random.key(3), shape, dtype)
  return params
