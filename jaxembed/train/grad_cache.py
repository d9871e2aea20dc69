"""GradCache: a batch embedded in chunks, so that activations do not bound its size.

Gao et al. 2021 (GradCache) in JAX's terms: a scan over chunks whose body is
rematerialised. The forward pass keeps embeddings and what a policy asks for; when the
loss's gradient comes back, each chunk is embedded again, with the dropout of the first
time, and its share of the parameters' gradient added. The result is the gradient of the
whole batch, and the loss, which sees all embeddings at once, needs to know nothing.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import sharding, types

# encode(params, tokens [b,T], key or None) -> [b,E]
Encode = Callable[[Any, types.Tokens, jax.Array | None], jax.Array]


def encode_in_chunks(encode: Encode, params: Any, tokens: types.Tokens, *,
                     token_budget: int, key: jax.Array | None = None,
                     policy: Callable[..., bool] | None = None) -> jax.Array:
  """Embeddings [B,E] of tokens [B,T], at most `token_budget` tokens at a time.

  The budget counts tokens per device, padding included. Under a mesh every chunk
  takes equally many of each device's own rows; no row changes its device. Chunk i
  draws its dropout from fold_in(key, i), in the forward pass and again in the
  backward pass; rows that fit the budget together are embedded once. Queries and
  passages are separate calls and may be cut differently. `policy` (of
  jax.checkpoint) says what a chunk keeps beside its embeddings; None: nothing.

  Raises ValueError if a single row exceeds the budget or rows do not split evenly
  over the devices.
  """
  devices = sharding.batch_devices()
  total, length = tokens.ids.shape
  if total % devices:
    raise ValueError(f'{total} rows do not split over {devices} devices; use a '
                     f'multiple of {devices}')
  rows, full, tail = plan(total // devices, length, token_budget)

  def chunk(tokens, i):
    return encode(params, tokens, None if key is None else jax.random.fold_in(key, i))

  if (full, tail) == (1, 0):
    return chunk(tokens, 0)  # all of it is within the budget: nothing to repeat
  cut = full * rows
  by_device = jax.tree.map(sharding.split_devices, tokens)
  stacked = jax.tree.map(lambda x: _to_chunks(x[:, :cut], full), by_device)
  # Inside a scan no common subexpression can undo the rematerialisation.
  body = jax.checkpoint(chunk, prevent_cse=False, policy=policy)
  _, out = jax.lax.scan(
      lambda _, x: (None, body(*x)), None, (stacked, jnp.arange(full)))
  parts = [_from_chunks(out, devices)]
  if tail:
    rest = jax.tree.map(lambda x: sharding.merge_devices(x[:, cut:]), by_device)
    rest = jax.checkpoint(chunk, policy=policy)(rest, full)
    parts.append(sharding.split_devices(rest))
  return sharding.merge_devices(jnp.concatenate(parts, 1))


def plan(rows: int, length: int, token_budget: int) -> tuple[int, int, int]:
  """(rows of a chunk, how many full chunks, rows of a shorter last one or 0).

  As few chunks as the budget allows, then as equal as possible.
  """
  if token_budget < length:
    raise ValueError(
        f'token_budget {token_budget} is less than one row of {length} tokens; raise '
        'it, or shorten the rows')
  chunks = math.ceil(rows / (token_budget // length))
  size = math.ceil(rows / chunks)
  return size, *divmod(rows, size)


# Chunks are cut from the second axis of [devices, rows, ...], so that nothing moves.


def _to_chunks(x, full):
  """[devices, full*rows, ...] -> [full, devices*rows, ...]."""
  devices, cut, *rest = x.shape
  x = jax.lax.reshape(x, (devices, full, cut // full, *rest),
                      out_sharding=sharding.spec(sharding.BATCH))
  return jax.lax.reshape(jnp.swapaxes(x, 0, 1), (full, devices * cut // full, *rest),
                         out_sharding=sharding.spec(None, sharding.BATCH))


def _from_chunks(x, devices):
  """[full, devices*rows, E] -> [devices, full*rows, E]."""
  full, size, width = x.shape
  x = jax.lax.reshape(x, (full, devices, size // devices, width),
                      out_sharding=sharding.spec(None, sharding.BATCH))
  rows = full * size // devices
  return jax.lax.reshape(jnp.swapaxes(x, 0, 1), (devices, rows, width),
                         out_sharding=sharding.spec(sharding.BATCH))
