"""Other names under which a family's weights are published.

Two kinds: model types of somebody's own code, whose tensors are those of a family and
whose code only makes it attend both ways; and models of several parts (text, pictures,
sound), of which the text part is read. Neither needs code of the folder; a name that is
not listed here is refused, whatever it seems to be.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxembed.convert.fields import Fields, UnsupportedModel
from jaxembed.files.folder import short

# Read in their authors' code: embedding models that attend both ways.
TWO_WAY = {
    'llama_bidirec': 'llama',  # NVIDIA: llama-embed-nemotron, llama-nemotron-embed
    'ministral3_bidirec': 'ministral3',  # NVIDIA's NeMo
    'bidirectional_pplx_qwen3': 'qwen3',  # Perplexity: pplx-embed
}
# What `pooling` of their config.json means; it holds where no modules.json says more.
_POOLINGS = {'avg': 'mean', 'mean': 'mean', 'cls': 'cls', 'last': 'last'}


@dataclasses.dataclass(frozen=True)
class Composite:
  """A model of several parts.

  Attributes:
    families: what its text part may be, the first one where it does not say.
    ignored: patterns of the other parts' tensors.
  """

  families: tuple[str, ...]
  ignored: tuple[str, ...] = (r'^vision_tower\.', r'^multi_modal_projector\.')


COMPOSITES = {'gemma3': Composite(('gemma3_text',)),
              'mistral3': Composite(('mistral', 'ministral3')),
              'embedding_gemma2': Composite(
                  ('embedding_gemma2_text',),
                  (r'^(vision|audio)_tower\.', r'^embed_(vision|audio)\.'))}


# Known by name, and not computed: why.
REFUSED = {'lfm2': 'its layers are of two kinds, convolutions and attention'}


def as_family(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """`config` (a parsed config.json) in a family's words; a family's own as it is.

  Raises:
    UnsupportedModel: a text part that is missing, or is not what such models have; a
      model that is known not to be computed.
  """
  kind = Fields(config).family
  if kind in REFUSED:
    raise UnsupportedModel(f'config.json: model_type {kind!r} is not supported: '
                           f'{REFUSED[kind]}')
  if kind in TWO_WAY:
    return _two_way(config, TWO_WAY[kind])
  if kind not in COMPOSITES:
    return config
  families, fields = COMPOSITES[kind].families, Fields(config)
  if not fields.object('text_config'):
    raise UnsupportedModel(f'config.json (model_type {kind!r}) lacks text_config, the '
                           'settings of its text part')
  part = {'model_type': families[0], **fields.data['text_config']}
  if part['model_type'] not in families:
    raise UnsupportedModel(
        f'config.json: text_config: model_type {short(part["model_type"])} is not '
        f'supported in a {kind}; known there: {", ".join(families)}')
  outer = {key: config[key] for key in ('quantization_config', 'compression_config')
           if config.get(key) is not None}
  return part | outer


def _two_way(config: Mapping[str, Any], family: str) -> dict[str, Any]:
  fields = Fields(config)
  if fields.flag('use_bidirectional_attention') is False:
    raise UnsupportedModel(
        f'config.json: use_bidirectional_attention=false in a {fields.family}, whose '
        f'code attends both ways; write model_type "{family}" if it is causal')
  if fields.get('sliding_window') and fields.flag('use_sliding_window', True):
    raise UnsupportedModel(
        f'config.json: sliding_window={config["sliding_window"]} is not supported in a '
        f'{fields.family}: what its code makes of one differs with its versions')
  own = {key: value for key, value in config.items() if key != 'auto_map'}
  return own | {'model_type': family, 'is_causal': False, 'sliding_window': None}


def pooling(config: Mapping[str, Any]) -> str | None:
  """The pooling that an own model type names in config.json; None: it names none."""
  fields = Fields(config)
  name = fields.text('pooling') if fields.family in TWO_WAY else None
  if name is None:
    return None
  if name not in _POOLINGS:
    raise UnsupportedModel(
        f'config.json: pooling {short(name)} is not supported; known for a '
        f'{fields.family}: {", ".join(_POOLINGS)}')
  return _POOLINGS[name]


def telling(config: Mapping[str, Any]) -> str:
  """A line on what is computed under a name that is no family's; '' for those."""
  kind = Fields(config).family
  if kind in TWO_WAY:
    return (f'config.json: model_type {kind!r} is computed as {TWO_WAY[kind]} that '
            'attends both ways, as its published code does; no code of a folder is run')
  if kind in COMPOSITES:
    return (f'config.json: of the {kind} only its text part is read, and texts alone '
            'can be embedded')
  return ''


def ignored(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Patterns of tensors that belong to other parts of the model."""
  found = COMPOSITES.get(str(Fields(config).family))
  return found.ignored if found else ()
