"""Weights of rows that change while a stage is trained (progressive learning)."""

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, types


def gamma(cfg: config.LossConfig, pairing: types.Pairing) -> jax.Array | float:
  """The exponent of the focal weight at this step.

  Raises ValueError if it follows the steps, and pairing.progress is None.
  """
  if cfg.option('focal_schedule') == 'constant' or not cfg.focal_gamma:
    return cfg.focal_gamma
  return cfg.focal_gamma * _progress(pairing, 'focal_schedule')


def without_hardest(row: jax.Array, valid: jax.Array, cfg: config.LossConfig,
                    pairing: types.Pairing) -> tuple[jax.Array, types.Metrics]:
  """(The losses [Q], 0 in rows above the quantile that cfg's options set, metrics).

  Raises ValueError as `gamma`.
  """
  share = cfg.option('drop_hardest')
  if not share:
    return row, {}
  begun = _progress(pairing, 'drop_hardest') >= cfg.option('drop_from')
  most = jnp.nanquantile(
      jnp.where(valid, stop_gradient(row), jnp.nan), jnp.float32(1 - share))
  dropped = begun & valid & (row > most)
  return jnp.where(dropped, 0, row), {'loss/dropped_rows': dropped.sum()}


def _progress(pairing: types.Pairing, option: str) -> jax.Array:
  if pairing.progress is None:
    raise ValueError(f'the option {option} follows the steps of a stage, and '
                     'pairing.progress is None; give the share of them that is done')
  return jnp.asarray(mesh.replicate(pairing.progress))
