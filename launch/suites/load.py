"""Memory and time of loading; time of compiling deep models.

Loading: a synthetic bfloat16 Mistral of about 2 GB is written, then loaded in a
fresh process; its peak resident memory, less that of a process that only imported
the library, is compared with the checkpoint's size. The goal is at most 1.25.

Compiling: a forward pass of 4 and of 32 layers. The goal is at most twice.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from jaxembed.config import ModelConfig
from jaxembed.convert import from_hf, tables, tensor_files
from jaxembed.models import encoder, presets
from jaxembed.types import Tokens

from . import _resident

_SHARD = 500_000_000


def run(repeats: int, small: bool) -> list[dict]:
  return [*_loading(repeats, small), *_compiling(repeats, small)]


def _loading(repeats: int, small: bool):
  cfg = ModelConfig(backbone=presets.tiny('mistral') if small else presets.backbone(
      'mistral', vocab_size=32000, dim=2048, ff_dim=7168, num_layers=16,
      num_heads=16, num_kv_heads=8, head_dim=128, max_positions=4096))
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    size = _write(folder, cfg)
    for dtype in ('bfloat16', 'float32'):
      runs = [_child(folder, dtype) for _ in range(repeats)]
      kept = size * np.dtype(jax.numpy.dtype(dtype)).itemsize // 2
      yield {'what': f'load {size / 1e9:.2f} GB bfloat16 as {dtype}',
             'seconds': statistics.median(r['seconds'] for r in runs),
             'peak / size kept': max(r['peak'] for r in runs) / kept}


def _write(folder: pathlib.Path, cfg: ModelConfig) -> int:
  """A checkpoint of random bits that are small finite numbers; its bytes."""
  dtype = tensor_files.DTYPES['BF16']
  shapes = tables.flatten(encoder.param_shapes(cfg))
  names = {}
  for row, layer in tables.expand(tables.backbone_table(cfg.backbone).rows,
                                  cfg.backbone.num_layers):
    names[row.name.format(l=layer)] = (
        dtype, tables.part_shape(shapes[row.paths[0]].shape, row, layer))
  sizes = {n: 2 * int(np.prod(s)) for n, (_, s) in names.items()}
  shards = tensor_files.split(sizes.items(), _SHARD)
  rng, weight_map = np.random.default_rng(0), {}
  for i, shard in enumerate(shards):
    file = f'model-{i + 1:05}-of-{len(shards):05}.safetensors'
    tensor_files.write(
        folder / file, {n: names[n] for n in shard},
        lambda n: (rng.random(names[n][1], np.float32) - 0.5).astype(dtype))
    weight_map |= dict.fromkeys(shard, file)
  (folder / tensor_files.INDEX).write_text(json.dumps({'weight_map': weight_map}))
  (folder / 'config.json').write_text(json.dumps(tables.config_to_hf(cfg.backbone)))
  return sum(sizes.values())


def _child(folder: pathlib.Path, dtype: str) -> dict:
  """Loads in a fresh process: {'peak': bytes above an idle one, 'seconds'}."""
  out = subprocess.run(
      [sys.executable, '-m', __spec__.name, str(folder), dtype],
      check=True, capture_output=True, text=True).stdout
  return json.loads(out.splitlines()[-1])


def _measure(folder: str, dtype: str) -> dict:
  # The idle process has made an array, so the backend's own memory is in it.
  jax.block_until_ready(jax.numpy.zeros(8) + 1)
  idle, start = _resident.of('VmRSS'), time.perf_counter()
  loaded = from_hf.load(folder, dtype=dtype)
  jax.block_until_ready(loaded.params)
  return {'peak': _resident.of('VmHWM') - idle, 'seconds': time.perf_counter() - start}


def _compiling(repeats: int, small: bool):
  seconds = {}
  for layers in (4, 32):
    cfg = ModelConfig(backbone=presets.tiny('mistral', num_layers=layers)
                      if small else presets.backbone(
        'mistral', vocab_size=32000, dim=1024, ff_dim=3584, num_layers=layers,
        num_heads=16, num_kv_heads=8, head_dim=64, max_positions=4096))
    runs = [_compile(cfg, length) for length in range(64, 64 + repeats)]
    seconds[layers] = statistics.median(runs)
    yield {'what': f'compile forward pass, {layers} layers',
           'seconds': seconds[layers],
           'over 4 layers': seconds[layers] / seconds[4]}


def _compile(cfg: ModelConfig, length: int) -> float:
  ids: Any = jax.ShapeDtypeStruct((4, length), np.int32)
  flags: Any = jax.ShapeDtypeStruct((4, length), bool)
  start = time.perf_counter()
  jax.jit(encoder.encode, static_argnums=1).lower(
      encoder.param_shapes(cfg), cfg, Tokens(ids, flags, flags)).compile()
  return time.perf_counter() - start


if __name__ == '__main__':
  print(json.dumps(_measure(*sys.argv[1:])))
