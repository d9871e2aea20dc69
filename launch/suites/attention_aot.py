"""Memory of attention, as the compilers of chips that are not here plan it.

`forward` is of one text at Qwen3-0.6B's shape, 28 layers in bfloat16, on one chip;
`step` the update of the recipe nv_embed_v2 with all its texts of so many tokens. Of
the forms `dense` has all scores at once; `auto` is splash attention on a TPU, cuDNN's
on a GPU. GiB are of one chip, 'too much by' those beyond its memory; of what a
compiler refuses, 'temporaries' is what it says it needs. H100s need the CUDA plugin
(pip install 'jax[cuda13]') and no GPU. No figure is a timing. Each step of the 7B model
compiles for minutes.
"""

import dataclasses
import importlib.util
import os
import runpy
from typing import Any

import jax
import jax.numpy as jnp

from jaxembed import config, memory, sharding, types
from jaxembed.models import encoder, presets
from jaxembed.train import chips, plan, start
from jaxembed.train.chips import GIB

from .. import arguments

_FORWARD = ('v5e:2x2', 'h100:1')
_LENGTHS = (2048, 4096, 8192, 16384, 32768)
# Topology -> (data, fsdp, tensor).
_STEPS = {'v5p:4x4x4': (1, -1, 2), 'v6e:8x8': (1, -1, 2), 'h100:1': (1, 1, 1),
          'h100:8': (1, -1, 1)}
_STEP_LENGTHS = (512, 4096)
_FORMS = ('dense', 'auto')
# What XLA's compiler asks of an H100, and of cuDNN (tools/hlo_opt/gpu_specs in XLA).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def run(repeats: int, small: bool) -> list[dict]:
  """A row per chip, length and form; the steps last."""
  del repeats  # compilation is deterministic
  # Nothing runs on a TPU here: several suites may compile at a time.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  if small:
    return [forward('v5e:2x2', 512, form, layers=1) for form in _FORMS]
  return [row(chip, length, form)
          for row, topologies, lengths in ((forward, _FORWARD, _LENGTHS),
                                           (step, _STEPS, _STEP_LENGTHS))
          for chip in topologies if _described(chip)
          for length in lengths for form in _FORMS]


def _described(topology: str) -> bool:
  return not topology.startswith('h100') or bool(
      importlib.util.find_spec('jax_cuda13_plugin'))


def _row(length: int, dtype: str, mesh: jax.sharding.Mesh) -> Any:
  """The shape of what one text has for every token."""
  return jax.ShapeDtypeStruct(
      (1, length), dtype, sharding=jax.NamedSharding(mesh, jax.P(sharding.BATCH)))


def forward(topology: str, length: int, form: str, layers: int = 28) -> dict:
  """The row of one text of `length` tokens on the first chip of a topology."""
  cfg = presets.get('qwen3_0p6b')
  cfg = dataclasses.replace(cfg, attention_impl=form, backbone=dataclasses.replace(
      cfg.backbone, num_layers=layers))
  where, chip = plan.devices(topology, _H100)
  mesh = sharding.make_mesh((1, 1, 1), where[:1])
  with jax.set_mesh(mesh):
    params = sharding.abstract(encoder.param_shapes(cfg, jnp.bfloat16), mesh)
    ids, flags = (_row(length, dtype, mesh) for dtype in ('int32', 'bool'))
    lowered = jax.jit(encoder.encode, static_argnums=1).lower(
        params, cfg, types.Tokens(ids, flags, flags))
  try:
    sizes = lowered.compile().memory_analysis()
    assert sizes is not None
    needs = sizes.temp_size_in_bytes
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    needs = plan.needed(str(error))
  return {'program': 'forward', 'chips': topology.partition(':')[0], 'tokens': length,
          'form': form, **_memory(memory.bytes_here(params), needs, chip)}


def step(topology: str, length: int, form: str) -> dict:
  """The row of a training step of the recipe, all of its texts of `length` tokens."""
  cfg = _recipe(length, form)
  where, chip = plan.devices(topology, _H100)
  model = dataclasses.replace(presets.get('mistral_7b'), dtype='float32')
  found = plan.compile_stage(cfg, 0, start.apply_spec(model, cfg.model),
                             sharding.make_mesh(_STEPS[topology], where))
  return {'program': 'step', 'chips': topology, 'tokens': length, 'form': form,
          **_memory(found.arguments, found.temporaries, chip)}


def _memory(state: int, temporaries: int, chip: chips.Chip) -> dict:
  return {'state': state / GIB, 'temporaries': temporaries / GIB,
          'too much by': max(state + temporaries - chip.hbm, 0) / GIB or ''}


def _recipe(length: int, form: str) -> config.Config:
  cfg = runpy.run_path(str(arguments.RECIPES / 'nv_embed_v2.py'))['get_config']()
  cfg.model.attention_impl, cfg.model.max_length = form, length
  data = cfg.stages[0].data
  data.query_lengths = data.passage_lengths = (length,)
  return config.validate(cfg)
