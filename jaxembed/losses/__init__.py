"""Losses: functions of (embeddings, pairing, config)."""

from jaxembed.losses.info_nce import info_nce
from jaxembed.losses.result import Loss, Named, Result
from jaxembed.losses.table import LOSSES, named
from jaxembed.losses.temperature import initial_log_scale

__all__ = ['LOSSES', 'Loss', 'Named', 'Result', 'info_nce', 'initial_log_scale',
           'named']
