"""Temperature of a loss: fixed, learned within a range, or one per row."""

import math

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from jaxembed import config, mesh, types
from jaxembed.config.loss import TEMPERATURES


def initial_log_scale(cfg: config.LossConfig) -> jax.Array:
  """The parameter of a learned temperature: log(1/temperature), [] float32."""
  return jnp.float32(-math.log(cfg.temperature))


def scale(cfg: config.LossConfig, log_scale: jax.Array | None = None
          ) -> tuple[jax.Array, jax.Array]:
  """(1/temperature [] float32, whether it was clamped [] bool).

  Raises ValueError if the config and the presence of `log_scale` disagree.
  """
  if cfg.learn_temperature != (log_scale is not None):
    raise ValueError(
        f'learn_temperature is {cfg.learn_temperature} but log_scale was '
        f'{"not " if log_scale is None else ""}given; they go together')
  if log_scale is None:
    return jnp.float32(1 / cfg.temperature), jnp.zeros((), bool)
  high = math.log(cfg.max_scale)
  clamped = (log_scale < 0) | (log_scale > high) | ~jnp.isfinite(log_scale)
  return jnp.exp(clamp(log_scale, 0.0, high)), clamped


def check(temperatures: types.Array | None) -> None:
  """Raises ValueError, outside jit, on rows' temperatures that are out of range."""
  if temperatures is None or isinstance(temperatures, Tracer):
    return
  low, high = TEMPERATURES
  x = np.asarray(temperatures)
  fits = (x == 0) | ((x >= np.float32(low)) & (x <= np.float32(high)))
  if bad := np.flatnonzero(~fits).tolist():
    raise ValueError(
        f'pairing.temperature is {x[bad[0]]} in row {bad[0]} ({len(bad)} such rows); '
        f'give 0 for the common one, or {low:g} to {high:g}')


def of_rows(common: jax.Array, temperature: jax.Array | None) -> jax.Array:
  """1/temperature of each row, [Q]: its own, or `common` where that is 0.

  [] `common` itself if temperature is None. NaN where it is NaN or below 0.
  """
  if temperature is None:
    return common
  temperature = mesh.replicate(temperature)
  common_holds = temperature == 0
  own = jnp.where(common_holds, 1, temperature)
  return jnp.where(common_holds, common, 1 / jnp.where(own > 0, own, jnp.nan))


@jax.custom_vjp
def clamp(x: jax.Array, low: float, high: float) -> jax.Array:
  """x clipped to [low, high]; outside, only gradients that lead back in pass. NaN
  stays, and is seen."""
  return jnp.clip(x, low, high)


def _clamp_fwd(x, low, high):
  return clamp(x, low, high), (x, low, high)


def _clamp_bwd(residuals, ct):
  x, low, high = residuals
  # Descent moves against ct: above the range only ct > 0 leads back.
  leads_out = ((x >= high) & (ct < 0)) | ((x <= low) & (ct > 0))
  return jnp.where(leads_out, 0, ct), None, None


clamp.defvjp(_clamp_fwd, _clamp_bwd)
