"""Tables of the keys in other libraries' settings files, and what becomes of each.

For each file one table says of every key whether it is applied, harmless to the
vectors, or refused unless it has one of the values that change nothing. A key that
no table has is refused by name, or told where other libraries pass over it as well.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any
import warnings

from jaxembed.files.folder import short


class UnsupportedModel(ValueError):
  """Files that describe a model the library does not compute exactly."""


@dataclasses.dataclass(frozen=True)
class Only:
  """Refused unless null or one of `values`; `remedy` says what can be done."""

  values: tuple[Any, ...] = ()
  remedy: str = ''


@dataclasses.dataclass(frozen=True)
class Within:
  """A dict whose keys are known from a table of their own."""

  table: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Told:
  """A warning: what this library does instead."""

  why: str


APPLIED = 'applied'  # by whoever reads the file
HARMLESS = 'harmless'
TOLD = Told('not known here, and left out of account')
OTHERS = '*'  # the rule of keys that a table does not name; without it, refused


def check(data: Mapping[str, Any], table: Mapping[str, Any], where: str) -> None:
  """Goes through every key of a file.

  Args:
    data: parsed JSON.
    table: one of those below.
    where: the file, as messages name it.

  Raises:
    UnsupportedModel: keys whose values would change the vectors, all in one message,
      each with its value and what can be done.
  """
  refused, told = [], []
  _walk(data, table, '', refused, told)
  if refused:
    raise UnsupportedModel(f'{where}: ' + '; '.join(refused))
  if told:
    warnings.warn(f'{where}: {"; ".join(told)}', stacklevel=3)


def _walk(data, table, path, refused, told):
  for key, value in data.items():
    rule, name = table.get(key, table.get(OTHERS)), f'{path}{key:.80}={short(value)}'
    if value is None or rule in (APPLIED, HARMLESS):
      continue
    if isinstance(rule, Within) and isinstance(value, Mapping):
      _walk(value, rule.table, f'{path}{key}.', refused, told)
    elif isinstance(rule, Told):
      told.append(f'{name}: {rule.why}')
    elif not (isinstance(rule, Only) and _among(value, rule.values)):
      refused.append(f'{name} is not supported, and would change the vectors '
                     f'({_remedy(rule)})')


def _among(value, values) -> bool:
  """Equality that tells True from 1."""
  return any(type(value) is type(v) and value == v for v in values)


def _remedy(rule) -> str:
  if not isinstance(rule, Only):
    return 'take the key out of a copy of the folder if the model does not need it'
  known = ' or '.join(repr(v) for v in rule.values)
  return '; '.join(filter(None, (known and f'known: {known}', rule.remedy))) or (
      'take it out of a copy of the folder if the model does not need it')


# --- sentence-transformers, layouts of 2.x to 6.x -----------------------------

_VECTOR = Only(('sentence_embedding',),
               'only modules that read and write the pooled vector are computed')

MODULES_ENTRY = {
    'idx': HARMLESS, 'name': HARMLESS, 'path': APPLIED, 'type': APPLIED,
    'kwargs': Only(([], {}), 'its modules take no arguments of a call here'),
}
POOLING = {
    'word_embedding_dimension': APPLIED, 'embedding_dimension': APPLIED,
    'pooling_mode': APPLIED, 'include_prompt': APPLIED,
    **dict.fromkeys((
        'pooling_mode_cls_token', 'pooling_mode_mean_tokens',
        'pooling_mode_max_tokens', 'pooling_mode_mean_sqrt_len_tokens',
        'pooling_mode_weightedmean_tokens', 'pooling_mode_lasttoken'), APPLIED),
}
DENSE = {
    'in_features': APPLIED, 'out_features': APPLIED, 'bias': APPLIED,
    'activation_function': APPLIED, 'use_residual': APPLIED,
    'module_input_name': _VECTOR, 'module_output_name': _VECTOR,
}
NORMALIZE = {'module_input_name': _VECTOR, 'module_output_name': _VECTOR}
DROPOUT = {'dropout': HARMLESS}
LAYER_NORM = {'dimension': APPLIED}
WEIGHTED_LAYERS = {
    'embedding_dimension': HARMLESS, 'word_embedding_dimension': HARMLESS,
    'layer_start': APPLIED, 'num_hidden_layers': APPLIED}

# Arguments for the hub and for memory, which every from_pretrained takes.
_LOADING: dict[str, Any] = dict.fromkeys((
    'token', 'use_auth_token', 'revision', 'code_revision', 'cache_dir',
    'local_files_only', 'force_download', 'trust_remote_code', 'subfolder'), HARMLESS)
_MODEL_ARGS: dict[str, Any] = _LOADING | dict.fromkeys((
    'torch_dtype', 'dtype', 'attn_implementation', 'add_pooling_layer',
    'use_safetensors', 'low_cpu_mem_usage', 'device_map', 'output_attentions',
    'output_hidden_states', 'unpad_inputs', 'use_memory_efficient_attention',
    'reference_compile'), HARMLESS)
_TOKENIZER_ARGS: dict[str, Any] = _LOADING | {
    'model_max_length': APPLIED, 'use_fast': HARMLESS, 'padding_side': HARMLESS,
    'clean_up_tokenization_spaces': HARMLESS, 'verbose': HARMLESS,
    OTHERS: Only((), 'write it into tokenizer_config.json instead'),
}
_CONFIG_ARGS: dict[str, Any] = _LOADING | {
    'attn_implementation': HARMLESS, 'torch_dtype': HARMLESS, 'dtype': HARMLESS,
    OTHERS: Only((), 'write it into config.json instead')}
_EACH_SIDE = Only((), 'queries and documents are cut at one length here; cut the '
                  'texts, or set max_seq_length')
SENTENCE_BERT = {
    'max_seq_length': APPLIED, 'do_lower_case': APPLIED,
    'transformer_task': Only(('feature-extraction',)),
    'modality_config': Only(
        ({'text': {'method': 'forward', 'method_output_name': 'last_hidden_state'}},),
        'only plain text is read'),
    'module_output_name': Only(('token_embeddings',)),
    'processing_kwargs': Only(({},)), 'unpad_inputs': HARMLESS,
    'query_length': _EACH_SIDE, 'document_length': _EACH_SIDE,
    'query_expansion': Only(),
    'model_args': Within(_MODEL_ARGS), 'model_kwargs': Within(_MODEL_ARGS),
    'tokenizer_args': Within(_TOKENIZER_ARGS),
    'processor_kwargs': Within(_TOKENIZER_ARGS),
    'config_args': Within(_CONFIG_ARGS), 'config_kwargs': Within(_CONFIG_ARGS),
    'tokenizer_name_or_path': Only((), 'put the tokenizer into the folder'),
    **dict.fromkeys(('prepend_text', 'prepend_id', 'prepend_start', 'prepend_stop',
                     'append_text'), APPLIED),  # of our own module
}
SETTINGS = {  # config_sentence_transformers.json
    '__version__': HARMLESS, 'requirements': HARMLESS, 'prompts': APPLIED,
    'default_prompt_name': APPLIED, 'similarity_fn_name': APPLIED,
    'truncate_dim': APPLIED, 'model_type': Only(
        ('SentenceTransformer',), 'its folder holds no model of one vector per text'),
    OTHERS: TOLD,
}

# --- PEFT ---------------------------------------------------------------------

_BASE_CHANGED = (
    'this start changes the base model too; save the adapter as plain LoRA, with '
    'save_pretrained(path_initial_model_for_weight_conversion=...)')
ADAPTER = {  # adapter_config.json
    **dict.fromkeys((
        'base_model_name_or_path', 'r', 'lora_alpha', 'lora_dropout', 'use_rslora',
        'use_dora', 'rank_pattern', 'alpha_pattern', 'trainable_token_indices',
    ), APPLIED),
    # Which modules have adapters, biases or values of their own is told by the names of
    # the tensors.
    **dict.fromkeys((
        'target_modules', 'exclude_modules', 'bias', 'modules_to_save', 'lora_bias',
        'layers_to_transform', 'layers_pattern',
        'task_type', 'inference_mode', 'peft_version', 'auto_mapping', 'loftq_config',
        'eva_config', 'corda_config', 'lora_ga_config', 'megatron_config',
        'megatron_core', 'qalora_group_size', 'runtime_config',
        'ensure_weight_tying'), HARMLESS),
    'peft_type': Only(('LORA',)),
    'init_lora_weights': Only((True, False, 'gaussian', 'eva', 'orthogonal'),
                              _BASE_CHANGED),
    'revision': Only(('main',), 'name the folder of that version as the base'),
    OTHERS: Only((False, [], {}, '')),
}

# --- transformers -------------------------------------------------------------

_NO_CODE = ('code of a folder is never run: the model that transformers itself has '
            'under this model_type is computed, and its vectors may differ from those '
            "of the folder's code")
CONFIG = {  # config.json: what changes the model whatever its type; the rest is
            # convert/configs.py's
    'auto_map': Within({
        'AutoModel': Told(_NO_CODE), OTHERS: HARMLESS}),
    OTHERS: HARMLESS,
}
TOKENIZER = {  # tokenizer_config.json
    **dict.fromkeys((
        'added_tokens_decoder', 'add_bos_token', 'add_eos_token', 'add_prefix_space',
        'additional_special_tokens', 'bos_token', 'cls_token', 'do_lower_case',
        'eos_token', 'extra_special_tokens', 'keep_accents', 'mask_token', 'max_len',
        'model_max_length', 'model_specific_special_tokens', 'pad_token', 'sep_token',
        'split_by_punct', 'split_special_tokens', 'strip_accents',
        'tokenize_chinese_chars',
        'tokenizer_class', 'truncation_side', 'unk_token'), APPLIED),
    # Of padding, of decoding, of other ways to call a tokenizer, of older classes
    # whose work tokenizer.json does.
    **dict.fromkeys((
        'backend', 'chat_template', 'clean_up_tokenization_spaces', 'cls_token_id',
        'cls_token_box', 'default_chat_template', 'do_basic_tokenize', 'errors',
        'extra_ids', 'from_slow', 'is_local', 'language', 'legacy',
        'legacy_behaviour', 'local_files_only', 'max_length',
        'name_or_path', 'never_split',
        'pad_to_multiple_of', 'pad_token_type_id', 'padding_side', 'processor_class',
        'response_template', 'sp_model_kwargs', 'spaces_between_special_tokens',
        'special_tokens_map_file', 'stride', 'tokenizer_file', 'trim_offsets',
        'truncation_strategy', 'use_default_system_prompt', 'use_fast', 'verbose',
        'vocab_file', 'merges_file', 'vocab_type', 'init_inputs', 'remove_space',
        'sep_token_box', 'only_label_first_subword', 'return_token_type_ids',
        'model_input_names', 'bos_token_id', 'eos_token_id', 'pad_token_id',
        'unk_id', 'unk_token_id', 'torch_dtype', 'transformers_version',
        '_commit_hash'),
                    HARMLESS),
    'auto_map': Within({'AutoTokenizer': Told(
        'code of a folder is never run: tokenizer.json alone is read'),
                        OTHERS: HARMLESS}),
    'fix_mistral_regex': Only((False,), 'write the right pattern into tokenizer.json'),
    OTHERS: TOLD,
}
