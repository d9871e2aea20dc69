"""Attention of token states: the pattern of who sees whom, and its implementations."""

from jaxembed.kernels.attention.api import IMPLS, SHORT, Call, attend, choose
from jaxembed.kernels.attention.distant import Distant
from jaxembed.kernels.attention.pattern import ATTENTION, Pattern, by_row

__all__ = ['ATTENTION', 'IMPLS', 'SHORT', 'Call', 'Distant', 'Pattern', 'attend',
           'by_row', 'choose']
