"""Self Positioning: where to stand between fine-tuned models, learned on few rows.

Models trained on one task each span a space of task vectors. A position in it is an
angle per further model and one length,
  theta = base + length u_n,  u_1 = v_1,  u_k = slerp(u_{k-1}, v_k; share_{k-1}),
and these n numbers are learned by SGD on rows of all tasks, by the training loss
(arXiv 2410.15035; learning rate, steps and batch size are choices of ours).
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxembed import config, data, paths
from jaxembed.bundle import Bundle
from jaxembed.merging import merge, slerp
from jaxembed.merging.arithmetic import weighted
from jaxembed.train import step as train_step
from jaxembed.types import Array, Params

# Vectors twice as long as those of training are as far as the length may go.
_LONGEST = 2.0
# Batches whose mean loss is told, before and after.
_TOLD = 8

Loss = Callable[[Params, Any], Array]  # (parameters, batch) -> [] float32


@dataclasses.dataclass(frozen=True)
class Options:
  """How a position is learned.

  Attributes:
    steps: updates, one batch each.
    learning_rate: of Adam, on logits of shares and length; it falls to 0 as a cosine.
    shares: where the folds start, one for each model but the first; (): equal weights.
    length: where the length starts, between 0 and 2.
  """

  steps: int = 500
  learning_rate: float = 1e-2
  shares: tuple[float, ...] = ()
  length: float = 1.0


@dataclasses.dataclass(frozen=True)
class Position:
  """A learned position.

  Attributes:
    model: the merged model.
    shares: [n-1], of the folds.
    length: factor on the merged task vector.
    weights: [n], of the task vectors.
    before, after: mean loss over the first batches at the start and at the end.
  """

  model: Bundle
  shares: tuple[float, ...]
  length: float
  weights: tuple[float, ...]
  before: float
  after: float

  @property
  def told(self) -> str:
    """One line for people."""
    if not self.shares or np.isnan(self.after):
      return 'the models are equal; there is no position between them to learn'
    return (f'shares {", ".join(f"{s:.3f}" for s in self.shares)}, length '
            f'{self.length:.3f}; loss on the probe {self.before:.4f} at the start, '
            f'{self.after:.4f} now')


def probe(model: Bundle, files: Sequence[str], batch_size: int, length: int = 64
          ) -> tuple[Iterable[Any], Loss]:
  """Batches of one task each, all tasks in equal shares, and the contrastive loss.

  Args:
    model: its tokenizer and configuration are used.
    files: of training rows, any form that SourceConfig reads; one a task.
    batch_size: rows of a batch.
    length: tokens that texts are cut to.

  Raises:
    BadRow: a row cannot be used. ValueError: the model has no tokenizer.
  """
  length = min(length, model.cfg.max_length)
  stage = config.StageConfig(data=config.DataConfig(
      sources=[config.SourceConfig(name=f'task{i}', path=file)
               for i, file in enumerate(files)],
      batch_size=batch_size, homogeneous=True, query_lengths=(length,),
      passage_lengths=(length,)))
  cfg = dataclasses.replace(model.cfg, lora=None)

  def loss(params: Params, batch: Any) -> Array:
    return train_step.loss_and_metrics(params, batch, cfg, stage,
                                       jax.random.key(0))[0]

  rows = data.batches(stage.data, model.load_tokenizer(), seed=0)
  return (batch for batch, _ in rows), loss


def learn(models: Sequence[Bundle], base: Bundle, on: tuple[Iterable[Any], Loss],
          options: Options = Options()) -> Position:
  """The position that the loss is least at, found by Adam.

  All models and the base are held on the device, and one more for the sum.

  Args:
    models: two or more, trained from `base`; texts are read as by the first.
    base: where they began.
    on: batches (at least one; used in turn, again from the start if they end) and the
      loss, as `probe` gives them.
    options: starts and learning.

  Raises:
    ValueError: as merge.merge; fewer than two models; a start out of range; a loss
      that is not finite.
  """
  shares = _start(len(models), options)
  every = merge.plain(models, base)
  trees = [paths.flatten(m.params) for m in every]
  if _equal(trees[:-1]):
    ones = np.eye(len(models))[0]
    return _placed(every, trees, shares, 1.0, ones, (np.nan, np.nan))
  vectors = [{path: jnp.asarray(x, jnp.float32) - jnp.asarray(trees[-1][path],
                                                              jnp.float32)
              for path, x in tree.items()} for tree in trees[:-1]]
  gram = _gram(vectors)
  start = {k: jnp.asarray(x, jnp.float32) for k, x in trees[-1].items()}

  def loss_of(scalars, batch):
    weights = _weights(scalars, gram)
    return on[1](paths.unflatten({
        path: x + sum(w * v[path] for w, v in zip(weights, vectors))
        for path, x in start.items()}), batch)

  scalars = {'shares': jax.scipy.special.logit(jnp.asarray(shares, jnp.float32)),
             'length': jax.scipy.special.logit(jnp.float32(options.length / _LONGEST))}
  batches, first = _repeated(on[0])
  value = jax.jit(loss_of)
  before = float(np.mean([value(scalars, b) for b in first]))
  scalars = _descend(loss_of, scalars, batches, options)
  after = float(np.mean([value(scalars, b) for b in first]))
  weights = np.asarray(_weights(scalars, gram), np.float64)
  return _placed(every, trees, np.asarray(jax.nn.sigmoid(scalars['shares'])),
                 float(_length(scalars)), weights, (before, after))


def _start(count: int, options: Options) -> Sequence[float]:
  if count < 2:
    raise ValueError('a position is between models; name two or more')
  shares = options.shares or slerp.shares([1.0] * count)
  if len(shares) != count - 1 or not all(0 < s < 1 for s in shares):
    raise ValueError(f'shares {list(shares)} must be {count - 1} numbers between 0 and '
                     '1, one for each model but the first')
  if not 0 < options.length < _LONGEST:
    raise ValueError(f'length {options.length} must lie between 0 and {_LONGEST}')
  return shares


def _equal(trees) -> bool:
  return all(np.array_equal(np.asarray(tree[path]), np.asarray(x))
             for tree in trees[1:] for path, x in trees[0].items())


def _gram(vectors) -> jax.Array:
  return jnp.array([[sum(jnp.vdot(a[path], b[path]) for path in a) for b in vectors]
                    for a in vectors])


def _length(scalars) -> jax.Array:
  return _LONGEST * jax.nn.sigmoid(scalars['length'])


def _weights(scalars, gram: jax.Array) -> jax.Array:
  """Weights [n] of the task vectors."""
  return _length(scalars) * slerp.coefficients(
      gram, jax.nn.sigmoid(scalars['shares']), jnp)


def _repeated(batches: Iterable[Any]) -> tuple[Iterable[Any], list[Any]]:
  """The batches without an end, and the first of them."""
  stream = iter(batches)
  first = list(itertools.islice(stream, _TOLD))
  if not first:
    raise ValueError('the probe has no batch; give it rows')
  if len(first) < _TOLD:  # all there are
    return itertools.cycle(first), first
  return itertools.chain(first, stream, itertools.cycle(first)), first


def _descend(loss_of, scalars, batches, options: Options):
  """The scalars after options.steps updates."""
  tx = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps))

  @jax.jit
  def update(scalars, state, batch):
    value, grads = jax.value_and_grad(loss_of)(scalars, batch)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(scalars, updates), state, value

  state = tx.init(scalars)
  for number, batch in enumerate(itertools.islice(batches, options.steps), 1):
    scalars, state, value = update(scalars, state, batch)
    if not jnp.isfinite(value):
      raise ValueError(f'the loss of update {number} is {value}; look at the rows of '
                       'the probe, and at the models')
  return scalars


def _placed(every, trees, shares, length: float, weights, losses) -> Position:
  params = {path: merge.mapped(path, [t[path] for t in trees],
                               lambda x: weighted(x[:-1], x[-1], weights))
            for path in trees[0]}
  return Position(merge.made(every[:-1], params), tuple(map(float, shares)), length,
                  tuple(map(float, weights)), *losses)
