"""Training from Python: `fit`, and the run that it returns."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from typing import Any

import jax

from jaxembed import config as config_lib, drop_in, losses, sharding, types
from jaxembed.embedder import Embedder
from jaxembed.evaluation import held_out
from jaxembed.files import url
from jaxembed.train import arguments, loop, metrics, report

# What other trainers call the arguments of `fit`.
_ELSEWHERE = {
    'lr': 'learning_rate', 'train_dataset': 'data', 'train_data': 'data',
    'rows': 'data', 'dataset': 'data', 'train_objectives': 'data',
    'eval_dataset': 'eval_data', 'evaluator': 'eval_data', 'valid_data': 'eval_data',
    'output_dir': 'workdir', 'output_path': 'workdir', 'folder': 'workdir',
    'num_train_epochs': 'epochs', 'num_epochs': 'epochs', 'max_steps': 'steps',
    'per_device_train_batch_size': 'batch_size', 'train_batch_size': 'batch_size',
    'max_seq_length': 'max_length', 'lora_rank': 'lora', 'loss_fn': 'loss',
    'model_name_or_path': 'model', 'cfg': 'config'}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of training that has ended, or stopped: its folder, model and metrics.

  Attributes:
    workdir: the folder or URL, which `Embedder.load` and every launcher open too.
    config: the experiment.
  """

  workdir: pathlib.Path | str
  config: config_lib.Config

  @functools.cached_property
  def model(self) -> Embedder:
    """The trained model; `Embedder.load(run.workdir, step='best')` the best one."""
    mesh = None
    if jax.device_count() > 1:
      shape = self.config.mesh
      mesh = sharding.make_mesh(shape.sizes)
    return Embedder.load(self.workdir, mesh=mesh)

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """Records by step, as metrics.jsonl has them: 'step', 'train/loss', 'eval/...'.

    `pandas.DataFrame(run.metrics)` is a table of them.
    """
    return metrics.read(self.workdir)

  @property
  def scores(self) -> dict[str, float]:
    """The last evaluation of the held-out rows, by name; {} without eval_data."""
    found = [r for r in self.metrics if any(k.startswith('eval/') for k in r)]
    return {k: v for k, v in found[-1].items() if k.startswith('eval/')
            } if found else {}

  def report(self) -> 'Picture':
    """The curves of loss and scores, drawn: a PNG file that notebooks show."""
    return Picture(report.plot(self.workdir, self.config.name))


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG file, which notebooks show."""

  path: pathlib.Path

  def _repr_png_(self) -> bytes:
    return self.path.read_bytes()

  def __fspath__(self) -> str:
    return str(self.path)


def run(cfg: config_lib.Config, workdir: str | os.PathLike, *,
        eval_rows: Mapping[str, Any] | None = None, **options: Any
        ) -> tuple[types.TrainState, config_lib.ModelConfig]:
  """`loop.train` with the held-out scores that `cfg` asks for.

  What launch.train and `fit` both do.

  Args:
    eval_rows: rows of a held-out source of kind 'memory', by its name.
    options: those of loop.train.
  """
  return loop.train(
      cfg, workdir,
      evaluate=held_out.scorer(cfg.eval, cfg.stages, eval_rows), **options)


def _instead(name: str) -> str:
  if name in _ELSEWHERE:
    return f'did you mean {_ELSEWHERE[name]!r}?'
  if places := arguments.paths(name):
    return f'give replace={{{places[0]!r}: ...}}'
  return ''


@drop_in.names_arguments(_instead)
def fit(model: str | os.PathLike | Embedder | config_lib.ModelSpec | None = None,
        data: Any = None, *, workdir: str | os.PathLike | None = None,
        steps: int | None = None, epochs: float | None = None,
        batch_size: int | None = None, learning_rate: float | None = None,
        loss: str | config_lib.LossConfig | losses.Loss | None = None,
        temperature: float | None = None, prompts: Mapping[str, str] | None = None,
        eval_data: Any = None, lora: int | config_lib.LoraConfig | None = None,
        pooling: str | config_lib.PoolingConfig | None = None,
        columns: Sequence[str] | None = None, max_length: int | None = None,
        seed: int | None = None,
        config: config_lib.Config | None = None,
        replace: Mapping[str, Any] | None = None, extend: bool = False,
        log: Callable[[str], None] = print,
        should_stop: Callable[[], bool | int] = lambda: False) -> Run:
  """Trains a model on rows; the same as launch.train with the Config that it makes.

  Called again with the same workdir, it goes on where the run was stopped, Ctrl-C in a
  notebook included, and trains nothing twice.

  Args:
    model: a hub id, a folder, a workdir, an Embedder as it was loaded, or a ModelSpec.
    data: rows in memory (a list of dicts or of tuples (query, positive, negatives...),
      a datasets.Dataset, a table or a dict of columns); the path of a file or folder
      (jsonl, tsv); a SourceConfig; several of these by name; or a Config. Rows have
      the shapes of data.records: sentence-transformers' columns are read as they are.
    workdir: the folder of the run, or its URL (gs://, s3://); None: a temporary folder,
      which is told.
    steps, epochs: how long; without either every row is seen once.
    batch_size: queries a step, over all devices; None: 64, or as many as there are.
    learning_rate: the highest, after warming up; None: 2e-5.
    loss: a name in losses.LOSSES, a LossConfig, or a losses.Loss of your own.
    temperature: divides the cosines; None: 0.05.
    prompts: {'query': TEXT, 'document': TEXT}, in front of the texts; the trained model
      carries them.
    eval_data: held-out rows in any form of `data`, scored as retrieval before, while
      and after training (`Run.scores`).
    lora: the rank of new adapters, or a LoraConfig; None: all parameters are trained.
    pooling: the name of a pooling, or a PoolingConfig; another than the model's is
      drawn anew.
    columns: names of the query's, the positive's and any negatives' columns, for rows
      that are named otherwise.
    max_length: tokens where texts are cut, now and by the trained model; None: where
      the model cuts them, and at 512 while training.
    seed: of the order of rows, new parameters and dropout.
    config: an experiment to change by the arguments, in the place of the choices above.
    replace: other fields of Config by their paths, {'stages[0].optim.name': 'muon'}.
    extend: go on with what is changed of a run under way (train/changes.py).
    log: takes a line of what is told.
    should_stop: once it is true, the state is saved after the step in flight.

  Raises:
    TypeError, ValueError: an argument, the data or the folder do not fit; before any
      work is done.
    FileNotFoundError: no such model or file.
    data.BadRow: a row cannot be used.
  """
  for value in (model, data):
    if isinstance(value, config_lib.Config):
      if config is not None:
        raise TypeError('fit() was given two Configs; leave one out')
      config = value
  found = arguments.experiment(arguments.Arguments(
      model=None if isinstance(model, config_lib.Config) else model,
      data=None if isinstance(data, config_lib.Config) else data,
      steps=steps, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
      loss=loss, temperature=temperature, prompts=prompts, eval_data=eval_data,
      lora=lora, pooling=pooling, columns=columns, max_length=max_length, seed=seed,
      config=config, replace=replace))
  folder: pathlib.Path | str = url.of(workdir) or pathlib.Path(
      workdir or tempfile.mkdtemp(prefix='jaxembed-')).absolute()
  if workdir is None:
    log(f'workdir    {folder}, a temporary folder; give workdir= to keep the run and '
        'to go on with it')
  try:
    run(found.cfg, folder, rows=found.rows, eval_rows=found.eval_rows, loss=found.loss,
        extend=extend, log=log, should_stop=should_stop)
  except BaseException:
    if workdir is None:
      with contextlib.suppress(OSError):  # it holds something
        pathlib.Path(folder).rmdir()
    raise
  return Run(folder, found.cfg)
