"""Distributional RoPE: which rotary channels to stretch, told by their angles."""

import numpy as np

_BINS = 360  # of the angles of one channel
_EMPTY = 2.0**-14  # the probability of a bin without an angle: float16's smallest


def factors(freqs: np.ndarray, original: int, target: int) -> tuple[float, ...]:
  """What each frequency is divided by: 1, or target / original.

  freqs: [H/2]. A channel keeps its frequency where the angles of `target` positions are
  then distributed more like those of `original` positions than after division.
  Distributional RoPE (Wu et al. 2024, arXiv 2410.01490).
  """
  scale = target / original
  return tuple(
      1.0 if _divergence(f, f, original, target)
      <= _divergence(f, f / scale, original, target) else scale
      for f in np.asarray(freqs, np.float64))


def _divergence(freq: float, scaled: float, original: int, target: int) -> float:
  """KL(angles of training || angles in use), the mean over the bins."""
  before, after = _angles(freq, original), _angles(scaled, target)
  return float((before * (np.log(before) - np.log(after))).mean())


def _angles(freq: float, positions: int) -> np.ndarray:
  """Shares of the bins.  [_BINS]"""
  angles = (np.arange(positions) * freq) % (2 * np.pi)
  bins = (angles * (_BINS / (2 * np.pi))).astype(np.int64)
  share = np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS) / positions
  return np.where(share > 0, share, _EMPTY)
