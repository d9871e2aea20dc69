"""Global orthogonal regularisation (GOR): texts of a kind are spread over the sphere.

  m1   = mean_(i != j) s(x_i, x_j)      m2 = mean_(i != j) s(x_i, x_j)^2
  loss = sum over x in (queries, positives) of  mean_weight m1^2 + m2

of the rows that have a positive; it is added to a loss that teaches (LossConfig.plus).

Options: mean_weight: of the first term. above_uniform: of m2 what lies above 1/width,
  the value of vectors spread evenly, counts alone, as in the first paper and in
  sentence-transformers; the gradient is the same until then.

Zhang et al. 2017 (spread-out descriptors); EmbeddingGemma 2025 and jina-embeddings-v5,
which add m2 alone. sentence-transformers' GlobalOrthogonalRegularizationLoss with
aggregation='sum' is this with mean_weight 1 and above_uniform.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, precision, types
from jaxembed.kernels import contrastive
from jaxembed.losses import checks, masks, options, vectors
from jaxembed.losses.result import Result

OPTIONS = {'mean_weight': 0.0, 'above_uniform': False}


def check(values: Mapping[str, Any]) -> None:
  """Raises ValueError on values of options that mean nothing."""
  options.require(values, 'mean_weight', values['mean_weight'] >= 0, '0 or more')


def gor(query: types.Array, passage: types.Array, pairing: types.Pairing,
        cfg: config.LossConfig, params: types.Params) -> Result:
  """The loss of the batch; per_query holds each row's mean of squares, both sides.

  Raises ValueError as losses.info_nce does.
  """
  del params
  checks.inputs(query, passage, pairing, cfg)
  pairing = jax.tree.map(jnp.asarray, pairing)
  return vectors.over_widths(
      functools.partial(_one_width, pairing=pairing, cfg=cfg),
      jnp.asarray(query), jnp.asarray(passage), pairing, cfg)


def _one_width(query, passage, pairing, cfg) -> Result:
  axes = mesh.batch_axes()
  lay = masks.layout(pairing, cfg)
  query, passage, broken = vectors.comparable(query, passage, cfg, axes)
  positive = lay.positives_of(
      passage, axes, contrastive.pick(cfg.exchange, axes, passage))
  sides = [_side(x, lay.valid, cfg.option('above_uniform')) for x in (query, positive)]
  (m1, rows, m2), (n1, more, n2) = sides
  value = m2 + n2 + cfg.option('mean_weight') * (m1**2 + n1**2)
  return Result(value, stop_gradient(rows + more), stop_gradient({
      'loss/gor': value, 'loss/mean_of_queries': m1, 'loss/mean_of_positives': n1,
      'loss/nonfinite_rows': broken}))


def _side(x: jax.Array, valid: jax.Array, above_uniform: bool):
  """(m1 [], each row's mean of squares [Q], m2 []) of the rows x [Q,E] that count."""
  x = jnp.where(contrastive.split_rows(valid, mesh.batch_axes())[:, None], x, 0)
  exact, count = precision.of_dtype(x.dtype), valid.sum()
  others = jnp.maximum(count - 1, 1)
  own = vectors.products(x, x)
  total = mesh.replicate(jnp.einsum('NE->E', x, out_sharding=mesh.spec()))
  m1 = (jnp.sum(total**2) - own.sum()) / jnp.maximum(count * others, 1)
  if x.shape[0] > 2 * x.shape[1]:  # the smaller product of x with itself, [E,E]
    gram = jnp.einsum('NE,NF->EF', x, x, precision=exact, out_sharding=mesh.spec())
    squares = vectors.products(
        jnp.einsum('NE,EF->NF', x, gram, precision=exact), x) - own**2
  else:
    s = jnp.einsum('NE,ME->NM', x, mesh.replicate(x), precision=exact)
    squares = mesh.replicate(jnp.sum(s**2, 1)) - own**2
  rows = squares / others
  m2 = rows.sum() / jnp.maximum(count, 1)
  return m1, rows, jax.nn.relu(m2 - 1 / x.shape[1]) if above_uniform else m2
