"""Head over pairs of vectors: Distilled Sentence Embedding (DSE).

  score(u, v) = w relu(W [u, v, u v, |u - v|] + b) + c

for the vectors u of a query and v of a passage. It is trained beside the model
(params['loss']['pair_head']) and stays behind when that is exported: what the model
keeps are vectors from which a small network tells the teacher's score. For vectors that
are searched, compare them themselves (head '').

Options: head: '' or concat; hidden: the width of W's output. No temperature divides a
head's scores, and it reads whole vectors.

Barkan et al. 2020.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import config, mesh, precision, types
from jaxembed.losses import options
from jaxembed.losses.scored import Scored

OPTIONS = {'head': '', 'hidden': 512}


def check(values: Mapping[str, Any]) -> None:
  """Raises ValueError on values of options that mean nothing."""
  options.require(values, 'head', values['head'] in ('', 'concat'), "'' or 'concat'")
  options.require(values, 'hidden', values['hidden'] >= 1, '1 or more')


def init(cfg: config.LossConfig, width: int, key: jax.Array) -> types.Params:
  """The head's parameters for vectors of `width`; {} without one."""
  if not cfg.option('head'):
    return {}
  first, second = jax.random.split(key)
  hidden = cfg.option('hidden')
  return {'pair_head': {
      'kernel': jax.random.normal(first, (4 * width, hidden)) / (4 * width)**0.5,
      'bias': jnp.zeros((hidden,)),
      'out': jax.random.normal(second, (hidden,)) / hidden**0.5,
      'out_bias': jnp.zeros(())}}


def scores(x: Scored) -> jax.Array:
  """[C], of every passage and its row's query."""
  head, exact = x.params['pair_head'], precision.of_dtype(x.query.dtype)
  u, v = x.theirs, x.passage
  both = jnp.concatenate([u, v, u * v, jnp.abs(u - v)], 1)
  hidden = jax.nn.relu(jnp.einsum('CE,EH->CH', both, head['kernel'], precision=exact)
                       + head['bias'])
  return mesh.replicate(jnp.einsum(
      'CH,H->C', hidden, head['out'], precision=exact)) + head['out_bias']
