"""Model export to other libraries' layouts: whole and checked, or not at all.

Every format goes one way: refused while nothing is written, written beside its place,
checked there, and only then given its name. A target that exists is never touched, and
a kill leaves nothing but a hidden folder that the next export removes.
"""

from collections.abc import Callable
import dataclasses
import glob
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np

from jaxembed import bundle, types
from jaxembed.bundle import Bundle
from jaxembed.convert import (
  card,
  model_card,
  nv_embed,
  parity,
  peft,
  tables,
  tensor_files,
  to_hugging_face,
  to_onnx,
  to_sentence_transformers,
  to_static,
)
from jaxembed.files import carried, checked_json, place, url, whole_json
from jaxembed.models import length, lora
from jaxembed.pooling import heads

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
  """A layout: how it is written into a new folder, and what proves it right.

  `check` returns a report whose 'told' is one line for people, or raises ValueError.
  `expected`: what the model computes, as a third argument of `check`; the parameters
  are let go in between, so that they and another library's do not lie in memory at
  once.
  """

  write: Callable[..., None]  # (folder, model, and what `options` names)
  check: Callable[..., Report]
  merges: bool = True  # LoRA adapters are folded into the weights first
  expected: Callable[[pathlib.Path, Bundle], Any] | None = None
  options: tuple[str, ...] = ()
  prepends: bool = False  # whether it holds a prepended token
  card: bool = False  # whether README.md is written
  size: float = 1.0  # bytes on disk, relative to those of the parameters; at least


def export(model: Bundle, target: str | os.PathLike,
           format: str = 'sentence-transformers', base: str = '', *,
           facts: card.Facts = card.NOTHING, **options: Any) -> Report:
  """Writes `model` to the new folder `target`; what the format's check found, which
  lies there as parity.json.

  Args:
    format: a key of FORMATS.
      sentence-transformers: opened in torch, its vectors are compared; needs torch and
        sentence-transformers.
      sentence-transformers-new: the same in the layout of 5.4 and later.
      huggingface: backbone and tokenizer alone, as AutoModel opens them.
      onnx: sentence-transformers' folder with a graph of the whole model, compared in
        onnxruntime. int8=True adds its 8-bit form.
      static: model2vec's: a vector per token, and their mean. dims: of a vector, 256.
      nv-embed: the published layout in float16; read back tensor by tensor.
      peft: the LoRA adapters alone, with the head, prompts and tokenizer; opened on
        top of the base they name, and compared with `model` bit for bit.
    base: of peft, the folder or hub id of the weights beneath the adapters, where the
      model does not know it or it has moved.
    facts: what the card says beside what the model itself knows (card.Facts).
    options: of the format, as above; another is refused.

  Raises:
    FileExistsError: target exists; nothing is touched.
    ValueError: the format cannot hold this model, or its check failed; nothing is left
      behind.
  """
  if url.of(target):  # no decorator: its frame would keep the parameters in memory
    with place.published(target) as local:
      return export(model, local, format, base, facts=facts, **options)
  if format not in FORMATS:
    raise ValueError(f'format {format!r} is unknown; choose one of '
                     f'{", ".join(FORMATS)}')
  if base and format != 'peft':
    raise ValueError(f'base={base!r} is for the format peft; {format} holds all '
                     'weights')
  target, chosen = pathlib.Path(target).absolute(), FORMATS[format]
  if unread := [name for name in options if name not in chosen.options]:
    raise ValueError(f'{format} does not read {", ".join(unread)}; it reads '
                     f'{", ".join(chosen.options) or "no options"}')
  if model.cfg.prepend is not None and not chosen.prepends:
    raise ValueError(
        f'{format} has no place for a prepended token, whose state changes between '
        "layers; choose format 'sentence-transformers', or keep the run")
  if model.cfg.length is not None:  # config.json then says it, not the source's
    model = dataclasses.replace(model, cfg=length.exported(model.cfg), original=None,
                                config_folder=None)
  if os.path.lexists(target):
    raise FileExistsError(f'{target} exists; choose another target, or remove it')
  model = _plain(model) if chosen.merges else dataclasses.replace(
      model, params=_gathered(model.params), base=base or model.base)
  target.parent.mkdir(parents=True, exist_ok=True)
  _remove_leftovers(target)
  _check_room(target, model, chosen.size)
  partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
  try:
    chosen.write(partial, model, **options)
    if chosen.expected:
      found = chosen.expected(partial, model)
      model = dataclasses.replace(model, params={})
      report = chosen.check(partial, model, found)
    else:
      report = chosen.check(partial, model)
    to_sentence_transformers.write_json(partial / model_card.REPORT, report)
    if chosen.card:
      card.write(partial, target.name, format, model, report, facts)
    if os.path.lexists(target):  # an empty folder would be replaced
      raise FileExistsError(f'{target} appeared meanwhile; choose another target')
    partial.rename(target)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return report


