"""Writer of sentence-transformers folders, in the legacy layout or the newer one.

The legacy one is what sentence-transformers of any age, text-embeddings-inference,
vLLM and llama.cpp read. Poolings that sentence-transformers has become plain modules;
another becomes one Python file in the folder's root (Head.twin) and its weights. Its
check (parity.py) opens the folder in torch and compares vectors.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import shutil
from typing import Any

from jaxembed import data
from jaxembed.bundle import SETTINGS, Bundle
from jaxembed.convert import (
  head_modules,
  parity,
  static_embedding,
  tables,
  tensor_files,
)
from jaxembed.data import tokenizer_file
from jaxembed.files import carried, checked_json
from jaxembed.models import training_free
from jaxembed.pooling import heads, weighted_layers

_SHARD = 5_000_000_000  # bytes, the hub's habit
MODULES = 'sentence_transformers.models.'
_NEW = {
    'Transformer': 'sentence_transformers.base.modules.transformer.Transformer',
    'Pooling': 'sentence_transformers.sentence_transformer.modules.pooling.Pooling',
    'Normalize': 'sentence_transformers.base.modules.normalize.Normalize',
    'Dense': 'sentence_transformers.base.modules.dense.Dense',
    'LayerNorm': 'sentence_transformers.sentence_transformer.modules.layer_norm.'
                 'LayerNorm',
    static_embedding.TYPE: 'sentence_transformers.sentence_transformer.modules.'
                           'static_embedding.StaticEmbedding'}


def refuse(model: Bundle) -> None:
  """Raises ValueError for a model that the layout cannot hold."""
  if model.cfg.lora is not None:
    raise ValueError('the model has LoRA adapters; merge them before exporting')
  if _is_static(model):
    if model.cfg.pooling.kind != 'mean' or model.cfg.prompt_pooling != 'include':
      raise ValueError(f'{static_embedding.TYPE} has the mean of all tokens, prompts '
                       f'included, not {model.cfg.pooling.kind} pooling with prompts '
                       f'{model.cfg.prompt_pooling}d; keep the run')
  elif not tables.in_transformers(model.cfg.backbone):
    raise ValueError(
        f'transformers has no {model.cfg.backbone.family}: its code lies in the '
        'folders of its models and is never run here, so nobody could check the '
        "export; keep the run, or export the adapters of LoRA (format 'peft')")
  found = heads.of(model.cfg.pooling)
  missing = [f'{head.kind} pooling{" beside others" if head.twin else ""}'
             for head in found if not head.mode and (len(found) > 1 or not head.twin)
             and head.kind != weighted_layers.KIND]
  if missing:
    raise ValueError(f'sentence-transformers has no module for {" or ".join(missing)}; '
                     'keep the run, and load it with Embedder.load')
  if model.cfg.prepend is not None and not model.cfg.prepend.text:
    raise ValueError('the prepended token has no text that a tokenizer could put '
                     'before texts: give PrependConfig.text, such as <PST>')


def write(folder: pathlib.Path, model: Bundle) -> None:
  """Writes weights, tokenizer, configuration and modules into the new `folder`.

  Parameters are written as they are. cfg.eos_text becomes a part of the tokenizer,
  which keeps it behind texts that are cut as well; with a prepended token it stays a
  text.

  Raises:
    ValueError: as `refuse`.
    FileNotFoundError: the model has no tokenizer.
  """
  refuse(model)
  folder.mkdir(parents=True)
  write_backbone(folder, model)
  write_text_rules(folder, model)
  write_modules(folder, model)


def write_new(folder: pathlib.Path, model: Bundle) -> None:
  """As `write`, in the layout that sentence-transformers 5.4 and later save.

  Text lengths stand in tokenizer_config.json alone; older releases and servers do not
  read it.
  """
  write(folder, model)
  modules = checked_json.read(folder / 'modules.json', list)
  for module in modules:
    kind = module['type'].removeprefix(MODULES)
    module['type'] = _NEW.get(kind, module['type'])
    file = folder / module['path'] / 'config.json'
    if kind == 'Pooling':
      old = checked_json.read(file)
      modes = old.get('pooling_mode') or [
          mode.name for mode in head_modules.library_modes().values() if old[mode.key]]
      write_json(file, {'embedding_dimension': old['word_embedding_dimension'],
                        'pooling_mode': modes if len(modes) > 1 else modes[0],
                        'include_prompt': old['include_prompt']})
    elif kind == 'Normalize':
      write_json(file, {'module_input_name': 'sentence_embedding',
                        'module_output_name': 'sentence_embedding'})
  write_json(folder / 'modules.json', modules)
  if _is_static(model):
    return
  file = folder / 'sentence_bert_config.json'
  settings = checked_json.read(file)
  del settings['max_seq_length']
  if not settings['do_lower_case']:
    del settings['do_lower_case']
  write_json(file, settings | {
      'transformer_task': 'feature-extraction', 'modality_config': {'text': {
          'method': 'forward', 'method_output_name': 'last_hidden_state'}},
      'module_output_name': 'token_embeddings'})


def write_backbone(folder: pathlib.Path, model: Bundle) -> None:
  """Writes weights and config.json of the backbone; makes `folder` if need be."""
  folder.mkdir(parents=True, exist_ok=True)
  weights = tables.lazy(model.params, model.cfg)
  save_weights(folder, weights)
  if not _is_static(model):
    write_json(folder / 'config.json', _hf_config(model, weights))


def _is_static(model: Bundle) -> bool:
  return model.cfg.backbone.family == static_embedding.FAMILY


def write_tokenizer(folder: pathlib.Path, model: Bundle) -> None:
  """Writes the tokenizer, which puts the model's eos_text behind texts and keeps it.

  Raises:
    FileNotFoundError: the model has none, or not all of its files.
  """
  _copy_tokenizer(model, folder)
  if model.cfg.eos_text and model.cfg.prepend is None:
    data.append_token(folder, model.cfg.eos_text)


def write_text_rules(folder: pathlib.Path, model: Bundle) -> None:
  """Writes tokenizer, prompts, similarity and the length of texts."""
  cfg = model.cfg
  write_tokenizer(folder, model)
  write_settings(folder, model.settings)
  if _is_static(model):
    return
  settings = {'max_seq_length': cfg.max_length, 'do_lower_case': cfg.lower_case}
  if tables.has_pooler(cfg.backbone):  # unused here; torch would draw one
    settings['model_args'] = {'add_pooling_layer': False}
  if cfg.prepend is not None:
    settings |= {key: getattr(cfg.prepend, name)
                 for key, name in training_free.TWIN.keys}
    settings['append_text'] = cfg.eos_text
  write_json(folder / 'sentence_bert_config.json', settings)


def write_settings(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Writes config_sentence_transformers.json: Bundle.settings, and who wrote them."""
  write_json(folder / SETTINGS, {
      'model_type': 'SentenceTransformer', '__version__': parity.versions(),
      **settings})


