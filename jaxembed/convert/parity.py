"""Parity check of an exported folder: its vectors in torch against those in JAX.

The folder is loaded by sentence-transformers and given texts that break careless
models (empty, a letter, other scripts, longer than the limit), padded on either
side, with and without prompts. What is compared is the whole way from string to
vector, both tokenizers included.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxembed import config, similarity, types
from jaxembed.data import tokenise
from jaxembed.files import carried
from jaxembed.files.folder import BadCheckpoint
from jaxembed.models import encoder, training_free
from jaxembed.pooling import heads
from jaxembed.pooling.head import Twin

# Of two unit vectors in float32: an ulp of 1 is 1.2e-7, and a network of a few
# dozen layers adds its roundings in another order.
TOLERANCE = 1e-5
# Against a source in float32, where the weights were rounded to 16 bits: a model that
# was read wrongly differs by more.
ROUNDED = 0.05

_LONG = ('It was a bright cold day in April, and the clocks were striking '
         'thirteen; nobody at the station seemed to mind. ')
PROBES = (
    '', ' ', 'a', '.', 'Hello', 'A girl is styling her hair.',
    'What is the capital of France?', 'UPPER lower 0123456789 3.14 1,000',
    'Line one.\nLine two.\n\n\tIndented line.', '  spaces  around  ',
    'naïve façade Ångström — “quotes” … €5', '\u0065\u0301 is not \u00e9',
    'Быстрая бурая лиса', 'الثعلب البني السريع', '敏捷的棕色狐狸跳过了懒狗',
    'すばやい茶色の狐', '빠른 갈색 여우', '👩‍👩‍👧‍👦🚀🇫🇷', 'a' * 300,
    'def f(x: int) -> int:\n  return x if x < 2 else f(x - 1) + f(x - 2)',
    '<a href="https://example.org/?q=1&r=2">link</a>', _LONG, _LONG * 40,
)
_encode = jax.jit(encoder.encode, static_argnums=1)
_PROBE_PROMPT = 'Represent this sentence for searching: '


class Mismatch(ValueError):
  """The exported model is not the one that was trained."""


@dataclasses.dataclass(frozen=True)
class Case:
  """Texts under one prompt and padding side, and their vectors in JAX."""

  side: str
  prompt: str
  texts: list[str]
  vectors: np.ndarray  # [texts,E] float32


def expected(folder: str | os.PathLike, params: types.Params, cfg: config.ModelConfig,
             *, prompts: Mapping[str, str], include_prompt: bool) -> list[Case]:
  """The vectors of every probe, read with the tokenizer in `folder`.

  Behind it the parameters are not needed any more.

  Raises:
    ValueError: no probe leaves a token within max_length.
  """
  tokenizer = tokenise.Tokenizer.for_model(folder, dataclasses.replace(
      cfg, prompt_pooling='include' if include_prompt else 'exclude',
      eos_text=cfg.eos_text if cfg.prepend else ''))
  cases = []
  tried = dict.fromkeys(['', *filter(None, prompts.values()), _PROBE_PROMPT])
  for side, prompt in itertools.product(('right', 'left'), tried):
    texts = _poolable(tokenizer, prompt, cfg.max_length)
    if not texts:  # the prompt alone fills max_length, and is left out of the vector
      continue
    ragged = tokenizer.encode(texts, prompt, max_length=cfg.max_length)
    tokens = tokenise.pad(ragged, int(ragged.lengths.max()),
                          pad_id=tokenizer.pad_id, side=side)
    cases.append(Case(side, prompt, texts, _jax_vectors(params, cfg, tokens)))
  if not cases:
    raise ValueError(f'max_length={cfg.max_length} leaves no token of any text beside '
                     'the special ones, so nothing can be compared; give more')
  return cases


def check(folder: str | os.PathLike, cases: Sequence[Case],
          original: str | os.PathLike | None = None,
          tolerance: float = TOLERANCE, of_source: float = TOLERANCE) -> dict:
  """Compares on every probe; the report: largest differences and conditions.

  A difference is that of two vectors scaled to length 1, so that it means the
  same for models that do not normalise. One model is open in torch at a time.

  Args:
    cases: what JAX computes, of `expected`.
    original: the folder whose model this is, unchanged: where sentence-transformers
      opens it, its vectors in torch are compared too, so that what was read of it is
      checked by somebody else's reading. None: there is none, as after training.
    of_source: allowed between the two, ROUNDED where weights were rounded.

  Raises:
    Mismatch: a difference is above `tolerance`, or not a number; the message
      names text, padding side and prompt.
  """
  theirs, report = torch_model(folder), []
  for case in cases:
    difference = np.abs(unit(case.vectors) - unit(_torch_vectors(
        theirs, case.texts, case.prompt, case.side))).max(-1)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    report.append({'padding': case.side, 'prompt': case.prompt,
                   'texts': len(case.texts),
                   'max_difference': float(difference[worst])})
    if not difference[worst] <= tolerance:
      raise Mismatch(
          f'torch and JAX differ by {difference[worst]:.3g} (allowed: '
          f'{tolerance:g}) on {case.texts[worst]!r:.60}, padding {case.side}, prompt '
          f'{case.prompt!r:.60}; the export was discarded')
  source = {}
  if original is not None:
    texts = next((c.texts for c in cases if not c.prompt), [])
    alone = _alone(theirs, dict.fromkeys(c.prompt for c in cases), texts)
    del theirs
    source = {'source': _against(original, alone, of_source)}
  return {'max_difference': max(c['max_difference'] for c in report),
          'tolerance': tolerance, 'dtype': 'float32', 'cases': report, **source,
          'versions': versions() | {'jax': jax.__version__}}


def _alone(model, prompts, texts) -> dict[tuple[str, str], np.ndarray]:
  """The unit vector of each text behind each prompt, each on its own."""
  return {(prompt, text): unit(model.encode([text], prompt=prompt,
                                            show_progress_bar=False))
          for prompt, text in itertools.product(prompts, texts)}


def _against(original, found, tolerance: float) -> dict:
  """The vectors of the export in torch against those of its source in torch."""
  if code := carried.code_named(original):
    return {'compared': False, 'why': f'it needs code of its own: {sorted(code)}'}
  try:
    model = torch_model(original)
  except Exception as e:  # whatever keeps sentence-transformers from opening it
    return {'compared': False, 'why': f'{type(e).__name__}: {e}'[:300]}
  worst = 0.0
  for (prompt, text), b in found.items():
    try:
      (a,) = _alone(model, [prompt], [text]).values()
    except Exception as e:  # of a length above its positions, say
      return {'compared': False, 'why': f'it fails on {text!r:.60}: '
              f'{type(e).__name__}: {e}'[:300]}
    difference = np.abs(a - b).max() if a.shape == b.shape else np.inf
    worst = max(worst, float(difference))
    if not difference <= tolerance:
      raise Mismatch(
          f'the export and its source {original} differ in torch by {difference:.3g} '
          f'(allowed: {tolerance:g}) on {text!r:.60}, prompt {prompt!r:.60}; something '
          'of the source was read wrongly, and the export was discarded')
  return {'compared': True, 'max_difference': worst}


def versions() -> dict[str, str]:
  """Releases of the torch side, under sentence-transformers' names."""
  return {key: importlib.metadata.version(package) for key, package in (
      ('sentence_transformers', 'sentence-transformers'),
      ('transformers', 'transformers'), ('pytorch', 'torch'))}


