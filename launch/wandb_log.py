"""Logging of a run's records to Weights & Biases."""

import hashlib
import pathlib

import jax

from jaxembed import config
from jaxembed.files import url
from jaxembed.train import metrics


def on_metrics(project: str | None, cfg: config.Config, workdir: str
               ) -> metrics.OnMetrics | None:
  """Logs every record to `project`; None without one, and beside process 0.

  A resumed run continues its page, which the workdir's path names.

  Raises:
    ValueError: the package is not installed.
  """
  if not project or jax.process_index() > 0:
    return None
  try:
    import wandb  # pyright: ignore[reportMissingImports]: an extra
  except ImportError as e:
    raise ValueError("--wandb_project needs the package wandb: pip install "
                     "'jaxembed[wandb]'; or leave the flag out") from e
  path = url.of(workdir) or str(pathlib.Path(workdir).absolute())
  run = wandb.init(
      project=project, name=cfg.name, config=config.to_dict(cfg), resume='allow',
      id=hashlib.sha256(path.encode()).hexdigest()[:16])
  return lambda step, values: run.log(values, step=step)
