"""Latent-attention pooling; `latent_pool` picks the implementation."""

from jaxembed.kernels.latent_pool.api import latent_pool, latent_pool_packed
from jaxembed.kernels.latent_pool.fold import Folded, fold_latents

__all__ = ['Folded', 'fold_latents', 'latent_pool', 'latent_pool_packed']