def _plain(model: Bundle) -> Bundle:
  """`model` on one device with its adapters folded in."""
  params, cfg = lora.merge(_gathered(model.params), model.cfg)
  return dataclasses.replace(model, params=params, cfg=cfg)


def _gathered(params: types.Params) -> types.Params:
  """Parameters that are spread over devices, on the host; others as they are."""
  spread = any(len(x.sharding.device_set) > 1 for x in jax.tree.leaves(params)
               if isinstance(x, jax.Array))
  return jax.device_get(params) if spread else params


def _check_room(target: pathlib.Path, model: Bundle, size: float) -> None:
  """Raises OSError where the disk has less room than the weights need."""
  needed = size * sum(x.nbytes for x in jax.tree.leaves(model.params))
  free = shutil.disk_usage(target.parent).free
  if needed > free:
    raise OSError(f'{target} needs {needed / 1e9:.1f} GB, and its disk has '
                  f'{free / 1e9:.1f} GB free; make room, or choose another target')


def _remove_leftovers(target: pathlib.Path) -> None:
  """Removes what exports to `target` left that were killed."""
  for folder in target.parent.glob(f'.{glob.escape(target.name)}.*.partial'):
    number = re.fullmatch(r'(\d+)', folder.name.split('.')[-2])
    if number and not pathlib.Path(f'/proc/{number[1]}').exists():
      shutil.rmtree(folder, ignore_errors=True)


# --- nv-embed ----------------------------------------------------------------


def _write_nv_embed(folder: pathlib.Path, model: Bundle) -> None:
  nv_embed.write(folder, model.params, model.cfg, model.config_folder)
  if model.tokenizer_folder is not None:
    carried.copy(model.tokenizer_folder, folder)
  file = folder / 'tokenizer_config.json'
  if bundle.open(folder, weights=False).cfg.max_length != model.cfg.max_length:
    whole_json.write(file, checked_json.read(file, absent={}) | {
        'model_max_length': model.cfg.max_length})
  if bundle.read_settings(folder) != _given(model.settings):
    whole_json.write(folder / bundle.SETTINGS, model.settings)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
  plain = {'prompts': {}, 'similarity_fn_name': 'cosine'}
  return {k: v for k, v in settings.items() if v is not None and v != plain.get(k)}


def _check_nv_embed(folder: pathlib.Path, model: Bundle) -> Report:
  """Every tensor is the model's rounded to its dtype, and so is the configuration."""
  stored = tensor_files.open_folder(folder)
  rows = nv_embed.table(model.cfg.backbone).rows
  for name, x in tables.iter_hf(model.params, model.cfg, rows):
    found = stored[name].read()
    if not np.array_equal(found, np.asarray(x).astype(found.dtype)):
      raise parity.Mismatch(f'{name} was not read back as it was written; the export '
                            'was discarded')
  _check_meaning(folder, bundle.open(folder, weights=False), model)
  return {'tensors': len(stored), 'dtype': 'float16', 'told': f'{len(stored)} tensors '
          'read back as they are in the model, rounded to float16'}


