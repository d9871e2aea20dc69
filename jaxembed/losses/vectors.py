"""Embeddings prepared for a loss: unit length, rounding, widths."""

from collections.abc import Callable

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, precision, types
from jaxembed.kernels import contrastive
from jaxembed.losses.result import Result

# Rows whose squared length is so close to 1 are taken as given: the model has
# normalised them, and its own gradient leaves out what would change their length.
_GIVEN = 1e-4
# By product, no row may be longer: with the highest scale and weight its logits stay
# above the sums' floor (kernels.contrastive.tile) and below float32's end.
_LONGEST = 1e9
# Rows without an entry above this have no direction: torch's floor of a norm.
_ZERO = 1e-12


def comparable(query: jax.Array, passage: jax.Array, cfg: config.LossConfig,
               axes: tuple[str, ...]
               ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(query [Q,E], passage [C,E], how many of their rows are `unusable` [] int32).

  Rows are split over `axes`. By cosine they have length 1 but for rows of zeros, which
  stay, compare as 0 with everything and take the gradient of the product. What cannot
  be used becomes NaN, and is seen. Values are rounded to cfg.operands; gradients are
  not.
  """
  query, passage = contrastive.split_rows((query, passage), axes)
  broken = [unusable(x, cfg) for x in (query, passage)]
  if cfg.similarity == 'cosine':
    query, passage = (_unit_if_not(x) for x in (query, passage))
  else:
    query, passage = (jnp.where(bad[:, None], jnp.nan, x)
                      for x, bad in zip((query, passage), broken, strict=True))
  return (_rounded(query, cfg.operands), _rounded(passage, cfg.operands),
          sum((bad.sum() for bad in broken), jnp.int32(0)))


def unusable(x: types.Array, cfg: config.LossConfig) -> types.Array:
  """[N] bool: rows of x [N,E] that are not finite, or too long to multiply. In numpy
  or JAX, as x is."""
  largest = abs(x).max(-1)
  bad = ~(largest < jnp.inf)
  if cfg.similarity == 'dot':
    bad |= largest > _LONGEST / x.shape[-1]**0.5
  return bad


def unit(x: jax.Array) -> jax.Array:
  """x [N,E] with rows of length 1; rows of zeros stay, NaN and infinity become NaN."""
  largest = stop_gradient(jnp.abs(x).max(-1, keepdims=True))
  zero = largest <= _ZERO
  y = x / jnp.where(zero, 1, largest)  # its squares neither vanish nor overflow
  return jnp.where(zero, x, y / jnp.sqrt(
      jnp.where(zero, 1, jnp.sum(y * y, -1, keepdims=True))))


def products(a: jax.Array, b: jax.Array, dtype: str = 'float32') -> jax.Array:
  """[N] float32, replicated: the product of each row of a [N,E] with the one of b.

  dtype: that of the values, as LossConfig.dtype has rounded them: the products of any
  are exact.
  """
  return mesh.replicate(jnp.einsum(
      'NE,NE->N', a, b, precision=precision.of_dtype(dtype),
      preferred_element_type=jnp.float32))


def _unit_if_not(x):
  given = jnp.abs(jnp.sum(x * x, -1, keepdims=True) - 1) <= _GIVEN
  return jnp.where(given, x, unit(x))


def _rounded(x, dtype):
  """x float32 as the kernel's products will see it; its gradient is not rounded."""
  if dtype == 'float32':
    return x
  # A pair of casts would be optimised away (XLA allows excess precision).
  return x + stop_gradient(jax.lax.reduce_precision(x, 8, 7) - x)


def over_widths(loss: Callable[[jax.Array, jax.Array], Result], query: jax.Array,
                passage: jax.Array, pairing: types.Pairing, cfg: config.LossConfig
                ) -> Result:
  """`loss` of (query, passage), or its weighted mean over prefixes of the vectors.

  Padding passages are zeros for it, whatever they hold. By cosine each prefix is
  normalised anew (Kusupati et al. 2022, Matryoshka). Metrics are those of the widest,
  and its losses of each width as 'loss/name@width'.
  """
  axes = mesh.batch_axes()
  real = contrastive.split_rows(pairing.owner, axes) >= 0
  passage = jnp.where(real[:, None], contrastive.split_rows(passage, axes), 0)
  if not cfg.widths:
    return loss(query, passage)
  weights = cfg.width_weights or (1.0,) * len(cfg.widths)
  value, rows = jnp.float32(0), jnp.float32(0)
  metrics, main = {}, f'loss/{cfg.name}'
  for width, weight in zip(cfg.widths, weights, strict=True):
    part = loss(*(_prefix(x, width, cfg) for x in (query, passage)))
    share = weight / sum(weights)
    value, rows = value + part.value * share, rows + part.per_query * share
    if width == max(cfg.widths):
      metrics |= part.metrics
    metrics |= {f'{name}@{width}': part.metrics[name]
                for name in (main, 'loss/accuracy@1') if name in part.metrics}
  return Result(value, rows, metrics | {main: stop_gradient(value)})


def _prefix(x, width, cfg):
  return unit(x[:, :width]) if cfg.similarity == 'cosine' else x[:, :width]
