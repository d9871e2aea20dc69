"""Train, evaluate, run and convert text-embedding models in JAX."""

import importlib
from typing import TYPE_CHECKING

__version__ = '0.2.0'

# Public name -> its module; imported when first asked for, so that reading data
# or a configuration does not load a model.
_PUBLIC = {
    'Config': 'jaxembed.config',
    'Embedder': 'jaxembed.embedder',
    'ModelConfig': 'jaxembed.config',
    'Run': 'jaxembed.train.fit',
    'encode': 'jaxembed.models.encoder',
    'evaluate': 'jaxembed.front',
    'export': 'jaxembed.front',
    'fit': 'jaxembed.train.fit',
    'info_nce': 'jaxembed.losses',
    'init_params': 'jaxembed.models.encoder',
    'latent_pool': 'jaxembed.kernels.latent_pool',
    'masked_lse': 'jaxembed.kernels.contrastive',
    'top_k': 'jaxembed.search',
}
# The same names for type checkers and editors, which run nothing.
__all__ = [
    'Config',
    'Embedder',
    'ModelConfig',
    'Run',
    'encode',
    'evaluate',
    'export',
    'fit',
    'info_nce',
    'init_params',
    'latent_pool',
    'masked_lse',
    'top_k',
]

if TYPE_CHECKING:
  from jaxembed.config import Config, ModelConfig
  from jaxembed.embedder import Embedder
  from jaxembed.front import evaluate, export
  from jaxembed.kernels.contrastive import masked_lse
  from jaxembed.kernels.latent_pool import latent_pool
  from jaxembed.losses import info_nce
  from jaxembed.models.encoder import encode, init_params
  from jaxembed.search import top_k
  from jaxembed.train.fit import Run, fit
else:
  def __getattr__(name: str):
    if name not in _PUBLIC:
      raise AttributeError(f'jaxembed has no {name!r}; it has {", ".join(__all__)}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)