def _poolable(tokenizer, prompt: str, max_length: int) -> list[str]:
  """Probes that leave a token to pool; not all tokenizers frame empty texts."""
  kept = []
  for text in PROBES:
    try:
      tokenizer.encode([text], prompt, max_length=max_length)
    except ValueError:
      continue
    kept.append(text)
  return kept


def _jax_vectors(params, cfg, tokens) -> np.ndarray:
  cfg = dataclasses.replace(cfg, dtype='float32', precision='highest', remat='none')
  return np.asarray(_encode(params, cfg, tokens))


def torch_model(folder: str | os.PathLike) -> Any:
  """The SentenceTransformer of an export, in float32 on the CPU.

  Raises:
    BadCheckpoint: it names code that is not ours. ImportError: it is not installed.
  """
  try:
    from sentence_transformers import SentenceTransformer
  except ImportError as e:
    raise ImportError('checking an export needs sentence-transformers and torch: '
                      "pip install 'jaxembed[torch]'") from e
  model = SentenceTransformer(
      os.fspath(pathlib.Path(folder)), device='cpu', trust_remote_code=_is_ours(folder),
      model_kwargs={'torch_dtype': 'float32'}, local_files_only=True)
  model.truncate_dim = None  # all dimensions are compared
  return model.eval()


def _is_ours(folder) -> bool:
  """Whether an export brings code: our own modules, letter by letter.

  Raises:
    BadCheckpoint: it names any other, and must not be opened in torch.
  """
  code = set(carried.code_named(folder))
  if not code:
    return False
  for twin in (training_free.TWIN, *(h.twin for h in heads.HEADS.values() if h.twin)):
    name = f'{twin.module}.py'
    file = pathlib.Path(folder) / name
    if file.is_file() and twin_file(twin).read_bytes() == file.read_bytes():
      code -= {name, f'modules.json: {twin.type!r}'}
  if not code:
    return True
  raise BadCheckpoint(f'{folder} names code that is not ours: '
                      f'{", ".join(sorted(code))}; refused')


def twin_file(twin: Twin) -> pathlib.Path:
  """The file of a torch module, as it lies here."""
  return pathlib.Path(__file__).parent / twin.source


def _torch_vectors(model, texts, prompt: str, side: str) -> np.ndarray:
  if hasattr(model.tokenizer, 'padding_side'):  # StaticEmbedding pads nothing
    model.tokenizer.padding_side = side
  # One batch: under left padding, models that count positions from the row's
  # start see how wide it is.
  return model.encode(texts, prompt=prompt, batch_size=len(texts),
                      show_progress_bar=False)


def unit(x: np.ndarray) -> np.ndarray:
  """x / |x| along the last axis, in float64; zero stays zero."""
  return similarity.unit(x.astype(np.float64))
