"""A plain head in the place of latent or layer attention, for servers without its code.

The mean of the tokens and one dense layer, which every server has, are fitted to the
model's own vectors of given texts: the layer by least squares, then, if steps are
asked for, all weights by matching vectors. The loss of quality is measured on texts
that were held out. Where the head computes the mean, it becomes that, exactly.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxembed import similarity
from jaxembed.batch_runner import BatchRunner
from jaxembed.bundle import Bundle
from jaxembed.config import DenseConfig, PoolingConfig
from jaxembed.models import encoder, lora
from jaxembed.types import Params

# Of the texts, for the figure; at least one.
_HELD_OUT = 0.1
# Ridge, relative to the mean variance of a dimension: what few texts cannot tell.
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Options:
  """How the head is fitted.

  Attributes:
    steps: updates of all weights behind the least squares; 0: none.
    batch_size: texts of an update.
    learning_rate: of Adam, falling to 0 as a cosine.
    seed: of the order of texts.
  """

  steps: int = 0
  batch_size: int = 32
  learning_rate: float = 5e-5
  seed: int = 0


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A model with a plain head.

  Attributes:
    model: mean pooling, a dense layer and what normalises.
    exact: whether it computes what the former head did, to the bit of its mean.
    cosine: mean cosine of a held-out text's new vector with its old one.
    least: the least of them.
    texts: how many were held out.
  """

  model: Bundle
  exact: bool
  cosine: float
  least: float
  texts: int


def fit(model: Bundle, texts: Sequence[str], options: Options = DEFAULTS) -> Fitted:
  """`model` with mean pooling and a dense layer instead of its head.

  Args:
    model: any pooling; adapters are folded into the weights first.
    texts: of the kind that will be encoded, each once behind no prompt; the more the
      better, and more than twice the width of a vector.

  Raises:
    ValueError: too few texts, or a head that is plain already.
    FileNotFoundError: the model has no tokenizer.
  """
  params, cfg = lora.merge(model.params, model.cfg)
  if cfg.pooling.kind == 'mean':
    raise ValueError('the model takes the mean of its tokens already; export it as it '
                     'is')
  texts = list(dict.fromkeys(texts))
  held = max(int(_HELD_OUT * len(texts)), 1)
  if len(texts) - held < 2:
    raise ValueError(f'{len(texts)} different texts are too few to fit a head to; give '
                     f'more than {2 * cfg.embedding_dim}')
  order = np.random.default_rng(options.seed).permutation(len(texts))
  texts = [texts[i] for i in order]
  tokenizer = model.load_tokenizer()
  wanted = _vectors(params, cfg, tokenizer, texts)
  plain = dataclasses.replace(cfg, pooling=PoolingConfig(), lora=None)
  exact = _is_mean(params)
  if exact:
    new = {k: v for k, v in params.items() if k != 'pooling'}
  else:
    plain = dataclasses.replace(plain, dense=(DenseConfig(features=wanted.shape[1]),))
    bare = dataclasses.replace(plain, dense=(), normalize=False)
    backbone = {'backbone': params['backbone']}
    means = _vectors(backbone, bare, tokenizer, texts)
    dtype = params['backbone']['embed']['token'].dtype
    new = {**backbone, 'dense': {'0': jax.tree.map(
        lambda x: jnp.asarray(x, dtype), _least_squares(means[held:], wanted[held:]))}}
    if options.steps:
      new = _match(new, plain, tokenizer, texts[held:], wanted[held:], options)
  found = _vectors(new, plain, tokenizer, texts[:held])
  cosines = (similarity.unit(found) * similarity.unit(wanted[:held])).sum(-1)
  cosine, least = float(cosines.mean()), float(cosines.min())
  note = _note(cfg.pooling.kind, exact, len(texts) - held, held, options.steps, cosine,
               least)
  card = {**model.card, 'notes': [*model.card.get('notes', ()), note]}
  return Fitted(dataclasses.replace(model, params=new, cfg=plain, card=card, base='',
                                    original=None), exact, cosine, least, held)


def _note(kind: str, exact: bool, seen: int, held: int, steps: int, cosine: float,
          least: float) -> str:
  """What a card says of the change."""
  head = kind.replace('_', ' ')
  if exact:
    return f'Its {head} is the mean of its tokens, and written as that.'
  trained = f' and trained for {steps} steps' if steps else ''
  return (f'Its {head} is replaced by the mean of its tokens and a dense layer, which '
          f'need no code of their own:\nfitted to the vectors of {seen} texts{trained}.'
          f' On {held} other texts the mean cosine of new and old\nvectors is '
          f'{cosine:.4f}, the least {least:.4f}.')


def _is_mean(params: Params) -> bool:
  """Whether nothing that the head adds to a token's state can be other than 0."""
  head = params.get('pooling', {})
  added = [head.get('out'), head.get('mlp', {}).get('down')]
  return all(x is not None and not any(
      np.asarray(leaf).any() for leaf in jax.tree.leaves(x)) for x in added)


def _vectors(params, cfg, tokenizer, texts) -> np.ndarray:
  run = BatchRunner(params, cfg, tokenizer, None)
  return np.asarray(run.vectors(texts, '', 32, cfg.embedding_dim, False))


def _least_squares(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
  """kernel [D,E] and bias [E] of the ridge regression of y / |y| on x."""
  x, y = x.astype(np.float64), similarity.unit(y.astype(np.float64))
  mean, target = x.mean(0), y.mean(0)
  centred = x - mean
  gram = centred.T @ centred
  gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
  kernel = np.linalg.solve(gram, centred.T @ (y - target))
  return {'kernel': kernel, 'bias': target - mean @ kernel}


def _match(params, cfg, tokenizer, texts, wanted, options: Options) -> Params:
  """`params` after updates that bring vectors nearer to `wanted`: 1 - cosine."""
  ragged = tokenizer.encode(texts, max_length=cfg.max_length, keep_empty=True)
  usable = np.flatnonzero(ragged.lengths > 0)
  target, rng = similarity.unit(wanted), np.random.default_rng(options.seed)
  tx = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps))

  def loss(params, tokens, target):
    found = encoder.unit(encoder.encode(params, cfg, tokens))
    return 1 - (found * target).sum(-1).mean()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, state, tokens, target):
    value, grads = jax.value_and_grad(loss)(params, tokens, target)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  params = jax.tree.map(jnp.array, params)  # its own: the model's stay
  state = tx.init(params)
  for _ in range(options.steps):
    rows = rng.choice(usable, options.batch_size, replace=len(usable)
                      < options.batch_size)
    part = ragged.take(rows)
    width = min(-(-int(part.lengths.max()) // 32) * 32, cfg.max_length)
    params, state, value = update(params, state, tokenizer.pad(part, width),
                                  target[rows])
  if not jnp.isfinite(value):
    raise ValueError(f'the loss is {value}; choose a smaller learning_rate')
  return params
