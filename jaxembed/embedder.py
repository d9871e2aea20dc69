"""Embedder: texts to vectors, with the calls of SentenceTransformer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal, overload
import warnings

import jax
import numpy as np

from jaxembed import (
  batch_runner,
  bundle,
  checkpoint,
  drop_in,
  fingerprint,
  memory as memory_forecast,
  quantize,
  similarity,
  texts,
  types,
)
from jaxembed.bundle import Bundle
from jaxembed.convert import exporters, to_torch
from jaxembed.data import tokenise

# Texts tokenised, sorted and batched at a time: enough for near-perfect batches,
# little enough that the host keeps ahead of the device in bounded memory.
_CHUNK = 16384
_MISSING: Any = object()  # an argument that was not given
_Texts = str | Iterable[str]
# What may be set beside the properties below.
_ATTRIBUTES = ('bundle', 'params', 'cfg', 'tokenizer', 'mesh', 'prompts',
               'default_prompt_name', 'folder', 'report', 'shapes')


class Embedder:
  """A model with its tokenizer and prompts.

  Attributes:
    cfg: its ModelConfig; `cfg.max_length`, or max_seq_length, is where texts are cut.
    prompts: texts to put in front, by name.
    default_prompt_name: which of them `encode` uses when told nothing.
    similarity_fn_name: cosine, dot, euclidean or manhattan.
    truncate_dim: dimensions that `encode` keeps; None: all.
    bundle: the model as it was opened (jaxembed/bundle.py).
    folder: where the backbone's config.json lies; None for parts put together.
    report: EncodeReport of the last `encode`; of nothing before.
    shapes: (rows, tokens) of batches so far; new batches prefer them to others.
  """

  def __init__(self, model: Bundle, *, mesh: jax.sharding.Mesh | None = None,
               tokenizer: tokenise.Tokenizer | None = None):
    """Takes a model; `load` opens one from a folder.

    Args:
      mesh: shares rows over its devices (sharding.make_mesh()); the parameters must
        live there. None: one device.
      tokenizer: instead of the one in the model's folder.

    Raises:
      FileNotFoundError: the model has no tokenizer, and none is given.
      ValueError: a tokenizer of another model.
    """
    tokenizer = tokenizer or model.load_tokenizer()
    tokenizer.check_table(model.cfg.backbone.vocab_size)
    self.bundle, self.tokenizer, self.mesh = model, tokenizer, mesh
    self.params, self.cfg = model.params, model.cfg
    self.prompts = dict(model.prompts)
    self.default_prompt_name = model.default_prompt_name
    self.similarity_fn_name = model.similarity_fn_name
    self.truncate_dim = model.truncate_dim
    self.folder = model.config_folder
    self.report, self.shapes = batch_runner.EncodeReport(), set[tuple[int, int]]()
    self.memory.check()

  @classmethod
  def load(cls, path: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None,
           dtype: str | None = None, step: checkpoint.Step = None,
           prompts: Mapping[str, str] | None = None,
           default_prompt_name: str | None = None) -> 'Embedder':
    """Reads a jaxembed workdir, or the folder of a sentence-transformers model, a
    Hugging Face model or a PEFT adapter.

    A name that is no folder is looked up on the Hugging Face hub. `dtype`
    (float32, bfloat16 or float16) is that of parameters and activations; None
    keeps a workdir's own, and means float32 for a folder. NV-Embed folders bring
    their own rules for the end of a text and for instructions.

    Args:
      step: of a workdir, the checkpoint or 'best'; None: the newest.
      prompts: by name, in the place of the model's own and beside its others.
      default_prompt_name: in the place of the model's own.

    Raises:
      FileNotFoundError: neither of these, or no such checkpoint.
      ValueError: a damaged checkpoint (use another step); tensors missing, left over
        or mis-shaped; or a tokenizer of another model.
    """
    model = bundle.open(path, mesh=mesh, dtype=dtype, step=step)
    return cls(model.with_prompts(prompts or {}, default_prompt_name), mesh=mesh)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the new folder `path` in the layout of sentence-transformers.

    `Embedder.load` and `SentenceTransformer` read it. LoRA adapters are merged. It
    appears once torch has computed the same vectors from it (convert/exporters.py),
    for which torch and sentence-transformers are needed.
    """
    exporters.export(self.to_bundle(), path)

  def to_bundle(self) -> Bundle:
    """The model as it stands now, with the attributes that were set."""
    before = self.bundle
    same = self.cfg == before.cfg and self.params is before.params
    return dataclasses.replace(
        before, params=self.params, cfg=self.cfg, prompts=self.prompts,
        default_prompt_name=self.default_prompt_name, truncate_dim=self.truncate_dim,
        similarity_fn_name=self.similarity_fn_name,
        original=before.original if same else None)

  save_pretrained = save  # sentence-transformers' name

  @property
  def embedding_dim(self) -> int:
    """E, the width of what `encode` returns without truncate_dim."""
    return self.cfg.embedding_dim

  def get_embedding_dimension(self) -> int:
    """The width of what `encode` returns: E, or the attribute truncate_dim."""
    return self.truncate_dim or self.embedding_dim

  def width(self, truncate_dim: int | None = None) -> int:
    """The width of what `encode` returns with this truncate_dim.

    Raises:
      ValueError: it is outside 1 to E.
    """
    return (self.get_embedding_dimension() if truncate_dim is None else
            texts.check_dim(truncate_dim, self.embedding_dim))

  get_sentence_embedding_dimension = get_embedding_dimension  # its older name

  @property
  def max_seq_length(self) -> int:
    """The tokens of a text, specials included, beyond which it is cut."""
    return self.cfg.max_length

  @max_seq_length.setter
  def max_seq_length(self, tokens: int) -> None:
    texts.check_count('max_seq_length', tokens)
    table = self.cfg.backbone.max_positions
    if self.cfg.backbone.position == 'learned' and tokens > table:
      raise ValueError(f'max_seq_length is {tokens}, but the model has embeddings of '
                       f'{table} positions; choose {table} or less')
    self.cfg = dataclasses.replace(self.cfg, max_length=int(tokens))
    self.memory.check()

  def get_max_seq_length(self) -> int:
    """The attribute max_seq_length, as a method."""
    return self.max_seq_length

  @property
  def truncate_dim(self) -> int | None:
    """The dimensions that `encode` keeps when not told; None: all."""
    return self._truncate_dim

  @truncate_dim.setter
  def truncate_dim(self, dim: int | None) -> None:
    self._truncate_dim = (
        None if dim is None else texts.check_dim(dim, self.embedding_dim))

  @contextlib.contextmanager
  def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
    """Sets `truncate_dim` for the body of a with statement."""
    before, self.truncate_dim = self.truncate_dim, truncate_dim
    try:
      yield
    finally:
      self.truncate_dim = before

  @property
  def similarity_fn_name(self) -> str:
    """cosine, dot, euclidean or manhattan."""
    return self._similarity_fn_name

  @similarity_fn_name.setter
  def similarity_fn_name(self, name: str | None) -> None:
    self._similarity_fn_name = similarity.checked(
        'cosine' if name is None else name)

  @property
  def memory(self) -> memory_forecast.Forecast:
    """What encoding needs of the device, and how many texts of a length fit a step."""
    return memory_forecast.forecast(self.cfg, self.params, mesh=self.mesh)

  @property
  def device(self) -> str:
    """Where the model computes, as torch names it: cpu, cuda or tpu."""
    leaf = jax.tree.leaves(self.params)[0]
    platform = next(iter(leaf.devices())).platform
    return 'cuda' if platform == 'gpu' else platform

  @overload
  def encode(
      self, inputs: _Texts = ..., prompt_name: str | None = ...,
      prompt: str | None = ..., batch_size: int = ...,
      show_progress_bar: bool | None = ...,
      output_value: Literal['sentence_embedding'] = ..., precision: str | None = ...,
      convert_to_numpy: Literal[True] = ..., convert_to_tensor: Literal[False] = ...,
      device: str | None = ..., normalize_embeddings: bool = ...,
      truncate_dim: int | None = ..., pool: None = ..., chunk_size: int | None = ..., *,
      sentences: _Texts = ..., normalize: bool | None = ...) -> np.ndarray: ...

  @overload
  def encode(
      self, inputs: _Texts = ..., prompt_name: str | None = ...,
      prompt: str | None = ..., batch_size: int = ...,
      show_progress_bar: bool | None = ..., output_value: str | None = ...,
      precision: str | None = ..., convert_to_numpy: bool = ...,
      convert_to_tensor: bool = ..., device: str | None = ...,
      normalize_embeddings: bool = ..., truncate_dim: int | None = ...,
      pool: None = ..., chunk_size: int | None = ..., *, sentences: _Texts = ...,
      normalize: bool | None = ...) -> Any: ...

  @drop_in.names_arguments()
  def encode(
      self, inputs: _Texts = _MISSING, prompt_name: str | None = None,
      prompt: str | None = None, batch_size: int = 32,
      show_progress_bar: bool | None = None,
      output_value: str | None = 'sentence_embedding',
      precision: str | None = 'float32', convert_to_numpy: bool = True,
      convert_to_tensor: bool = False, device: str | None = None,
      normalize_embeddings: bool = False, truncate_dim: int | None = None,
      pool: None = None, chunk_size: int | None = None, *, sentences: _Texts = _MISSING,
      normalize: bool | None = None) -> Any:
    """One vector per text, in input order: float32 [n, d]; [d] for a single str.

    Arguments, their order and the numbers are sentence-transformers' 6. Whether
    vectors have length 1 is the model's affair (modules.json) unless
    `normalize_embeddings` asks for it. Texts longer than max_seq_length tokens are
    cut there, with a warning that counts them; a text that leaves no token to pool
    (an empty one, where no special tokens stand around a text) has the vector of no
    tokens, zeros through the model's last layers, and is counted likewise. The
    vector of a text does not depend on its neighbours beyond float32 rounding. All
    texts are checked before the first is computed.

    Args:
      inputs: a text or a sequence of texts (also called `sentences`).
      prompt_name: key of `prompts`, put in front of every text.
      prompt: the same, spelt out; beats `prompt_name`, which beats the default.
      batch_size: token budget of a step over all devices, in units of 64 tokens:
        so many texts of 64 tokens, more shorter ones, fewer longer ones.
      show_progress_bar: None shows one on a terminal once it takes seconds.
      output_value: 'sentence_embedding'; 'token_embeddings' for a list of the states
        of each text's tokens, [tokens, D]; None for a dict per text with both,
        'input_ids' and 'attention_mask'.
      precision: float32, or the types of quantize.quantize.
      convert_to_numpy: False gives a list of torch tensors.
      convert_to_tensor: True gives one torch tensor.
      device: where the model lives already; `load` chooses.
      normalize_embeddings: scale vectors to length 1 (after truncate_dim).
      truncate_dim: keep the first so many dimensions; None: the attribute's.
      pool, chunk_size: of several processes, which a mesh replaces (`load`).
      normalize: an older name of normalize_embeddings.

    Returns:
      numpy arrays unless tensors are asked for; without any text, of shape [0].

    Raises:
      TypeError: an input that is not a string, and what cannot be asked for here.
      ValueError: an unknown prompt_name or precision, a truncate_dim outside 1 to
        d, or a text that is not Unicode.
    """
    drop_in.check_place(device, pool, self.device)
    normalize_embeddings = drop_in.normalizes(
        normalize_embeddings, normalize, self.cfg.normalize)
    texts.check_count('batch_size', batch_size)
    if chunk_size is not None:
      texts.check_count('chunk_size', chunk_size)
    quantize.check(precision or 'float32')
    dim = self.width(truncate_dim)
    prompt = self.prompt_text(prompt_name, prompt)
    if inputs is _MISSING:
      inputs = sentences
    if inputs is _MISSING:
      raise TypeError('encode() needs texts: a str or a list of str')
    items, single = texts.as_texts(inputs)
    run = self._runner()
    if output_value == 'sentence_embedding':
      found = run.vectors(items, prompt, batch_size, dim, show_progress_bar)
      found = similarity.unit(found) if normalize_embeddings else found
      if len(items):
        found = quantize.quantize(found, precision or 'float32')
      else:
        found = np.zeros(0, np.float32 if convert_to_tensor else np.float64)
    else:
      found = batch_runner.per_token(run, items, prompt, batch_size, dim,
                                     output_value, precision or 'float32')
    self.report = run.report
    run.report.warn(self.cfg.max_length)
    found = to_torch.as_asked(found, convert_to_numpy, convert_to_tensor)
    return found[0] if single else found

  @drop_in.signature_of(encode)
  def encode_query(self, inputs: _Texts = _MISSING,
                   prompt_name: str | None = None, prompt: str | None = None,
                   *args: Any, **kwargs: Any) -> Any:
    """`encode` with the prompt called 'query'; without one, with no prompt."""
    if prompt_name is None and prompt is None:
      prompt_name = 'query'
    return self.encode(inputs, prompt_name, prompt, *args, **kwargs)

  @drop_in.signature_of(encode)
  def encode_document(self, inputs: _Texts = _MISSING,
                      prompt_name: str | None = None, prompt: str | None = None,
                      *args: Any, **kwargs: Any) -> Any:
    """`encode` with the prompt called 'document'; without one, with no prompt.

    sentence-transformers 6 does not fall back on 'passage' or 'corpus' either; a
    model that has one of those alone gets a warning.
    """
    if prompt_name is None and prompt is None:
      prompt_name = 'document'
      other = next((p for p in ('passage', 'corpus') if self.prompts.get(p)), None)
      if 'document' not in self.prompts and other:
        warnings.warn(f'the model has no prompt called document, so none is put in '
                      f'front; it has {other!r}: give prompt_name={other!r} to use it',
                      stacklevel=2)
    return self.encode(inputs, prompt_name, prompt, *args, **kwargs)

  @drop_in.names_arguments()
  def tokenize(self, texts_: Sequence[str]) -> dict[str, np.ndarray]:
    """Token ids and mask of texts, cut and padded: {'input_ids', 'attention_mask'},
    int64 [n, longest]."""
    items, _ = texts.as_texts(texts_)
    ragged = self._runner().tokens(items, '')
    tokens = self.tokenizer.pad(ragged, int(ragged.lengths.max(initial=0)))
    return {'input_ids': np.asarray(tokens.ids, np.int64),
            'attention_mask': np.asarray(tokens.mask, np.int64)}

  preprocess = tokenize

  def similarity(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Similarity of every pair, more is nearer.  a [n,d], b [m,d] -> [n,m] float32."""
    return similarity.matrix(self.similarity_fn_name, a, b)

  def similarity_pairwise(self, a: types.Array, b: types.Array) -> np.ndarray:
    """Similarity row by row.  a, b [n,d] -> [n] float32; of two [d] a number."""
    return similarity.pairwise(self.similarity_fn_name, a, b)

  def fingerprint(self) -> str:
    """Digest of all that vectors and scores depend on: weights, settings, tokenizer,
    prompts."""
    return fingerprint.of_settings({
        'vectors': self.vector_fingerprint(), 'prompts': self.prompts,
        'default': self.default_prompt_name, 'truncate_dim': self.truncate_dim,
        'similarity': self.similarity_fn_name})

  def vector_fingerprint(self) -> str:
    """Digest of what the vector of a prompted text depends on."""
    cfg = dataclasses.asdict(self.cfg)
    del cfg['attention_impl']  # how, not what; vectors stored before it was a field
    return fingerprint.of_settings({
        'params': fingerprint.of_params(self.params), 'cfg': cfg,
        'tokenizer': self.tokenizer.digest()})

  if not TYPE_CHECKING:  # to a checker, they would make every misspelt name right
    def __setattr__(self, name: str, value) -> None:
      if not (name.startswith('_') or name in _ATTRIBUTES or hasattr(type(self), name)):
        raise AttributeError(
            f'an Embedder has no attribute {name!r}, so setting it would change '
            f'nothing{drop_in.nearest(name, dir(self))}')
      object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
      instead = drop_in.ELSEWHERE.get(name)
      raise AttributeError(f'an Embedder has no {name!r}' + (
          f': {instead}' if instead else drop_in.nearest(name, dir(self))))

  def prompt_text(self, name: str | None, prompt: str | None) -> str:
    """The text that `encode` puts in front for these arguments; '' for none."""
    if prompt is not None:
      texts.check_text(prompt, 'the prompt')
      return prompt
    name = self.default_prompt_name if name is None else name
    if name is None:
      return ''
    # sentence-transformers knows these two in every model.
    if name not in self.prompts and name not in ('query', 'document'):
      raise ValueError(f'prompt {name!r} is unknown; this model has '
                       f'{sorted(self.prompts) or "no prompts"}. Give the text itself '
                       'as prompt=')
    return self.prompts.get(name) or ''

  def _runner(self) -> batch_runner.BatchRunner:
    return batch_runner.BatchRunner(self.params, self.cfg, self.tokenizer, self.mesh,
                                    self.shapes, _CHUNK)
