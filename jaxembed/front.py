"""Functions of a model for Python users, whatever holds it: `evaluate`, `export`."""

from collections.abc import Sequence
import os
from typing import Any

from jaxembed import bundle, drop_in, sharding
from jaxembed.bundle import Bundle
from jaxembed.convert import card, exporters
from jaxembed.embedder import Embedder
from jaxembed.evaluation import metrics, tasks


@drop_in.names_arguments()
def evaluate(model: str | os.PathLike | Embedder, data: Any, task: str = 'pairs', *,
             split: str = 'test', cutoffs: Sequence[int] = metrics.CUTOFFS,
             batch_size: int = 32, truncate_dim: int | None = None,
             drop_same_id: bool = True, query_prompt: str | None = None,
             query_prompt_name: str | None = None, document_prompt: str | None = None,
             document_prompt_name: str | None = None, prompt: str | None = None,
             prompt_name: str | None = None) -> dict[str, float]:
  """Figures of a model on a task, by name; the same as launch.evaluate.

  Args:
    model: an Embedder, or what `Embedder.load` reads.
    data: of the task pairs: held-out rows in any form that `fit` takes, each query of
      which ranks the positives of all; of the others see evaluation.tasks.run.
    task: pairs, retrieval, sts, classification or clustering.
    split: which qrels or rows of a folder.
    cutoffs: ranks to cut at (pairs, retrieval).
    batch_size: as in Embedder.encode.
    truncate_dim: use the first so many dimensions.
    drop_same_id: leave the document that has the query's id out of its ranking, as
      BEIR does (retrieval).
    query_prompt, query_prompt_name, document_prompt, document_prompt_name: in front of
      the two sides; None: the model's own prompts.
    prompt, prompt_name: the same for tasks without sides.

  Raises:
    ValueError: an option that means nothing for the task, or data that cannot be
      scored.
    FileNotFoundError: no such model or file.
  """
  options = tasks.Options(
      split=split, cutoffs=cutoffs, batch_size=batch_size, truncate_dim=truncate_dim,
      drop_same_id=drop_same_id, query_prompt=query_prompt,
      query_prompt_name=query_prompt_name, document_prompt=document_prompt,
      document_prompt_name=document_prompt_name, prompt=prompt, prompt_name=prompt_name)
  if not isinstance(model, Embedder):
    options.check(task)
    model = Embedder.load(_checked(model), mesh=sharding.mesh_of_several())
  return tasks.run(task, model, data, options)


@drop_in.names_arguments()
def export(model: str | os.PathLike | Embedder | Bundle, folder: str | os.PathLike,
           format: str = 'sentence-transformers', base: str = '', *,
           facts: card.Facts = card.NOTHING, **options: Any) -> exporters.Report:
  """Writes a model to the new `folder`, checked; the same as launch.convert.

  Args:
    model: an Embedder, or what `Embedder.load` reads.
    format: sentence-transformers, sentence-transformers-new, onnx, static, huggingface,
      nv-embed or peft (exporters.export).
    base: of peft, the folder or hub id of the weights beneath the adapters, where the
      model does not know it.
    facts: licence, languages, scores and notes for the card.
    options: of the format: int8 (onnx), dims (static).

  Returns:
    What the format's check found; 'told' is one line for people.

  Raises:
    FileExistsError: the folder exists; nothing is touched.
    ValueError: the format cannot hold this model, or its check failed; nothing is left
      behind.
  """
  if isinstance(model, Embedder):
    model = model.to_bundle()
  elif not isinstance(model, Bundle):
    model = bundle.open(_checked(model))
  return exporters.export(model, folder, format, base, facts=facts, **options)


def _checked(model: Any) -> str | os.PathLike:
  if not isinstance(model, str | os.PathLike):
    raise TypeError(f'model is {type(model).__name__}; give a jaxembed.Embedder, a hub '
                    'id or a folder')
  return model
