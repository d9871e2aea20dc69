"""The pipeline that a tokenizer class of transformers builds around a vocabulary.

Most classes of transformers 5 take no more than vocabulary, merges and added tokens
from tokenizer.json; how text is normalised and split, and for some which tokens stand
around it, is their own code's affair. What is built here is what these classes build.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any
import warnings

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxembed.files import checked_json
from jaxembed.files.known_keys import UnsupportedModel

# The class of each model type: for all but the last it is a default, which a class
# that the folder names replaces.
_BY_MODEL_TYPE = {
    'bert': 'BertTokenizer', 'mpnet': 'MPNetTokenizer', 'roberta': 'RobertaTokenizer',
    'xlm-roberta': 'XLMRobertaTokenizer', 'qwen3': 'Qwen2Tokenizer',
    **dict.fromkeys(('gemma', 'gemma2', 'gemma3', 'gemma3_text'), 'GemmaTokenizer'),
    'qwen3_moe': 'Qwen2Tokenizer', 'phi': 'GPT2Tokenizer', 'olmo': 'GPTNeoXTokenizer',
    'qwen2': 'Qwen2Tokenizer', 'camembert': 'CamembertTokenizer',
    'distilbert': 'BertTokenizer', 'electra': 'BertTokenizer',
    'nomic_bert': 'BertTokenizer', 't5': 'T5Tokenizer', 'mt5': 'T5Tokenizer',
    'gte': 'XLMRobertaTokenizer', 'jina_embeddings_v3': 'XLMRobertaTokenizer',
    'albert': 'AlbertTokenizer', 'deberta-v2': 'DebertaV2Tokenizer'}
_ALWAYS = ('qwen2',)
# Types whose tokenizer.json is read as it stands, whatever class is named; the code of
# NV-Embed is of transformers 4, which does so with all.
_AS_IT_STANDS = ('mistral', 'ministral', 'ministral3', 'mistral3', 'mixtral', 'granite',
                 'olmo2', 'olmo3', 'modernbert', 'nvembed', 'phi3', 'umt5',
                 'xlm-roberta-xl')
_QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_MARK = '\u2581'  # how sentencepiece writes a space


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
  """What one class of transformers builds.

  Attributes:
    model: of the tokenizers library.
    options: of that model.
    pipeline: (tokenizer, settings) -> sets normaliser and splitting.
    frame: the settings that name the tokens before and behind a text, '' for none;
      (): what tokenizer.json says.
    tokens: special tokens where the settings name none.
    unknown: the id of what the vocabulary lacks; None: what tokenizer.json says.
  """

  model: type
  options: Mapping[str, Any]
  pipeline: Callable[[tokenizers.Tokenizer, Mapping[str, Any]], None]
  frame: tuple[str, ...]
  tokens: Mapping[str, str]
  unknown: int | None = None


def resolve(settings: Mapping[str, Any], folder: pathlib.Path,
            fast: tokenizers.Tokenizer) -> str:
  """The class with which transformers reads the folder, without 'Fast'; '' for none
  that builds anything: tokenizer.json as it stands.

  Raises:
    UnsupportedModel: a class whose pipeline is not known.
  """
  model = checked_json.read(folder / 'config.json', absent={})
  kind = str(model.get('model_type'))
  named = settings.get('tokenizer_class') or model.get('tokenizer_class')
  named = str(named).removesuffix('Fast') if named else ''
  if kind in _AS_IT_STANDS or (named == 'LlamaTokenizer' and _is_byte_level(fast)):
    named = _BY_MODEL_TYPE[kind] if kind in _ALWAYS else ''
  elif not named or kind in _ALWAYS:
    named = _default(kind, fast, folder)
  if named in _OTHERS:
    raise UnsupportedModel(
        f'{folder}/tokenizer_config.json: tokenizer_class={named!r} splits texts in '
        'transformers in a way that is not computed here; if tokenizer.json is right, '
        'write "TokenizersBackend"')
  return named if named in CLASSES else ''


def _default(kind: str, fast: tokenizers.Tokenizer, folder: pathlib.Path) -> str:
  """The class of a model type, if the vocabulary is of its kind."""
  name = _BY_MODEL_TYPE.get(kind, '')
  if name and not isinstance(fast.model, CLASSES[name].model):
    warnings.warn(
        f'{folder}/tokenizer.json holds {type(fast.model).__name__} and is read as it '
        f'stands; transformers reads the tokenizer of a {kind} as {name}' + (
            ', whatever tokenizer_config.json names' if kind in _ALWAYS else ' unless '
            'tokenizer_config.json has "tokenizer_class": "TokenizersBackend"'),
        stacklevel=5)
    return ''
  return name


def with_defaults(settings: Mapping[str, Any], name: str,
                  fast: tokenizers.Tokenizer) -> dict[str, Any]:
  """`settings` with the special tokens that the class has where they name none."""
  known = CLASSES[name].tokens if name else {}
  return {key: token for key, token in known.items()
          if fast.token_to_id(token) is not None} | {
              key: value for key, value in settings.items()
              if value is not None or key not in known}


def frame(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """The tokens before and behind every text that the class of `settings`, as
  tokenizer_settings.read gives them, has by itself; () for those of tokenizer.json."""
  name = settings['tokenizer_class']
  keys = CLASSES[name].frame if name else ()
  return tuple(spelling(settings.get(key)) or '' for key in keys)


def build(fast: tokenizers.Tokenizer, settings: Mapping[str, Any], name: str,
          file: pathlib.Path) -> None:
  """Gives `fast` the pipeline of the class; '' changes nothing.

  Raises:
    UnsupportedModel: tokenizer.json holds another kind of vocabulary, or draws tokens
      at random.
  """
  if not name:
    if getattr(fast.model, 'dropout', None):
      raise UnsupportedModel(f'{file.parent}/tokenizer.json: its model has dropout='
                             f'{fast.model.dropout}, which draws tokens at random; '
                             'write null')
    return
  known, model = CLASSES[name], fast.model
  if not isinstance(model, known.model):
    raise UnsupportedModel(
        f'{file}: transformers reads it as {name}, a {known.model.__name__} tokenizer, '
        f'but tokenizer.json holds {type(model).__name__}; if tokenizer.json is right, '
        'write "tokenizer_class": "TokenizersBackend"')
  for option, value in known.options.items():
    setattr(model, option, value)
  if known.unknown is not None and _unknown(model) != known.unknown:
    raise UnsupportedModel(
        f'{file}: {name} gives what its vocabulary lacks the id {known.unknown}, but '
        f'tokenizer.json {_unknown(model)}; if tokenizer.json is right, write '
        '"tokenizer_class": "TokenizersBackend"')
  if known.model is models.WordPiece or known.pipeline is _gemma:
    model.unk_token = spelling(settings.get('unk_token')) or ''
  known.pipeline(fast, settings)
  if known.frame:
    before, behind = frame(settings)
    ids = [(token, fast.token_to_id(token)) for token, key in zip(
        (before, behind), known.frame) if key]
    lacking = [token for token, number in ids if number is None]
    if lacking:
      raise UnsupportedModel(f'{file}: {name} puts {lacking[0]!r:.80} around a text, '
                             'which tokenizer.json lacks; name the tokens as '
                             f'{" and ".join(filter(None, known.frame))}')
    fast.post_processor = processors.TemplateProcessing(
        single=[*filter(None, (before, '$A', behind))], special_tokens=ids)


def _unknown(model: tokenizers.models.Model) -> int | None:
  """The id of a character that no vocabulary has; None: there is none."""
  try:
    return model.tokenize('\U0010fffd')[0].id
  except (IndexError, Exception):  # the library raises Exception itself
    return None


def spelling(token: Any) -> str | None:
  """The text of a token of tokenizer_config.json, which has it plain or with its
  settings; None: it is no token."""
  text = token.get('content') if isinstance(token, dict) else token
  return text if isinstance(text, str) else None


def _is_byte_level(fast: tokenizers.Tokenizer) -> bool:
  return 'ByteLevel' in f'{fast.pre_tokenizer!r}{fast.decoder!r}'


# --- Pipelines ----------------------------------------------------------------


def _bert(fast, settings) -> None:
  fast.normalizer = normalizers.BertNormalizer(
      clean_text=True, lowercase=settings.get('do_lower_case', True) is not False,
      handle_chinese_chars=settings.get('tokenize_chinese_chars', True) is not False,
      strip_accents=settings.get('strip_accents'))
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _bytes(fast, settings) -> None:
  fast.normalizer = None
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(
      add_prefix_space=settings.get('add_prefix_space') is True)


def _neox(fast, settings) -> None:
  _bytes(fast, settings)
  fast.normalizer = normalizers.NFC()
  # No token around a text: add_bos_token is left out where there is a tokenizer.json.
  fast.post_processor = processors.TemplateProcessing(single='$A', special_tokens=[])


def _qwen(fast, settings) -> None:
  fast.normalizer = normalizers.NFC()
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_QWEN), behavior='isolated'),
      pre_tokenizers.ByteLevel(
          add_prefix_space=settings.get('add_prefix_space') is True, use_regex=False)])


def _xlm_roberta(fast, settings) -> None:
  fast.normalizer = _precompiled(fast.normalizer)
  spaced = settings.get('add_prefix_space', True) is not False
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.WhitespaceSplit(),
      pre_tokenizers.Metaspace(prepend_scheme='always' if spaced else 'never')])


def _t5(fast, settings) -> None:
  _xlm_roberta(fast, {})


def _albert(fast, settings) -> None:
  steps: list[Any] = [
      normalizers.Replace('``', '"'), normalizers.Replace("''", '"')]
  if settings.get('keep_accents') is not True:
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
  if settings.get('do_lower_case', True) is not False:
    steps.append(normalizers.Lowercase())
  table = _precompiled(fast.normalizer)
  _xlm_roberta(fast, settings)
  fast.normalizer = normalizers.Sequence([*steps, *([table] if table else [])])
  if fast.post_processor is None:
    fast.post_processor = processors.TemplateProcessing(
        single=['[CLS]', '$A', '[SEP]'],
        special_tokens=[(t, fast.token_to_id(t)) for t in ('[CLS]', '[SEP]')])


def _deberta(fast, settings) -> None:
  steps = [normalizers.Lowercase()] if settings.get('do_lower_case') is True else []
  fast.normalizer = normalizers.Sequence([
      *steps, normalizers.Replace(tokenizers.Regex(r'\s{2,}|[\n\r\t]'), ' '),
      normalizers.NFC(), normalizers.Strip(left=False, right=True)])
  spaced = settings.get('add_prefix_space', True) is not False
  split = [pre_tokenizers.Punctuation(behavior='isolated')] if settings.get(
      'split_by_punct') is True else []
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      *split, pre_tokenizers.Metaspace(prepend_scheme='always' if spaced else 'first')])


def _precompiled(normalizer) -> normalizers.Normalizer | None:
  """The first table of sentencepiece in a normaliser."""
  if isinstance(normalizer, normalizers.Sequence):
    steps = [normalizer[i] for i in range(len(normalizer))]
  else:
    steps = [normalizer]
  return next((s for s in steps if isinstance(s, normalizers.Precompiled)), None)


def _llama(fast, settings) -> None:
  scheme = 'always' if settings.get('legacy') else 'first'
  if settings.get('add_prefix_space') is False:
    scheme = 'never'
  fast.normalizer = None
  fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


def _gemma(fast, settings) -> None:
  fast.normalizer = normalizers.Replace(' ', _MARK)
  fast.pre_tokenizer = pre_tokenizers.Split(' ', behavior='merged_with_previous')


_WORD_PIECE = {'max_input_chars_per_word': 100, 'continuing_subword_prefix': '##'}
_BPE = {'dropout': None, 'unk_token': None, 'fuse_unk': False, 'byte_fallback': False,
        'ignore_merges': False, 'continuing_subword_prefix': '',
        'end_of_word_suffix': ''}
_FALLBACK = {**_BPE, 'fuse_unk': True, 'byte_fallback': True,
             'continuing_subword_prefix': None, 'end_of_word_suffix': None}
_BERT = TokenizerClass(
    models.WordPiece, _WORD_PIECE, _bert, ('cls_token', 'sep_token'),
    {'unk_token': '[UNK]', 'sep_token': '[SEP]', 'pad_token': '[PAD]',
     'cls_token': '[CLS]', 'mask_token': '[MASK]'})
_ROBERTAS = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
             'sep_token': '</s>', 'pad_token': '<pad>', 'cls_token': '<s>',
             'mask_token': '<mask>'}
_BRACKETS = {'bos_token': '[CLS]', 'eos_token': '[SEP]', 'unk_token': '[UNK]',
             'sep_token': '[SEP]', 'pad_token': '[PAD]', 'cls_token': '[CLS]',
             'mask_token': '[MASK]'}
_END = '<|endoftext|>'
CLASSES = {
    **dict.fromkeys((
        'BertTokenizer', 'DistilBertTokenizer', 'ElectraTokenizer', 'LxmertTokenizer',
        'LayoutLMTokenizer', 'MobileBertTokenizer', 'SqueezeBertTokenizer'), _BERT),
    'MPNetTokenizer': dataclasses.replace(
        _BERT, tokens={**_ROBERTAS, 'unk_token': '[UNK]'}),
    **dict.fromkeys((
        'RobertaTokenizer', 'BartTokenizer', 'LEDTokenizer', 'LongformerTokenizer'),
                    TokenizerClass(models.BPE, _BPE, _bytes,
                                   ('cls_token', 'sep_token'), _ROBERTAS)),
    'XLMRobertaTokenizer': TokenizerClass(
        models.Unigram, {}, _xlm_roberta, ('bos_token', 'eos_token'), _ROBERTAS, 3),
    'CamembertTokenizer': TokenizerClass(
        models.Unigram, {}, _xlm_roberta, ('bos_token', 'eos_token'), _ROBERTAS),
    **dict.fromkeys(('T5Tokenizer', 'MT5Tokenizer'), TokenizerClass(
        models.Unigram, {}, _t5, ('', 'eos_token'),
        {'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'}, 2)),
    'AlbertTokenizer': TokenizerClass(
        models.Unigram, {}, _albert, (),
        _BRACKETS | {'unk_token': '<unk>', 'pad_token': '<pad>'}, 1),
    'DebertaV2Tokenizer': TokenizerClass(
        models.Unigram, {}, _deberta, ('cls_token', 'sep_token'), _BRACKETS),
    'GPT2Tokenizer': TokenizerClass(
        models.BPE, _BPE, _bytes, (),
        {'bos_token': _END, 'eos_token': _END, 'unk_token': _END}),
    'GPTNeoXTokenizer': TokenizerClass(
        models.BPE, _BPE, _neox, (),
        {'bos_token': _END, 'eos_token': _END, 'unk_token': _END,
         'pad_token': '<|padding|>'}),
    'Qwen2Tokenizer': TokenizerClass(
        models.BPE, _BPE, _qwen, (),
        {'eos_token': _END, 'unk_token': _END, 'pad_token': _END}),
    'LlamaTokenizer': TokenizerClass(
        models.BPE, _FALLBACK, _llama, (),
        {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}),
    'GemmaTokenizer': TokenizerClass(
        models.BPE, _FALLBACK, _gemma, (),
        {'bos_token': '<bos>', 'eos_token': '<eos>', 'unk_token': '<unk>',
         'pad_token': '<pad>', 'mask_token': '<mask>'}),
}
# Classes with a pipeline of their own that no model computed here has by default.
_OTHERS = frozenset(f'{name}Tokenizer' for name in (
    'Barthez', 'BigBird', 'Blenderbot', 'Bloom', 'CLIP',
    'CodeGen', 'CodeLlama', 'Cohere', 'ConvBert', 'DPRContextEncoder',
    'DPRQuestionEncoder', 'DPRReader', 'Deberta', 'Funnel',
    'Herbert', 'LayoutLMv2', 'LayoutLMv3', 'LayoutXLM', 'MBart', 'MBart50', 'MLuke',
    'Nllb', 'OpenAIGPT', 'Pegasus', 'Reformer', 'RemBert', 'RoFormer',
    'Seamless', 'Splinter', 'Whisper', 'XGLM', 'XLNet'))
