"""Pairing of a batch: owners, ids, known positives, temperatures, scores."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxembed import types
from jaxembed.config import DataConfig, SourceConfig
from jaxembed.data import repeats, teacher
from jaxembed.data.choice import Row
from jaxembed.data.ragged import Ragged
from jaxembed.data.records import BadRow
from jaxembed.data.teacher import Teacher
from jaxembed.data.text_ids import text_ids
from jaxembed.data.tokenise import Tokenizer


def pairing(rows: Sequence[Row], queries: np.ndarray, places: np.ndarray,
            query: Ragged, passage: Ragged, cfg: DataConfig, tokenizer: Tokenizer, *,
            known: int = 0, scored: bool = False,
            same: Mapping[int, int] | None = None,
            answers: Sequence[Mapping[int, np.ndarray]] = (),
            teachers: Sequence[Teacher | None] = ()) -> types.Pairing:
  """Which passage belongs to which of `rows`, and which texts are the same.

  Args:
    queries: [Q] the global places of the rows, which `owner` counts.
    places: [C] for every passage place the passage that stands there; -1: none, as of
      a row that is skipped.
    query, passage: the rows' texts, tokenised.
    known: P, room for positives that were not drawn and those of other rows.
    scored: whether passages carry a teacher's scores.
    same: ids that stand for others, as the data says that their texts are one.
    answers: of every source, query ids to the ids of their positives in all its rows.
    teachers: of every source, whose vectors its texts bring.

  Raises:
    BadRow: a row has more than P positives that were not drawn, scores where none are
      told of, or a text that its source's teacher has no vector of.
  """
  for row in rows:
    _check(row, known, scored)
  group = [cfg.sources[r.group] for r in rows]
  filled = places >= 0
  owner = np.repeat(queries.astype(np.int32), len(places) // max(len(rows), 1))
  cut = [cfg.room(s, 'query') for s in group]
  query_id = text_ids(tokenizer, [r.query for r in rows],
                      [r.query_prompt + r.query_suffix for r in rows], cut, query)
  passage_id, others = _passage_ids(rows, passage, cfg, tokenizer, known)
  if known and any(answers):
    repeats.fill(others, [answers[r.group].get(q, ()) for r, q in zip(rows, query_id)],
                  passage_id[places[::len(places) // len(rows)]], passage_id)
  if same:
    stands_for = same.get
    query_id, passage_id, others = (
        np.vectorize(lambda x: stands_for(x, x), otypes=[np.int32])(ids)
        for ids in (query_id, passage_id, others))
  scores = np.array([s for r in rows for s in r.scores], np.float32)
  taught = teacher.of_rows(teachers, rows)
  if taught:
    scores = _with_cosines(scores, rows, *taught)
  temperature = np.array([s.temperature for s in group], np.float32)
  return types.Pairing(
      owner=np.where(filled, owner, -1).astype(np.int32),
      is_positive=_positive(group, len(places)) & filled,
      query_id=query_id,
      passage_id=np.where(filled, passage_id[places], 0).astype(np.int32),
      group=np.array([r.group for r in rows], np.int32),
      in_batch=np.array([s.in_batch and not r.bad for s, r in zip(group, rows)], bool),
      temperature=temperature if any(s.temperature for s in cfg.sources) else None,
      score=np.where(filled, scores[places], np.float32(np.nan)) if scored else None,
      known=others if known else None,
      query_teacher=taught[0] if taught else None,
      passage_teacher=np.where(filled[:, None], taught[1][places], np.float32(np.nan))
      if taught else None)


def _check(row: Row, known: int, scored: bool) -> None:
  """Raises BadRow if a row brings what those read at the start have no room for."""
  if len(row.known) > known:
    raise BadRow(
        f'{row.where}: {1 + len(row.known)} positives, but the rows checked at the '
        f'start have at most {1 + known}, and none may serve as a negative; set '
        f'DataConfig.known_positives to {len(row.known)} or more, or check_rows to '
        'all rows')
  if not scored and not np.isnan(row.scores).all():
    raise BadRow(f'{row.where}: the row brings scores, and those read at the start '
                 'bring none; set DataConfig.check_rows to all rows, or '
                 "score_column='' of the source to leave them out")


def _with_cosines(scores: np.ndarray, rows: Sequence[Row], query: np.ndarray,
                  passage: np.ndarray) -> np.ndarray:
  """`scores` [sum], and the teacher's cosines in rows that bring none of their own."""
  row = np.repeat(np.arange(len(rows)), [len(r.passages) for r in rows])
  own = np.zeros(len(rows), bool)
  own[row[~np.isnan(scores)]] = True
  return np.where(own[row], scores, np.einsum('cm,cm->c', query[row], passage))


def _positive(sources: Sequence[SourceConfig], places: int) -> np.ndarray:
  """[C] bool: each row's first passage, but of scored pairs, which may be unlike."""
  first = np.arange(places) % (places // max(len(sources), 1)) == 0
  return first & ~np.repeat([s.rows == 'scored' for s in sources],
                            places // max(len(sources), 1))


def _passage_ids(rows: Sequence[Row], passage: Ragged, cfg: DataConfig,
                 tokenizer: Tokenizer, room: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids of all passages [sum] and of the other positives of each row [Q,P]."""
  longest = [cfg.room(s, 'passage') for s in cfg.sources]

  def ids(texts: list[tuple[str, Row]], found: Ragged | None = None) -> np.ndarray:
    text = [t for t, _ in texts]
    prompt = [r.passage_prompt for _, r in texts]
    cut = [longest[r.group] for _, r in texts]
    if found is None:
      found = tokenizer.encode(text, prompt, max_length=cut)
    return text_ids(tokenizer, text, prompt, cut, found)

  found = ids([(p, r) for r in rows for p in r.passages], passage)
  known = [(i, k, text) for i, r in enumerate(rows) for k, text in enumerate(r.known)]
  others = np.full((len(rows), room), -1, np.int32)
  if known:
    places = [i for i, _, _ in known], [k for _, k, _ in known]
    others[places] = ids([(text, rows[i]) for i, _, text in known])
  return found, others