def write_modules(folder: pathlib.Path, model: Bundle) -> None:
  """Writes modules.json, and the modules after the backbone with their weights."""
  cfg, params = model.cfg, model.params
  first = MODULES + 'Transformer'
  if cfg.prepend is not None:
    first = _copy_code(folder, training_free.TWIN)
  if _is_static(model):
    parts = [('', MODULES + static_embedding.TYPE)]
  else:
    parts = [('', first)]
    if cfg.pooling.kind == weighted_layers.KIND:
      parts.append(_weighted_layers(folder, params, cfg))
    parts.append(_pooling(folder, params, cfg, cfg.prompt_pooling == 'include'))
  for i, layer in enumerate(cfg.dense):
    if layer.normalize_input:
      parts.append(write_normalize(folder, len(parts)))
    parts.append(_dense(folder, params, cfg, i, len(parts)))
  if cfg.normalize:
    parts.append(write_normalize(folder, len(parts)))
  list_modules(folder, parts)


def list_modules(folder: pathlib.Path, parts: Sequence[tuple[str, str]]) -> None:
  """Writes modules.json of (path, type) of each module."""
  write_json(folder / 'modules.json', [
      {'idx': i, 'name': str(i), 'path': path, 'type': kind}
      for i, (path, kind) in enumerate(parts)])


