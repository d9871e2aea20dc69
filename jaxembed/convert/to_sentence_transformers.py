"""A jaxembed model as a sentence-transformers folder, in the legacy layout.

That layout is what sentence-transformers of any age, text-embeddings-inference,
vLLM and llama.cpp read. Poolers without parameters become plain modules; latent
attention becomes one Python file in the folder's root (torch_twin.py) and its
weights. The folder appears whole or not at all: it is written beside its place,
reloaded in torch, compared, and only then renamed.
"""

import json
import os
import pathlib
import re
import shutil

import numpy as np

from jaxembed import carried, checked_json, config, data, types
from jaxembed.convert import head_modules, model_card, parity, tables, tensor_files

_WITH_POOLER = ('bert', 'roberta', 'xlm-roberta', 'mpnet')
_SHARD = 5_000_000_000  # bytes, the hub's habit
_MODULES = 'sentence_transformers.models.'
_TWIN = 'latent_attention_pooling'


def export(target: str | os.PathLike, params: types.Params,
           cfg: config.ModelConfig, source: pathlib.Path, *,
           prompts: dict[str, str],
           default_prompt_name: str | None = None,
           similarity_fn_name: str = 'cosine',
           original: str | os.PathLike | None = None,
           tolerance: float = parity.TOLERANCE) -> dict:
  """Writes the folder, checks it in torch, and returns the parity report.

  Args:
    target: folder to create.
    params: float32 arrays or wider than the stored dtype is meant to be; they
      are written as they are.
    cfg: of `params`; LoRA must be merged before. cfg.eos_text becomes a part of the
      tokenizer, which keeps it behind texts that are cut as well.
    source: folder with the tokenizer and the Hugging Face config.json.
    prompts: stored under their names for encode(prompt_name=...).
    default_prompt_name, similarity_fn_name: stored for encode and similarity.
    original: the folder whose model this is, unchanged; see parity.check.
    tolerance: largest difference of two unit vectors that passes.

  Raises:
    FileExistsError: target exists; nothing is touched.
    parity.Mismatch: torch computes other vectors; nothing is left behind.
    ValueError: the model has parts that the layout cannot hold.
  """
  target = pathlib.Path(target).absolute()
  if target.exists():
    raise FileExistsError(f'{target} exists; choose another target, or remove it')
  if cfg.lora is not None:
    raise ValueError('the model has LoRA adapters; merge them before exporting')
  if cfg.pooling.kind == 'layer_attention' or cfg.prepend is not None:
    raise ValueError('sentence-transformers has no module for layer_attention pooling '
                     'or a prepended state; keep the run, and load it with '
                     'Embedder.load')
  include_prompt = cfg.prompt_pooling == 'include'
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  try:
    write(partial, params, cfg, source, include_prompt=include_prompt)
    _write_json(partial / 'config_sentence_transformers.json', {
        'model_type': 'SentenceTransformer',
        '__version__': parity.versions(),
        'prompts': prompts,
        'default_prompt_name': default_prompt_name,
        'similarity_fn_name': similarity_fn_name})
    report = parity.check(partial, params, cfg, prompts=prompts,
                          include_prompt=include_prompt, original=original,
                          tolerance=tolerance)
    _write_json(partial / 'parity.json', report)
    (partial / 'README.md').write_text(
        model_card.render(target.name, cfg, prompts, include_prompt, report))
    partial.rename(target)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return report


def write(folder: pathlib.Path, params: types.Params, cfg: config.ModelConfig,
          source: pathlib.Path, *, include_prompt: bool):
  """Writes weights, tokenizer, configuration and modules into `folder`."""
  source = pathlib.Path(source)
  weights = tables.to_hf(params, cfg)
  _save_weights(folder, weights)
  _write_json(folder / 'config.json', _hf_config(source, cfg, weights))
  _copy_tokenizer(source, folder, cfg.max_length)
  if cfg.eos_text:
    data.append_token(folder, cfg.eos_text)
  settings = {'max_seq_length': cfg.max_length, 'do_lower_case': cfg.lower_case}
  if cfg.backbone.family in _WITH_POOLER:  # unused here; torch would draw one
    settings['model_args'] = {'add_pooling_layer': False}
  _write_json(folder / 'sentence_bert_config.json', settings)
  parts = [('', _MODULES + 'Transformer'),
           _pooling(folder, params, cfg, include_prompt)]
  for i, layer in enumerate(cfg.dense):
    if layer.normalize_input:
      parts.append(_normalize(folder, len(parts)))
    parts.append(_dense(folder, params, cfg, i, len(parts)))
  if cfg.normalize:
    parts.append(_normalize(folder, len(parts)))
  _write_json(folder / 'modules.json', [
      {'idx': i, 'name': str(i), 'path': path, 'type': kind}
      for i, (path, kind) in enumerate(parts)])


