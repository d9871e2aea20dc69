"""Laws of texts that share rows: each has the vector of a row of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxembed.config import PoolingConfig, PrependConfig, RopeScaling
from jaxembed.data import Ragged, pack
from jaxembed.models import encoder
from jaxembed.types import Tokens
from tests.helpers import tiny_encoder
from tests.helpers.tiers import after

encode = jax.jit(encoder.encode, static_argnums=1, static_argnames='attention')


def _packed(tokens: Tokens, width: int):
  """(the texts of `tokens` packed into rows, where each lies)."""
  lengths, pool_from = tokens.mask.sum(1), (tokens.mask & ~tokens.pool).sum(1)
  texts = Ragged(tokens.ids[tokens.mask], np.concatenate([[0], np.cumsum(lengths)]),
                 pool_from, np.zeros(len(lengths), bool))
  first = np.arange(len(lengths) + 1)  # each row a query and its passage: twice
  got, at, _ = pack.share_rows(texts, texts, first, np.arange(len(lengths)), 1,
                               width=width, passages=1, pad_id=0)
  return got, at


@pytest.mark.parametrize('family,mode,pooling', after(2, [
    ('mistral', 'bidirectional', 'mean'), ('modernbert', 'causal', 'mean'),
    ('bert', 'bidirectional', 'mean'), ('mistral', 'causal', 'latent_attention'),
    ('mistral', 'causal', 'mean'), ('modernbert', 'bidirectional', 'mean'),
    ('mpnet', 'causal', 'mean'), ('mpnet', 'bidirectional', 'mean'),
    *(('mistral', 'causal', p) for p in ('cls', 'last', 'weighted_mean', 'max'))]))
def test_texts_that_share_rows_get_the_vectors_of_rows_of_their_own(
    family, mode, pooling):
  cfg, params = tiny_encoder.model(family, pooling=PoolingConfig(
      kind=pooling, latents=8, heads=2, head_dim=8, ff_mult=2))
  tokens = tiny_encoder.tokens(6, 12, [12, 3, 5, 7, 2, 9])
  prompt = np.array([2, 0, 1, 7, 0, 3])[:, None]  # the fourth text is prompt alone
  tokens = dataclasses.replace(
      tokens, pool=tokens.mask & (np.arange(12) >= prompt))
  want = encode(params, cfg, tokens, attention=mode)
  shared, at = _packed(tokens, 24)
  assert len(shared.ids) < 6 and shared.slots == 4
  got = encode(params, cfg, shared, attention=mode)
  # Unit vectors from the same sums in another order.
  np.testing.assert_allclose(got[at], want, atol=5e-6)


@pytest.mark.parametrize('fields,message', [
    ({'pooling': PoolingConfig(kind='layer_attention')}, 'layer_attention'),
    ({'prepend': PrependConfig(token_id=1, start=0, stop=1)}, 'prepended')])
def test_what_needs_a_whole_row_does_not_share_it(fields, message):
  cfg, params = tiny_encoder.model('mistral', **fields)
  with pytest.raises(ValueError, match=f'{message}.*pack=0'):
    encoder.encode(params, cfg, _packed(tiny_encoder.tokens(), 24)[0])


@pytest.mark.parametrize('kind', after(1, ['longrope', 'dynamic']))
def test_frequencies_by_length_are_each_texts_own_in_shared_rows(kind):
  """Texts of 12 and 9 tokens are long; 3, 5, 7 and 2 are not, beside them either."""
  scaling = RopeScaling(kind=kind, factor=4.0, original_positions=8, **(
      {} if kind == 'dynamic' else
      {'short_factors': (1.0, 2.0, 1.0, 1.0), 'long_factors': (4.0, 1.0, 2.0, 3.0)}))
  cfg, params = tiny_encoder.model('mistral')
  cfg = dataclasses.replace(cfg, backbone=dataclasses.replace(
      cfg.backbone, rope_scaling=scaling))
  tokens = tiny_encoder.tokens(6, 12, [12, 3, 5, 7, 2, 9])
  shared, at = _packed(tokens, 24)
  np.testing.assert_allclose(encode(params, cfg, shared)[at],
                             encode(params, cfg, tokens), atol=5e-6)


def test_padding_of_packed_rows_is_no_text():
  """It may be longer than the table; a text that is has no vector, but NaN, under jit,
  where lengths are not known, and is refused elsewhere."""
  cfg, params = tiny_encoder.model('bert')
  row = tiny_encoder.tokens(1, 80, [80])
  def packed(first, second):
    segment = np.full((1, 80), -1, np.int32)
    segment[0, :first], segment[0, first:first + second] = 0, 1
    return Tokens(row.ids, segment >= 0, segment >= 0, segment)
  alone = encode(params, cfg, jax.tree.map(lambda x: x[:, :7], row))
  short = packed(7, 3)
  got = encoder.encode(params, cfg, short)[:2]
  np.testing.assert_allclose(got[:1], alone, atol=5e-6)
  assert np.isfinite(encode(params, cfg, short)).all()
  assert np.isnan(encode(params, cfg, packed(7, 65))[1]).all()
  for made in (np.asarray, jnp.asarray):
    with pytest.raises(ValueError, match='texts of 65 tokens'):
      encoder.encode(params, cfg, jax.tree.map(made, packed(7, 65)))


@pytest.mark.parametrize('family,mode,impl', after(1, [
    (family, mode, impl) for family, mode in (
        ('mistral', 'bidirectional'), ('mistral', 'causal'), ('bert', 'bidirectional'),
        ('modernbert', 'bidirectional'), ('modernbert', 'causal'),
        ('mpnet', 'bidirectional'), ('gemma2', 'causal'))
    for impl in ('blockwise', 'dense')]))
def test_a_text_moves_no_other_text_of_its_row(family, mode, impl):
  """Not its vector, and not its gradient for any parameter, to the last bit."""
  cfg, params = tiny_encoder.model(family, attention_impl=impl)
  segment = np.repeat([0, 1, 2, -1], [9, 5, 6, 4])[None].astype(np.int32)
  row = dataclasses.replace(tiny_encoder.tokens(1, 24, [20]), segment=segment)
  other = dataclasses.replace(
      row, ids=np.where(segment == 1, row.ids % 90 + 3, row.ids))
  kept = np.array([0, 2])

  @jax.jit
  def step(params, tokens):
    def loss(params):
      v = encoder.encode(params, cfg, tokens, attention=mode)
      return v[kept, ::3].sum(), v
    return jax.grad(loss, has_aux=True)(params)

  (grad, before), (moved, after_) = step(params, row), step(params, other)
  np.testing.assert_array_equal(after_[kept], before[kept])
  assert np.abs(after_ - before)[1].max() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, moved, grad)