def expected(folder: pathlib.Path, model: Bundle) -> list[parity.Case]:
  """What `model` computes of every probe; the last that its parameters are read for."""
  return parity.expected(folder, model.params, model.cfg, prompts=model.prompts,
                         include_prompt=model.cfg.prompt_pooling == 'include')


def check(folder: pathlib.Path, model: Bundle, cases: list[parity.Case],
          tolerance: float = parity.TOLERANCE) -> dict[str, Any]:
  """Compares `folder` in torch with `cases`, which `expected` made.

  Raises:
    parity.Mismatch: torch computes other vectors.
  """
  report = parity.check(
      folder, cases, model.original, tolerance,
      tolerance if model.cfg.dtype == 'float32' else parity.ROUNDED)
  told = (f'torch computes the same vectors, largest difference '
          f'{report["max_difference"]:.1e} over {len(report["cases"])} cases')
  if model.cfg.prompt_pooling == 'nv_embed':
    told += ('; prompts are left out of the vector as sentence-transformers counts '
             "their tokens, NV-Embed's own rule counts one less")
  return report | {'told': told}


def _pooling(folder, params, cfg, include_prompt):
  """Writes the pooling module; returns its (path, type)."""
  head, *others = heads.of(cfg.pooling)
  if head.twin and not others:
    return _twin(folder, params, cfg, head, include_prompt)
  path, modes = '1_Pooling', cfg.pooling.modes
  if cfg.pooling.kind == weighted_layers.KIND:
    modes = (str(heads.settings(cfg.pooling)['pool']),)
  (folder / path).mkdir()
  # Several modes stand side by side in the order of the keys; another needs a list.
  known = head_modules.library_modes()
  named = [known[mode].name for mode in modes]
  in_order = [known[ours].name for ours in known if ours in modes]
  write_json(folder / path / 'config.json', {
      'word_embedding_dimension': cfg.backbone.width,
      **{known[ours].key: ours in modes for ours in known},
      **({} if named == in_order else {'pooling_mode': named}),
      'include_prompt': include_prompt})
  return path, MODULES + 'Pooling'


def _weighted_layers(folder, params, cfg):
  """Writes the module that averages layers; returns its (path, type)."""
  path = f'1_{head_modules.WEIGHTED}'
  (folder / path).mkdir()
  write_json(folder / path / 'config.json', {
      'word_embedding_dimension': cfg.backbone.dim,
      'layer_start': heads.settings(cfg.pooling)['start'],
      'num_hidden_layers': cfg.backbone.num_layers})
  rows = tables.head_table(heads.HEADS[weighted_layers.KIND], cfg.pooling).rows
  save_weights(folder / path, tables.lazy(params, cfg, rows))
  return path, MODULES + head_modules.WEIGHTED


def _twin(folder, params, cfg, head, include_prompt):
  """Writes the torch module of a pooling, its weights and its settings."""
  twin, path = head.twin, f'1_{head.twin.cls}'
  (folder / path).mkdir()
  pooling = dataclasses.replace(
      cfg.pooling, head_dim=cfg.pooling.head_dim or cfg.backbone.width)
  values = heads.settings(pooling)
  write_json(folder / path / 'config.json', {
      'embedding_dimension': cfg.backbone.width,
      **{key: values[name] for key, name in twin.keys},
      **({'num_layers': cfg.backbone.num_layers} if heads.of_layer(pooling) else {}),
      'include_prompt': include_prompt})
  if rows := tables.head_table(head, pooling).rows:
    save_weights(folder / path, tables.lazy(params, cfg, rows))
  return path, _copy_code(folder, twin)


def _copy_code(folder, twin) -> str:
  """Puts the file of a torch module into the root; returns the module's type."""
  shutil.copyfile(parity.twin_file(twin), folder / f'{twin.module}.py')
  return twin.type


def write_normalize(folder: pathlib.Path, place: int) -> tuple[str, str]:
  """Writes the module that scales to length 1; returns its (path, type)."""
  path = f'{place}_Normalize'
  (folder / path).mkdir()
  # Some tools drop empty folders.
  write_json(folder / path / 'config.json', {})
  return path, MODULES + 'Normalize'


