"""An Embedder as MTEB's encoder: mteb.evaluate(MtebModel(embedder), tasks).

The only place that imports mteb, and only when asked for the model's metadata.
"""

from collections.abc import Iterable
import pathlib
import re
from typing import Any

import jax
import numpy as np

from jaxembed import fingerprint, types
from jaxembed.data import prompts
from jaxembed.embedder import Embedder


class MtebModel:
  """Encoder for mteb's runner, by structure; no base class is needed.

  A text's prompt is, in this order: the model's own for the task and side, the
  task, the task's type and side, its type; then, with `template`, the task's
  published instruction put into '{instruction}' (documents of retrieval tasks take
  no instruction); then what Embedder.encode_query, encode_document or, for tasks
  without sides, encode puts in front.
  """

  def __init__(self, embedder: Embedder, name: str | None = None,
               revision: str | None = None, *, template: str = '',
               batch_size: int = 32):
    """`name` is 'org/model', under which mteb files the results of `revision`.

    mteb takes results that it has from its cache, by name and revision. Left out,
    the name is that of the model's folder, and the revision is a fingerprint of all
    that scores depend on: weights, settings, tokenizer, prompts and `template`.
    """
    if name is not None and not re.fullmatch(r'[^/\s]+/[^/\s]+', name):
      raise ValueError(f"name is {name!r}; mteb wants 'organization/model'")
    self.embedder, self._name, self._revision = embedder, name, revision
    self._template, self._batch_size = template, batch_size

  @property
  def name(self) -> str:
    """Name under which mteb files results, 'organization/model'."""
    return self._name or _name(self.embedder)

  @property
  def revision(self) -> str:
    """As given, or the fingerprint of what scores depend on now."""
    return self._revision or fingerprint.of_settings(
        [self.embedder.fingerprint(), self._template])

  def encode(self, inputs: Iterable[dict[str, list[str]]], *, task_metadata: Any,
             hf_split: str, hf_subset: str, prompt_type: Any = None,
             **kwargs: Any) -> np.ndarray:
    """Vectors of all texts of the loader, in order: float32 [n,E]."""
    del hf_split, hf_subset
    texts = [text for batch in inputs for text in batch['text']]
    encode = {'query': self.embedder.encode_query,
              'document': self.embedder.encode_document}.get(
                  _side(prompt_type), self.embedder.encode)
    return encode(
        texts, prompt=self.prompt(task_metadata, prompt_type),
        batch_size=kwargs.get('batch_size') or self._batch_size,
        show_progress_bar=kwargs.get('show_progress_bar', False))

  def prompt(self, task: Any, prompt_type: Any) -> str | None:
    """The text put in front of a task's texts; None leaves it to the Embedder."""
    side = _side(prompt_type)
    for name in (f'{task.name}-{side}', task.name, f'{task.type}-{side}', task.type):
      if name in self.embedder.prompts:
        return self.embedder.prompts[name]
    if self.embedder.prompts.get(side) or not self._template:
      return None
    if side == 'document' and 'Retrieval' in task.type:
      return None
    own = task.prompt.get(side) if isinstance(task.prompt, dict) else task.prompt
    return prompts.render(self._template, own or '') or None

  def similarity(self, embeddings1: types.Array, embeddings2: types.Array
                 ) -> np.ndarray:
    """[n,m]; of two single vectors a scalar, which mteb turns into a float."""
    scores = self.embedder.similarity(embeddings1, embeddings2)
    single = np.ndim(embeddings1) == np.ndim(embeddings2) == 1
    return scores.reshape(()) if single else scores

  def similarity_pairwise(self, embeddings1: types.Array, embeddings2: types.Array
                          ) -> np.ndarray:
    """Similarity row by row.  [n,E], [n,E] -> [n]."""
    return self.embedder.similarity_pairwise(embeddings1, embeddings2)

  @property
  def mteb_model_meta(self) -> Any:
    """mteb's ModelMeta; what only the model's owner can know is None."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    cfg, leaves = self.embedder.cfg, jax.tree.leaves(self.embedder.params)
    return ModelMeta(
        loader=None, name=self.name, revision=self.revision, release_date=None,
        languages=None, n_parameters=sum(x.size for x in leaves),
        memory_usage_mb=sum(x.nbytes for x in leaves) / 2**20,
        max_tokens=cfg.max_length,
        embed_dim=self.embedder.get_embedding_dimension(), license=None,
        open_weights=None, public_training_code=None, public_training_data=None,
        framework=['JAX'], use_instructions=bool(self._template),
        similarity_fn_name=ScoringFunction(self.embedder.similarity_fn_name),
        training_datasets=None)


def _side(prompt_type) -> str:
  return prompt_type.value if prompt_type is not None else ''


def _name(embedder: Embedder) -> str:
  """'jaxembed/FOLDER'; mteb makes a folder of it."""
  folder = pathlib.PurePath(embedder.bundle.source).name
  return 'jaxembed/' + (re.sub(r'[^\w.-]+', '-', folder).strip('.-') or 'model')
