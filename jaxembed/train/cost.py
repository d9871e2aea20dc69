"""FLOPs of an update, from shapes: the one cost model of plans, forecasts and MFU."""

from collections.abc import Iterable
import functools

import jax

from jaxembed import config, data, paths, types
from jaxembed.models import encoder
from jaxembed.train import optim

# The share of a forward pass that is computed again (config.ModelConfig.remat). Of a
# layer whose feed-forward is four times as wide as it is, 'residual' repeats 7 of 12
# products.
_AGAIN = {'none': 0.0, 'dots': 0.0, 'residual': 0.6, 'full': 1.0}


def step_flops(model: config.ModelConfig, stage: config.StageConfig, shards: int = 1
               ) -> float:
  """FLOPs of one update of the stage's largest batch, over all devices."""
  d, passages = stage.data, stage.data.batch_size * (1 + stage.data.num_negatives)
  query, passage = d.query_lengths[-1], d.passage_lengths[-1]
  texts = ((d.batch_size, query), (passages, passage))
  if d.pack:
    texts = ((packed_rows(d, shards), d.pack),)
  elif query == passage:  # they are embedded as one array
    texts = ((d.batch_size + passages, query),)
  total = 0.0
  for rows, length in texts:
    chunks = 0 < stage.token_budget < rows // shards * length
    again = _AGAIN[model.remat] + (_AGAIN[stage.chunk_remat] if chunks else 0.0)
    total += _flops(model, ((rows, length),), again, stage.optim.freeze)
  return total


def model_flops(model: config.ModelConfig, batch: types.Batch, freeze: str = ''
                ) -> float:
  """FLOPs that an update on `batch` needs, padding included: nothing counts twice
  that rematerialisation computes twice. What MFU is measured by."""
  return _flops(model, [mask.shape for mask in batch.masks], 0.0, freeze)


def forward_flops(model: config.ModelConfig, lengths: Iterable[int]) -> float:
  """FLOPs of a forward pass over texts of so many tokens, each of them alone; counted
  as those of an update."""
  kernels = sum(_kernels(model, ''))
  return float(sum(n * (2 * kernels + _attention(model.backbone, n)) for n in lengths))


def _attention(b: config.BackboneConfig, length: int) -> int:
  """FLOPs per token of the scores of a text and of their use."""
  return 4 * b.num_layers * b.num_heads * b.head_dim * length


def _flops(model: config.ModelConfig, texts, again: float, freeze: str) -> float:
  """FLOPs of an update on texts ((rows, length), ...), from shapes.

  Twice a kernel's size per token forward; the same again for the gradient of
  activations, and for that of weights where they move; `again` times the forward
  pass for its repetition (remat, GradCache). Attention scores and their use count
  by length. Pooling heads are left out.
  """
  b, (frozen, trainable) = model.backbone, _kernels(model, freeze)
  total = 0.0
  for n, length in texts:
    attention = _attention(b, length)
    dense = (2 + again) * 2 * frozen + (3 + again) * (2 * trainable + attention)
    total += n * length * dense
  return total


@functools.lru_cache(maxsize=8)  # asked for at every step
def _kernels(model: config.ModelConfig, freeze: str) -> tuple[int, int]:
  """Sizes of the backbone's kernels: (frozen, trainable)."""
  shapes = encoder.param_shapes(model)
  moves = jax.tree.leaves(optim.trainable(shapes, config.OptimConfig(freeze=freeze)))
  b = model.backbone
  kernels = [(x.size * b.experts_used // b.experts if paths.is_expert(path) else x.size,
              move) for (path, x), move in zip(
      paths.flatten(shapes).items(), moves, strict=True) if paths.in_backbone(path)
             and any(of(path) for of in (paths.is_kernel, paths.is_adapter,
                                         paths.is_expert))]
  frozen, trainable = (sum(size for size, move in kernels if move == wanted)
                       for wanted in (False, True))
  return frozen, trainable


def packed_rows(cfg: config.DataConfig, shards: int) -> int:
  """Rows of the largest packed batch, over all shards."""
  each, group = cfg.batch_size // shards, 1 + cfg.num_negatives
  tokens = cfg.query_lengths[-1] + group * cfg.passage_lengths[-1]
  return shards * data.most_rows(each * (1 + group), each * tokens, cfg.pack)