def _pooling(folder, params, cfg, include_prompt):
  """Writes the pooling module; returns its (path, type)."""
  if cfg.pooling.kind == 'latent_attention':
    return _latent_attention(folder, params, cfg, include_prompt)
  path, modes = '1_Pooling', cfg.pooling.modes
  (folder / path).mkdir()
  # Several modes stand side by side in the order of the keys; another needs a list.
  known = head_modules.POOLING
  named = [known[mode].name for mode in modes]
  in_order = [known[ours].name for ours in known if ours in modes]
  _write_json(folder / path / 'config.json', {
      'word_embedding_dimension': cfg.backbone.dim,
      **{known[ours].key: ours in modes for ours in known},
      **({} if named == in_order else {'pooling_mode': named}),
      'include_prompt': include_prompt})
  return path, _MODULES + 'Pooling'


def _latent_attention(folder, params, cfg, include_prompt):
  path = '1_LatentAttentionPooling'
  (folder / path).mkdir()
  pooling = cfg.pooling
  _write_json(folder / path / 'config.json', {
      'embedding_dimension': cfg.backbone.dim, 'num_latents': pooling.latents,
      'heads': pooling.heads, 'head_dim': pooling.head_dim or cfg.backbone.dim,
      'ff_mult': pooling.ff_mult, 'include_prompt': include_prompt})
  rows = tables.LATENT_ATTENTION.rows
  _save_weights(folder / path, dict(tables.iter_hf(params, cfg, rows)))
  shutil.copyfile(pathlib.Path(__file__).with_name('torch_twin.py'),
                  folder / f'{_TWIN}.py')
  return path, f'{_TWIN}.LatentAttentionPooling'


def _normalize(folder, place: int):
  path = f'{place}_Normalize'
  (folder / path).mkdir()
  # Some tools drop empty folders.
  _write_json(folder / path / 'config.json', {})
  return path, _MODULES + 'Normalize'


def _dense(folder, params, cfg, index: int, place: int):
  layer, path = cfg.dense[index], f'{place}_Dense'
  (folder / path).mkdir()
  rows = tables.dense_table(index, layer, cfg.widths[index]).rows
  weights = dict(tables.iter_hf(params, cfg, rows))
  width, features = weights['linear.weight'].shape[::-1]
  _write_json(folder / path / 'config.json', {
      'in_features': width, 'out_features': features, 'bias': layer.bias,
      'activation_function': head_modules.ACTIVATIONS[layer.activation],
      **({'use_residual': True} if layer.residual else {})})
  _save_weights(folder / path, weights)
  return path, _MODULES + 'Dense'


def _save_weights(folder: pathlib.Path, weights: dict[str, np.ndarray]):
  """model.safetensors, or shards of at most 5 GB and their index."""
  shards = tensor_files.split(((k, w.nbytes) for k, w in weights.items()), _SHARD)
  names = [tensor_files.SINGLE] if len(shards) == 1 else [
      f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      for i in range(1, len(shards) + 1)]
  for name, keys in zip(names, shards):
    tensor_files.write(
        folder / name, {k: (weights[k].dtype, weights[k].shape) for k in keys},
        weights.__getitem__)
  if len(shards) > 1:
    _write_json(folder / tensor_files.INDEX, {
        'metadata': {'total_size': sum(w.nbytes for w in weights.values())},
        'weight_map': {k: n for n, keys in zip(names, shards) for k in keys}})


def _hf_config(source: pathlib.Path, cfg: config.ModelConfig, weights) -> dict:
  """config.json of the base model, the source's own where there is one."""
  derived = tables.config_to_hf(cfg.backbone, cfg.attention)
  file = source / 'config.json'
  hf = carried.without_code(checked_json.read(file, absent=derived))
  if hf.get('model_type') != derived['model_type']:  # a wrapper such as NV-Embed's
    hf = dict(derived)
  hf['architectures'] = [
      re.sub(r'(For[A-Z]\w+|LMHeadModel|Model)$', 'Model', name)
      for name in hf.get('architectures') or derived['architectures']]
  (dtype,) = {str(w.dtype) for w in weights.values()}
  hf.pop('dtype', None)
  hf['torch_dtype'] = dtype  # the name that old and new transformers read
  if 'use_cache' in hf:
    hf['use_cache'] = False
  if tables.is_decoder(cfg.backbone):
    # Which of the two a family reads, and what it does with both, differs.
    for key in ('is_causal', 'use_bidirectional_attention'):
      hf.pop(key, None)
    hf |= {key: derived[key]
           for key in ('is_causal', 'use_bidirectional_attention', 'sliding_window')
           # A window left out, some families fall back to one of 4096.
           if key in derived}
  return hf


def _copy_tokenizer(source: pathlib.Path, folder: pathlib.Path, max_length: int):
  carried.copy(source, folder)
  file = folder / 'tokenizer_config.json'
  if not (folder / 'tokenizer.json').is_file() or not file.is_file():
    raise FileNotFoundError(
        f'{source} needs tokenizer.json and tokenizer_config.json to export; '
        'AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes both')
  settings = checked_json.read(file)
  _write_json(file, settings | {'model_max_length': max_length})


def _write_json(file: pathlib.Path, data):
  file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + '\n', 'utf-8')
