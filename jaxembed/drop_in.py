"""Error messages for calls of sentence-transformers that are made otherwise here."""

from collections.abc import Callable, Iterable, Mapping
import difflib
import functools
import inspect
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec('_P')
_R = TypeVar('_R')

# Name of SentenceTransformer -> what to do here.
ELSEWHERE = {
    'encode_multi_process': 'devices share the rows of one process; load with mesh='
                            'jaxembed.sharding.make_mesh() and call encode',
    'start_multi_process_pool': 'no pool is needed; load with mesh='
                                'jaxembed.sharding.make_mesh() and call encode',
    'stop_multi_process_pool': 'there is no pool to stop',
    'fit': 'jaxembed.fit(model, data) trains',
    'half': "load with dtype='float16'",
    'bfloat16': "load with dtype='bfloat16'",
    'float': "load with dtype='float32'",
    'cuda': 'JAX chooses the device (JAX_PLATFORMS) before the model is loaded',
    'cpu': 'JAX chooses the device (JAX_PLATFORMS) before the model is loaded',
    'train': 'jaxembed.fit(model, data) trains',
    'evaluate': 'jaxembed.evaluate(model, data) scores a model',
    'push_to_hub': 'save it, and upload the folder (hf upload REPO FOLDER)',
    'save_to_hub': 'save it, and upload the folder (hf upload REPO FOLDER)',
    'compile': 'programs are compiled as they are needed',
    'state_dict': 'parameters are the nested dict `params`',
    'parameters': 'parameters are the nested dict `params`',
    'forward': 'jaxembed.encode(params, cfg, tokens) is the forward pass',
    'dtype': 'cfg.dtype is that of activations',
    'add_adapter': "a config's ModelSpec.lora adds adapters",
    'load_adapter': 'Embedder.load opens an adapter folder with its base model',
    'set_pooling_include_prompt': "set cfg to dataclasses.replace(model.cfg, "
                                  "prompt_pooling='exclude') and load the tokenizer "
                                  'with it',
}


def nearest(name: str, names: Iterable[str]) -> str:
  """'; did you mean X?' of the most similar name, or ''."""
  found = difflib.get_close_matches(
      name, [n for n in names if not n.startswith('_')], 1)
  return f'; did you mean {found[0]!r}?' if found else ''


def refuse_unknown(call: Callable, unknown: Mapping[str, Any],
                   instead: Callable[[str], str] = lambda name: '') -> None:
  """Raises TypeError for keyword arguments that `call` does not have.

  instead: what to do in the place of the argument of this name, '' if not known.
  """
  if not unknown:
    return
  name = next(iter(unknown))
  known = [n for n in inspect.signature(call).parameters
           if n not in ('self', 'unknown')]
  said = instead(name)
  raise TypeError(f'{call.__name__}() has no argument {name!r}' + (
      f'; {said}' if said else
      f'{nearest(name, known)}; it has {", ".join(known)}'))


def names_arguments(instead: Callable[[str], str] = lambda name: ''
                    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
  """Decorator that refuses an argument which a function lacks as `refuse_unknown` does.

  The signature stays the one that type checkers and editors see.
  """
  def wrap(call: Callable[_P, _R]) -> Callable[_P, _R]:
    known = inspect.signature(call).parameters

    @functools.wraps(call)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
      refuse_unknown(call, {n: x for n, x in kwargs.items() if n not in known}, instead)
      return call(*args, **kwargs)

    return checked

  return wrap


def normalizes(asked: bool, older: bool | None, model: bool) -> bool:
  """Whether `encode` scales vectors, told so under its two names, of a model whose own
  modules do (`model`).

  Raises TypeError where these would have to be undone.
  """
  if older is None:
    return asked
  if not older and model:
    raise TypeError('normalize=False cannot take out the normalisation that the '
                    "model's own modules end with; leave it out, or set cfg to "
                    'dataclasses.replace(model.cfg, normalize=False)')
  return bool(asked or older)


def signature_of(_: Callable[_P, _R]) -> Callable[[Callable[..., Any]],
                                                  Callable[_P, _R]]:
  """Decorator of a function that hands its arguments on to another, of whose signature
  type checkers and editors take it to be."""
  def same(call: Any) -> Any:
    return call

  return same


def check_place(device: Any, pool: Any, own: str) -> None:
  """Raises TypeError unless `encode` may compute on `device`, where `own` is ours."""
  if pool is not None or (isinstance(device, list | tuple) and len(device) > 1):
    raise TypeError('several processes are not used here; devices share the rows of '
                    'one process: Embedder.load(..., mesh=jaxembed.sharding.'
                    'make_mesh())')
  device = device[0] if isinstance(device, list | tuple) and device else device
  if device is not None and str(device).partition(':')[0] not in (
      own, 'gpu' if own == 'cuda' else ''):
    raise TypeError(f'device is {str(device)!r}, but the model lives on {own}; JAX '
                    'chooses where (JAX_PLATFORMS), before the model is loaded')