def _dense(folder, params, cfg, index: int, place: int):
  layer = cfg.dense[index]
  kind = 'Dense' if layer.kind == 'dense' else 'LayerNorm'
  path = f'{place}_{kind}'
  (folder / path).mkdir()
  rows = tables.dense_table(index, layer, cfg.widths[index]).rows
  weights = tables.lazy(params, cfg, rows)
  if kind == 'LayerNorm':
    write_json(folder / path / 'config.json', {'dimension': layer.features})
    save_weights(folder / path, weights)
    return path, MODULES + kind
  width, features = weights['linear.weight'].shape[::-1]
  write_json(folder / path / 'config.json', {
      'in_features': width, 'out_features': features, 'bias': layer.bias,
      'activation_function': head_modules.ACTIVATIONS[layer.activation],
      **({'use_residual': True} if layer.residual else {})})
  save_weights(folder / path, weights)
  return path, MODULES + 'Dense'


def save_weights(folder: pathlib.Path, weights: Mapping[str, tables.Lazy]) -> None:
  """Writes model.safetensors, or shards of at most 5 GB and their index.

  One tensor is held at a time.
  """
  shards = tensor_files.split(((k, w.nbytes) for k, w in weights.items()), _SHARD)
  names = [tensor_files.SINGLE] if len(shards) == 1 else [
      f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      for i in range(1, len(shards) + 1)]
  for name, keys in zip(names, shards):
    tensor_files.write(
        folder / name, {k: (weights[k].dtype, weights[k].shape) for k in keys},
        lambda name: weights[name].read())
  if len(shards) > 1:
    write_json(folder / tensor_files.INDEX, {
        'metadata': {'total_size': sum(w.nbytes for w in weights.values())},
        'weight_map': {k: n for n, keys in zip(names, shards) for k in keys}})


def _hf_config(model: Bundle, weights) -> dict[str, Any]:
  """config.json of the base model, the source's own where there is one."""
  cfg = model.cfg
  derived = tables.config_to_hf(cfg.backbone, cfg.attention)
  hf = dict(derived) if model.config_folder is None else carried.without_code(
      checked_json.read(model.config_folder / 'config.json', absent=dict(derived)))
  older = tables.older_keys(cfg.backbone)
  if hf.get('model_type') != derived['model_type'] or any(key in hf for key in older):
    hf = dict(derived)  # a wrapper such as NV-Embed's, or what transformers cannot read
  (dtype,) = {str(w.dtype) for w in weights.values()}
  # A prepended token has a row; torch_dtype is what old and new transformers read. A
  # key that stays keeps its place: what is read and written again has the same bytes.
  own = {'architectures': derived['architectures'],
         'vocab_size': cfg.backbone.vocab_size, 'torch_dtype': dtype,
         **({'output_hidden_states': True} if heads.of_layer(cfg.pooling) else {}),
         **({'use_cache': False} if 'use_cache' in hf else {})}
  hf.pop('dtype', None)
  if tables.is_decoder(cfg.backbone):
    # Which of the two a family reads, and what it does with both, differs.
    either = {'is_causal', 'use_bidirectional_attention'}
    hf = {key: value for key, value in hf.items() if key not in either - set(derived)}
    # A window left out, some families fall back to one of 4096.
    own |= {key: derived[key] for key in (*sorted(either), 'sliding_window')
            if key in derived}
  for found in (hf, hf | derived):  # the source's, or cut since it was written
    if tables.config_from_hf(found | own) == cfg.backbone:
      return found | own
  return derived | own


def _copy_tokenizer(model: Bundle, folder: pathlib.Path):
  source = model.tokenizer_folder
  if source is not None:
    if (source / 'tokenizer.json').is_file():
      tokenizer_file.read(source / 'tokenizer.json')  # errors name it, not the copy
    carried.copy(source, folder)
  if _is_static(model):
    return
  file = folder / 'tokenizer_config.json'
  if not (folder / 'tokenizer.json').is_file() or not file.is_file():
    raise FileNotFoundError(
        f'{source or "the model"} needs tokenizer.json and tokenizer_config.json to '
        'export; AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes '
        'both')
  settings = checked_json.read(file)
  write_json(file, settings | {'model_max_length': model.cfg.max_length})


def write_json(file: pathlib.Path, data: Any) -> None:
  """Writes `data` as these libraries write their settings."""
  file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + '\n', 'utf-8')
