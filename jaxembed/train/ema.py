"""Exponential moving average (EMA) of the trained parameters.

What is evaluated, handed to the next stage and exported is their mean over the
last updates, about 1 / (1 - decay) of them: less noise than the last update's, at
no cost in steps (Polyak and Juditsky 1992).
"""

import jax
import jax.numpy as jnp

from jaxembed import types


def init(trained: types.Params) -> types.Params:
  """float32 copies."""
  return jax.tree.map(lambda x: jnp.array(x, jnp.float32), trained)


def update(means: types.Params, trained: types.Params, count: types.Array, decay: float
           ) -> types.Params:
  """The means after update number `count` ([] int32, from 1) of a stage.

  decay <- min(decay, (1 + count) / (10 + count)): early means forget where the
  stage began.
  """
  keep = jnp.minimum(decay, (1 + count) / (10 + count)).astype(jnp.float32)
  return jax.tree.map(
      lambda mean, x: keep * mean + (1 - keep) * x.astype(jnp.float32),
      means, trained)