# --- peft --------------------------------------------------------------------


def _write_peft(folder: pathlib.Path, model: Bundle) -> None:
  if model.cfg.lora is None:
    raise ValueError('the model has no LoRA adapters to write as peft; write '
                     'sentence-transformers')
  if not model.base:
    raise ValueError(
        f'{model.source or "the model"} does not say where the weights beneath its '
        'adapters can be had (training began at weights of its own); write those '
        'without adapters first (launch.convert --format=sentence-transformers) and '
        'name that folder with --base')
  peft.write(folder, model.params, model.cfg, model.base)
  to_sentence_transformers.write_text_rules(folder, model)
  to_sentence_transformers.write_modules(folder, model)


def _check_peft(folder: pathlib.Path, model: Bundle) -> Report:
  """On top of the base they name, the adapters make the model, bit for bit."""
  try:
    found = bundle.open(folder)
  except FileNotFoundError:  # a hub id, and no hub here
    params, _ = peft.read(folder, model.params, model.cfg)
    _check_same(params, model.params, model.base)
    return {'base': model.base, 'told': f'adapters of {model.base}, which could not be '
            'opened here: they were read back, not tried on it'}
  _check_meaning(folder, found, model)
  _check_same(found.params, model.params, model.base)
  return {'base': model.base, 'told': f'on top of {model.base} the adapters make this '
          'model, bit for bit'}


def _check_same(found, wanted, base: str) -> None:
  found, wanted = tables.flatten(found), tables.flatten(wanted)
  for path, x in wanted.items():
    if path.startswith('loss/'):
      continue
    if path not in found or not np.array_equal(
        np.asarray(found[path], np.float32), np.asarray(jax.device_get(x), np.float32)):
      raise parity.Mismatch(
          f'with {base} beneath the adapters, {path} is not what the model has: they '
          'were trained on other weights. Name those with --base; the export was '
          'discarded')


def _check_meaning(folder: pathlib.Path, found: Bundle, model: Bundle) -> None:
  """The folder says of texts and vectors what the model does."""
  own = {'dtype', 'precision', 'remat', 'attention_impl', 'lora', 'eos_text'}
  for field in dataclasses.fields(model.cfg):
    was, now = (getattr(m.cfg, field.name) for m in (model, found))
    if field.name == 'pooling':  # the shape of a head is that of its tensors
      was, now = ((p.kind, heads.whole(p).options) for p in (was, now))
    if field.name not in own and was != now:
      raise parity.Mismatch(f'this layout says {field.name}={now!r}, and the model '
                            f'has {was!r}; write sentence-transformers')
  if found.settings != model.settings:
    raise parity.Mismatch(f'{bundle.SETTINGS} was read back as {found.settings}, not '
                          f'{model.settings}')


_LIBRARY = Format(
    to_sentence_transformers.write, to_sentence_transformers.check,
    expected=to_sentence_transformers.expected, prepends=True, card=True)
FORMATS = {
    'sentence-transformers': _LIBRARY,
    'sentence-transformers-new': dataclasses.replace(
        _LIBRARY, write=to_sentence_transformers.write_new),
    'huggingface': Format(
        to_hugging_face.write, to_hugging_face.check,
        expected=to_hugging_face.expected, card=True),
    'onnx': Format(
        to_onnx.write, to_onnx.check, expected=to_sentence_transformers.expected,
        options=('int8',), card=True, size=2.0),
    'static': Format(
        to_static.write, to_static.check, options=('dims',), card=True, size=0.0),
    'nv-embed': Format(_write_nv_embed, _check_nv_embed, card=True, size=0.5),
    'peft': Format(_write_peft, _check_peft, merges=False, card=True, size=0.0),
}
