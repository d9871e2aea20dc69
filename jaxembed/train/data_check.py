"""Report on the data of every stage, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
import pathlib
from typing import Any

from jaxembed import config, losses
from jaxembed.data import data_report, examine, overlap
from jaxembed.files import url
from jaxembed.train import stages, start


def run(cfg: config.Config, folder: str, against: Sequence[str] = (),
        log: Callable[[str], None] = print, rows: Mapping[str, Any] | None = None
        ) -> None:
  """Prints the report of each stage; draws lengths into `folder`.check.png.

  Args:
    folder: of the run that is to be; it is not made.
    against: BEIR folders and files of rows whose texts are looked for; the held-out
      pairs of cfg.eval.source are too.
    rows: of sources of kind 'memory', as in loop.train.

  Raises:
    ValueError: rows cannot be used, and a run would end at them.
  """
  url.local(folder, 'give a local --workdir, beside which the picture is drawn')
  cfg, told = stages.with_epochs(config.validate(cfg), rows)
  for line in told:
    log(line)
  known = {path: overlap.evaluation_texts(path) for path in against}
  if cfg.eval.source is not None:
    known[f'eval.source ({cfg.eval.source.name})'] = overlap.source_texts(
        cfg.eval.source, rows)
  tokenizer, reports = start.tokenizer(cfg.model), []
  for i, stage in enumerate(cfg.stages):
    reports.append(examine.examine(stage.data, tokenizer, seed=cfg.seed + i,
                                   against=known, given=rows,
                                   reads=losses.named(stage.loss).reads))
    log(data_report.text(reports[-1], stage.name))
  picture = pathlib.Path(f'{folder.rstrip("/")}.check.png')
  log(f'picture    {data_report.plot(reports, picture)}')
  if bad := sum(r.unusable for r in reports):
    raise ValueError(f'{bad} rows cannot be used, as listed above; mend or remove '
                     "them, or set on_bad_row='skip' of their sources")
