"""Embedding matching: vectors that agree with a teacher's.

  loss = mean_i mean_x distance(W z_x + b, t_x)

over the texts x of row i, its query and its passages, that have a vector t of the
teacher's. distance: cosine, 1 - cos; mse, the mean of squares; l2, the length of the
difference. The student is projected up to the teacher's width, `teacher_width`, by W
and b, which are trained beside the model (params['loss']['projection']) and stay
behind when it is exported; 0: both are of one width, and nothing is projected.

jina-embeddings-v5 (cosine, projected up); sentence-transformers' EmbedDistillLoss and
MSELoss.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp

from jaxembed import config, mesh, precision, types
from jaxembed.kernels import contrastive
from jaxembed.losses import checks, options, teacher, vectors
from jaxembed.losses.result import Result

OPTIONS = {'distance': 'cosine', 'teacher_width': 0}
_DISTANCES = 'cosine', 'mse', 'l2'


def check(values: Mapping[str, Any]) -> None:
  """Raises ValueError on values of options that mean nothing."""
  options.require(values, 'distance', values['distance'] in _DISTANCES,
                  f'one of {", ".join(_DISTANCES)}')
  options.require(values, 'teacher_width', values['teacher_width'] >= 0,
                  "the teacher's, or 0")


def init(cfg: config.LossConfig, width: int, key: jax.Array) -> types.Params:
  """The projection from `width` to the teacher's; {} without one."""
  wide = cfg.option('teacher_width')
  if not wide:
    return {}
  return {'projection': {
      'kernel': jax.random.normal(key, (width, wide)) / width**0.5,
      'bias': jnp.zeros((wide,))}}


def embed_match(query: types.Array, passage: types.Array, pairing: types.Pairing,
                cfg: config.LossConfig, params: types.Params) -> Result:
  """The mean distance over rows with a text that has a teacher's vector; see Loss.

  Raises ValueError if there are none, or they are of another width than is projected
  to, and as losses.info_nce does.
  """
  teacher.required(pairing, cfg)
  checks.inputs(query, passage, pairing, cfg)
  _check_width(query, pairing, cfg)
  query, passage, pairing = jax.tree.map(jnp.asarray, (query, passage, pairing))
  axes = mesh.batch_axes()
  owner = mesh.replicate(pairing.owner)
  real = contrastive.split_rows(pairing.owner, axes) >= 0
  query = contrastive.split_rows(query, axes)
  passage = jnp.where(real[:, None], contrastive.split_rows(passage, axes), 0)
  broken = sum(vectors.unusable(x, cfg).sum() for x in (query, passage))
  found = [_distances(x, contrastive.split_rows(t, axes), cfg, params) for x, t in (
      (query, pairing.query_teacher), (passage, pairing.passage_teacher))]
  (of_query, has_query), (of_passage, has_passage) = jax.tree.map(mesh.replicate, found)
  at, has_passage = jnp.maximum(owner, 0), has_passage & (owner >= 0)
  total = jnp.where(has_query, of_query, 0).at[at].add(
      jnp.where(has_passage, of_passage, 0))
  count = has_query.astype(jnp.int32).at[at].add(has_passage.astype(jnp.int32))
  rows = total / jnp.maximum(count, 1)
  value = rows.sum() / jnp.maximum((count > 0).sum(), 1)
  return Result(value, stop_gradient(rows), stop_gradient({
      'loss/embed_match': value, 'loss/nonfinite_rows': broken,
      'loss/rows_without_vectors': (count == 0).sum()}))


def _check_width(query, pairing, cfg):
  wide, wanted = pairing.query_teacher.shape[1], cfg.option('teacher_width')
  if (wanted or query.shape[1]) != wide:
    raise ValueError(
        f"the teacher's vectors are {wide} wide, and "
        + (f'teacher_width is {wanted}' if wanted else
           f"the model's {query.shape[1]}, without a projection")
        + f"; set LossConfig.options to (('teacher_width', {wide}),)")


def _distances(x, t, cfg, params):
  """(Distances [N] of the rows of x and t, which of t are vectors [N])."""
  has = ~jnp.isnan(t).any(-1)
  t = jnp.where(has[:, None], t, 0)
  exact = precision.of_dtype(x.dtype)
  if cfg.option('teacher_width'):
    projection = params['projection']
    x = jnp.einsum('NE,EM->NM', x, projection['kernel'],
                   precision=exact) + projection['bias']
  if cfg.option('distance') == 'cosine':
    return 1 - jnp.einsum('NM,NM->N', vectors.unit(x), vectors.unit(t),
                          precision=exact), has
  square = jnp.square(x - t)
  if cfg.option('distance') == 'mse':
    return square.mean(-1), has
  total = square.sum(-1)
  return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), 0), has
