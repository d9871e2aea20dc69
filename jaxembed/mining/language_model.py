"""Requests to a language model over HTTP, and its answers in a file.

Any server with OpenAI's chat completions serves. Answers are appended as they come, in
the form of OpenAI's batch results, and what is answered is not asked again.
"""

from collections.abc import Callable, Iterator
import json
import os
import pathlib
import time
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

from jaxembed.data import files
from jaxembed.files import place
from jaxembed.files.alone import alone

_ATTEMPTS = 5
_PASSING = (408, 409, 429, 500, 502, 503, 504)
_LONGEST = 1 << 24  # bytes of an answer


@place.remote(reads=('requests',), writes=('target',))
def ask(requests: str | os.PathLike, endpoint: str, target: str | os.PathLike, *,
        key: str = '', timeout: float = 120.0, wait: float = 2.0,
        say: Callable[[str], None] = print) -> tuple[int, int]:
  """Sends the requests that have no answer yet; returns (answered now, failed).

  Args:
    requests: a file of errors.export.
    endpoint: such as http://localhost:8000/v1.
    target: .jsonl file of answers, continued.
    key: sent as a bearer token; '': none.
    timeout: seconds for an answer.
    wait: seconds before a second attempt, doubled each time.

  Raises:
    ValueError: the endpoint is no http address, or refuses a request.
    OSError: it cannot be reached.
  """
  if urllib.parse.urlsplit(endpoint).scheme not in ('http', 'https'):
    raise ValueError(f'endpoint {endpoint!r} is no http address, such as '
                     'http://localhost:8000/v1')
  target, done = pathlib.Path(target), set()
  url = endpoint.rstrip('/') + '/chat/completions'
  answered = failed = 0
  with alone(target.with_name(target.name + '.lock'), f'target {target}',
             'choose another file'):
    if target.exists():
      _drop_half_line(target)
      if target.stat().st_size:
        done = {row.get('custom_id') for row, _ in files.JsonLines(target)}
    with target.open('a') as file:
      for row, where in files.JsonLines(requests):
        if row['custom_id'] in done:
          continue
        body = _sent(url, row['body'], key, timeout, wait, where)
        if body is None:
          failed += 1
          say(f'{where}: no answer after {_ATTEMPTS} attempts; the same command asks '
              'again')
          continue
        file.write(json.dumps({'custom_id': row['custom_id'], 'response': {
            'status_code': 200, 'body': body}}) + '\n')
        file.flush()
        answered += 1
  return answered, failed


@place.remote(reads=('answers',))
def contents(answers: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
  """(custom_id, text of the answer, 'file:line') of every answer.

  Of an answer that holds no text, because it failed for example, the text is ''.
  """
  for row, where in files.JsonLines(answers):
    found: Any = row
    for name in ('response', 'body', 'choices', 0, 'message', 'content'):
      try:
        found = found[name]
      except (KeyError, IndexError, TypeError):
        found = ''
        break
    own = row.get('custom_id', '') if isinstance(row, dict) else ''
    yield str(own), found if isinstance(found, str) else '', where


def _sent(url: str, body: dict[str, Any], key: str, timeout: float, wait: float,
          where: str) -> dict[str, Any] | None:
  """The answer; None after too many failures that may pass."""
  headers = {'Content-Type': 'application/json'}
  if key:
    headers['Authorization'] = f'Bearer {key}'
  for attempt in range(_ATTEMPTS):
    if attempt:
      time.sleep(wait * 2**(attempt - 1))
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
      with urllib.request.urlopen(request, timeout=timeout) as answer:
        found = json.loads(answer.read(_LONGEST))
      return found if isinstance(found, dict) else None
    except urllib.error.HTTPError as error:
      if error.code not in _PASSING:
        told = error.read(500).decode('utf-8', 'replace')
        raise ValueError(f'{where}: {url} refuses the request ({error.code} '
                         f'{error.reason}): {told}') from None
    except ValueError:  # what is no JSON
      continue
    except OSError as error:
      if attempt + 1 == _ATTEMPTS:
        raise OSError(f'{url} cannot be reached ({error})') from error
  return None


def _drop_half_line(file: pathlib.Path) -> None:
  """Cuts off a last line that a kill left without its end."""
  data = file.read_bytes()
  if data and not data.endswith(b'\n'):
    os.truncate(file, data.rfind(b'\n') + 1)
