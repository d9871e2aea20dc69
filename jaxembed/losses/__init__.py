"""Losses: functions of (embeddings, pairing, config)."""

from jaxembed.losses.info_nce import info_nce
from jaxembed.losses.result import Loss, Result
from jaxembed.losses.table import LOSSES
from jaxembed.losses.temperature import initial_log_scale

__all__ = ['LOSSES', 'Loss', 'Result', 'info_nce', 'initial_log_scale']
