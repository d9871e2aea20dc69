"""Masked, two-sided log-sum-exp over tiles: see `api.masked_lse`."""

from jaxembed.kernels.contrastive.api import masked_lse
from jaxembed.kernels.contrastive.exchange import pick, split_rows, take
from jaxembed.kernels.contrastive.options import MaskVectors, Options, Sums

__all__ = ['MaskVectors', 'Options', 'Sums', 'masked_lse', 'pick', 'split_rows', 'take']
