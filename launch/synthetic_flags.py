"""Flags of launch.mine for the loop over a language model: errors out, answers in."""

from collections.abc import Callable, Mapping
import os

from absl import flags

from jaxembed.embedder import Embedder
from jaxembed.files import place
from jaxembed.mining import errors, language_model, synthetic
from jaxembed.mining.candidates import Table
from jaxembed.mining.collection import Collection

_ERRORS = flags.DEFINE_string(
    'export_errors', None, 'File to write requests to a language model to: what the '
    'model gets wrong, in the form of a batch file of OpenAI.')
_RANK = flags.DEFINE_integer('error_rank', 1, 'So many documents above every positive '
                             'make an error.', lower_bound=1)
_PAIRS = flags.DEFINE_integer('new_pairs', 3, 'Pairs that a request asks for.')
_LLM = flags.DEFINE_string('llm', '', 'Name of the language model in the requests.')
_ENDPOINT = flags.DEFINE_string('endpoint', None, 'Server to send --export_errors to, '
                                'such as http://localhost:8000/v1.')
_KEY = flags.DEFINE_string('key_variable', 'OPENAI_API_KEY', 'Environment variable '
                           'with the key that --endpoint wants.')
_ANSWERS = flags.DEFINE_string('answers', None, 'Answers: written with --endpoint, and '
                               'read for pairs that retrieve their own positive.')
_TOP = flags.DEFINE_integer('consistent_top', 10, 'Within so many.', lower_bound=1)


def asked() -> bool:
  """Whether the command is about the language model."""
  return bool(_ERRORS.value or _ANSWERS.value or _ENDPOINT.value)


def run(texts: Collection, table: Table, models: Mapping[str, Callable[[], Embedder]],
        out: str | None, overwrite: bool) -> None:
  """What the flags ask for, in the order of the loop."""
  requests, answers = _ERRORS.value, _ANSWERS.value
  if _ENDPOINT.value and not (requests and answers):
    raise ValueError('--endpoint needs --export_errors (the requests) and --answers')
  if _ERRORS.value and not (_ANSWERS.value and place.fetched(_ERRORS.value).exists()):
    if not _LLM.value:
      raise ValueError('--export_errors needs --llm, the name of the language model')
    count = errors.export(texts, table, _ERRORS.value, model=_LLM.value,
                          rank=_RANK.value, pairs=_PAIRS.value, overwrite=overwrite)
    print(f'errors     {count} requests written to {_ERRORS.value}')
  if _ENDPOINT.value and requests and answers:
    answered, failed = language_model.ask(
        requests, _ENDPOINT.value, answers, key=os.environ.get(_KEY.value, ''))
    print(f'answers    {answered} written to {answers}, {failed} failed')
  if _ANSWERS.value:
    if table.teacher not in models:
      raise ValueError(f'--answers needs the --model that searched ({table.teacher})')
    target = out or texts.folder / 'synthetic.jsonl'
    count = synthetic.take(texts, models[table.teacher](), table.teacher,
                           _ANSWERS.value, target, top=_TOP.value, overwrite=overwrite)
    for name, number in vars(count).items():
      print(f'  {number:>7} {name.replace("_", " ")}')
    print(f'written    {target}')
