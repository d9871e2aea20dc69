"""Train, evaluate, run and convert text-embedding models in JAX."""

import importlib

# Public name -> its module; imported when first asked for, so that reading data
# or a configuration does not load a model.
_PUBLIC = {
    'Config': 'jaxembed.config',
    'Embedder': 'jaxembed.embedder',
    'ModelConfig': 'jaxembed.config',
    'encode': 'jaxembed.models.encoder',
    'info_nce': 'jaxembed.losses',
    'init_params': 'jaxembed.models.encoder',
    'latent_pool': 'jaxembed.kernels.latent_pool',
    'masked_lse': 'jaxembed.kernels.contrastive',
    'top_k': 'jaxembed.search',
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'jaxembed has no {name!r}; it has {", ".join(__all__)}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)
