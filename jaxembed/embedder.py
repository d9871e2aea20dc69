"""Embedder: texts to vectors, with the calls of SentenceTransformer."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any, Literal, overload
import warnings

import jax
import numpy as np

from jaxembed import (
  batch_runner,
  bundle,
  checkpoint,
  chunks,
  config,
  drop_in,
  quantize,
  similarity,
  texts,
)
from jaxembed.bundle import Bundle
from jaxembed.convert import exporters, to_torch
from jaxembed.data import tokenise
from jaxembed.embedder_settings import Settings, long_texts_checked
from jaxembed.models import encoder

# Texts tokenised, sorted and batched at a time: enough for near-perfect batches,
# little enough that the host keeps ahead of the device in bounded memory.
_CHUNK = 16384
_MISSING: Any = object()  # an argument that was not given
_Texts = str | Iterable[str]


class Embedder(Settings):
  """A model with its tokenizer and prompts.

  Attributes:
    cfg: its ModelConfig; `cfg.max_length`, or max_seq_length, is where texts are cut.
    prompts: texts to put in front, by name.
    default_prompt_name: which of them `encode` uses when told nothing.
    similarity_fn_name: cosine, dot, euclidean or manhattan.
    truncate_dim: dimensions that `encode` keeps; None: all.
    bundle: the model as it was opened (jaxembed/bundle.py).
    folder: where the backbone's config.json lies; None for parts put together.
    long_texts: what `encode` does with texts longer than max_seq_length when told
      nothing: 'cut' them, or average the vectors of 'windows'.
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
    method = model.cfg.length.method if model.cfg.length else ''
    self.long_texts = 'windows' if method == 'windows' else 'cut'
    self.report, self.shapes = batch_runner.EncodeReport(), set[tuple[int, int]]()
    self._span_shapes = set[tuple[int, int]]()
    self.memory.check()

  @classmethod
  def load(cls, path: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None,
           dtype: str | None = None, step: checkpoint.Step = None,
           prompts: Mapping[str, str] | None = None,
           default_prompt_name: str | None = None,
           length: config.LengthConfig | None = None) -> 'Embedder':
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
      length: a method for texts longer than those the model was trained on.

    Raises:
      FileNotFoundError: neither of these, or no such checkpoint.
      ValueError: a damaged checkpoint (use another step); tensors missing, left over
        or mis-shaped; a tokenizer of another model; or a length method that the model
        cannot take.
    """
    model = bundle.open(path, mesh=mesh, dtype=dtype, step=step)
    if length is not None:
      model = model.with_length(length, mesh)
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
      normalize: bool | None = ..., long_texts: str | None = ...) -> Any: ...

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
      normalize: bool | None = None, long_texts: str | None = None) -> Any:
    """One vector per text, in input order: float32 [n, d]; [d] for a single str.

    Arguments, their order and the numbers are sentence-transformers' 6. Whether
    vectors have length 1 is the model's affair (modules.json) unless
    `normalize_embeddings` asks for it. Texts longer than max_seq_length tokens are
    cut there, with a warning that counts them (or see `long_texts`); a text that leaves
    no token to pool (an empty one, where no special tokens stand around a text) has the
    vector of no tokens, zeros through the model's last layers, and is counted likewise.
    The vector of a text does not depend on its neighbours beyond float32 rounding. All
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
      long_texts: of texts longer than max_seq_length: 'cut' them; or 'windows', the
        mean of the vectors of pieces of that length, each with the prompt; None: the
        attribute's.

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
    how = self._how_long(long_texts, output_value)
    if output_value == 'sentence_embedding':
      found = run.vectors(items, prompt, batch_size, dim, show_progress_bar, how)
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
  def encode_chunks(
      self, inputs: _Texts, spans: Any = None, *, chunk_tokens: int | None = None,
      overlap: int = 0, prompt_name: str | None = None, prompt: str | None = None,
      batch_size: int = 32, normalize_embeddings: bool = False,
      truncate_dim: int | None = None) -> Any:
    """Vectors of parts of texts that have read the whole text (late chunking).

    One pass over each text, after which the states of each part's tokens are pooled
    as those of a text are (Günther et al. 2024, arXiv 2409.04701). A token is of the
    part that holds its last character. Prompt and special tokens are read and are of
    no part.

    Args:
      inputs: a text or a sequence of texts.
      spans: of each text a list of (start, end), its characters text[start:end]; of a
        single str one list.
      chunk_tokens: instead, parts of so many tokens; `chunk_spans` tells which
        characters they are.
      overlap: of chunk_tokens, how many tokens each part shares with the one before.

    Other arguments are those of `encode`.

    Returns:
      For each text, float32 [parts, d].

    Raises:
      TypeError: spans that are no pairs of whole numbers.
      ValueError: a span outside its text or without a token, a text of more tokens
        than one pass reads, or a pooling that has no meaning for parts; names the
        text.
    """
    encoder.check_spans(self.cfg)
    texts.check_count('batch_size', batch_size)
    dim, prompt = self.width(truncate_dim), self.prompt_text(prompt_name, prompt)
    run = self._runner()
    asked, single = self._parts(run, inputs, spans, chunk_tokens, overlap, prompt)
    found = [v[:, :dim] for v in chunks.vectors(run, asked, batch_size)]
    if normalize_embeddings:
      found = [similarity.unit(v) for v in found]
    self.report = run.report
    return found[0] if single else found

  def chunk_spans(self, inputs: _Texts, chunk_tokens: int, overlap: int = 0, *,
                  prompt_name: str | None = None, prompt: str | None = None
                  ) -> list[Any]:
    """The characters (start, end) of each part that `encode_chunks` makes of texts."""
    prompt = self.prompt_text(prompt_name, prompt)
    found, single = self._parts(
        self._runner(), inputs, None, chunk_tokens, overlap, prompt)
    return found.spans[0] if single else found.spans

  def _parts(self, run: batch_runner.BatchRunner, inputs: _Texts, spans: Any,
             chunk_tokens: int | None, overlap: int, prompt: str
             ) -> tuple[chunks.Parts, bool]:
    """(what is asked for, whether `inputs` is one text alone)."""
    items, single = texts.as_texts(inputs)
    if (spans is None) == (chunk_tokens is None):
      raise ValueError('give encode_chunks either spans, or chunk_tokens and maybe '
                       'overlap')
    if spans is None:
      chunks.check_sizes(chunk_tokens, overlap)
    elif overlap:
      raise ValueError(f'overlap {overlap} is of chunk_tokens; spans overlap as they '
                       'are given')
    else:
      spans = chunks.check_spans([spans] if single else spans, items)
    return chunks.parts(run, items, prompt, spans, chunk_tokens, overlap), single

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

  def _how_long(self, asked: str | None, output_value: str | None) -> str:
    """What to do with long texts: what is asked for, or the attribute's."""
    if asked is None:
      return self.long_texts
    if long_texts_checked(asked) == 'windows' and output_value != 'sentence_embedding':
      raise ValueError("long_texts='windows' averages vectors, and output_value="
                       f'{output_value!r} asks for tokens; leave one of them out')
    return asked

  def _runner(self) -> batch_runner.BatchRunner:
    return batch_runner.BatchRunner(self.params, self.cfg, self.tokenizer, self.mesh,
                                    self.shapes, _CHUNK,
                                    known_spans=self._span_shapes)
