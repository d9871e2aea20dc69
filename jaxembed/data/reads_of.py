"""Whether the sources of a mixture bring what a loss reads of their rows."""

from collections.abc import Sequence
from typing import Any

from jaxembed.config import DataConfig, Reads


def check(sources: Sequence[Any], cfg: DataConfig, reads: Reads) -> None:
  """Raises ValueError unless they do, naming the source, and what would help.

  sources: of a data.Mixture.
  """
  for source in sources:
    if source.cfg.rows == 'scored' and not reads.scores:
      raise ValueError(f"source {source.cfg.name!r} has rows='scored', and the loss "
                       "reads no scores; choose LossConfig.name='cosent' or another by "
                       "the scores of pairs, or rows='pairs' with min_score")
    if source.seen.scored and not reads.scores and source.cfg.kind != 'mined':
      raise ValueError(
          f'source {source.cfg.name!r}: {source.seen.scored} of {source.seen.checked} '
          'rows read bring scores of a teacher, and the loss reads none; choose one '
          "that does (LossConfig.name='distill_kl', or LossConfig.plus), or set "
          "score_column='' of the source to leave them out")
    if reads.scores and reads.alone:
      _scores(source, cfg, reads.scores)
    if reads.vectors and reads.alone and not source.teacher:
      raise ValueError(f'source {source.cfg.name!r}: the loss reads the vectors of a '
                       'teacher; name a folder that jaxembed teach wrote as '
                       'SourceConfig.teacher')
  if reads.scores and not reads.alone and not any(
      s.seen.teaching(reads.scores) or s.teacher for s in sources):
    raise ValueError('a loss by the scores of a teacher is added (LossConfig.plus), '
                     'and no source brings any; give rows scores, or leave it out')
  if reads.vectors and not any(s.teacher for s in sources):
    raise ValueError('the loss reads the vectors of a teacher, and no source has one; '
                     'set SourceConfig.teacher')


def _scores(source, cfg: DataConfig, least: int):
  by_scores = (f'source {source.cfg.name!r}: a loss by the scores of a teacher '
               'compares the passages of a row')
  if least > 1 and source.cfg.rows == 'scored':
    raise ValueError(f"{by_scores}, and rows='scored' bring one each; choose "
                     "LossConfig.name='cosent', 'angle' or 'pair_mse'")
  if least > 1 and not cfg.negatives_of(source.cfg):
    raise ValueError(f'{by_scores}, and num_negatives=0 leaves it its positive alone; '
                     'set num_negatives')
  if not source.teacher and not source.seen.teaching(least):
    raise ValueError(
        f'{by_scores}, and of {source.seen.checked} rows read none has '
        f'{"two with scores" if least > 1 else "one with a score"}; give rows '
        'pos_scores and neg_scores, or choose another LossConfig.name')
