"""URLs of object stores (gs://, s3://): told from paths, their objects read, written.

obstore (the extra `remote`) speaks with the stores: it reads the usual variables and
files of credentials (AWS_*, GOOGLE_*), and AWS_ENDPOINT_URL for other servers of S3.
What may pass (5xx, a cut or silent connection) is tried again for `PATIENCE` seconds.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import time
from typing import Any, TypeVar

from jaxembed.files.folder import short

SCHEMES = ('gs', 's3')
PATIENCE = 600.0  # seconds
_ACCOUNT = 60.0  # seconds that a machine may need to say which account it has
_PAUSE = 0.2, 10.0  # seconds between attempts: the first, and the longest
_CHUNK = 8 << 20  # bytes of one request: a cut connection costs no more
_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+)://(.*)', re.DOTALL)
# What pathlib makes of the URLs that people have: one slash is left. And none.
_FLAT = re.compile(
    r'(gs|gcs|s3|s3a|s3n|az|abfss?|adl|wasbs?|hdfs|https?|ftp|sftp|file|hf|dbfs|oss|r2)'
    r':(?:/|(?<=gs:)|(?<=s3:))([^/].*)', re.DOTALL)
# What a store or its client says of credentials that are wrong; and of none.
_WRONG_ACCOUNT = (r'OpenCredentials|DecodeCredentials|InvalidAccessKeyId|'
                  r'SignatureDoesNotMatch|AccessDenied|40[13] ')
_NO_ACCOUNT = re.compile(
    rf'169\.254\.169\.254|metadata\.google|Unauthen|{_WRONG_ACCOUNT}')
_ACCOUNTS = {
    's3': 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION), or give '
          'the machine a role',
    'gs': 'set GOOGLE_APPLICATION_CREDENTIALS to the file of an account, run `gcloud '
          'auth application-default login`, or give the machine an account'}
# What stores say where no second attempt helps, and what does.
_REMEDIES = {
    r'NoSuchBucket|bucket does not exist':
        'there is no such bucket; correct its name, or create it first',
    r'InvalidBucketName': 'no bucket can have that name; correct it',
    r'RequestTimeTooSkewed|reasonable timeframe':
        "this machine's clock is wrong; set it, and try again",
    r'incorrectly configured region|PermanentRedirect|AuthorizationHeaderMalformed':
        'set AWS_REGION to the region of the bucket'}
_FINAL = re.compile('|'.join([*_REMEDIES, _WRONG_ACCOUNT, '400 ', 'builder error']))
_LOCAL = 'use a local folder and copy it, or name the whole workdir where one is wanted'
_T = TypeVar('_T')


def of(path: Any) -> str | None:
  """The URL that a path is, without a slash at its end; None: a path of this machine.

  A URL that went through pathlib ('gs:/bucket/run') is told as well.
  """
  if not isinstance(path, str | os.PathLike):
    return None
  text = os.fsdecode(os.fspath(path))
  found = _URL.fullmatch(text) or _FLAT.fullmatch(text)
  return f'{found[1].lower()}://{found[2].rstrip("/")}' if found else None


def checked(url: str) -> str:
  """`url`, which names a place in a bucket.

  Raises:
    ValueError: another scheme than gs and s3, or no place in a bucket.
  """
  scheme, _, rest = url.partition('://')
  if scheme not in SCHEMES:
    raise ValueError(
        f'{short(url)[1:-1]}: {scheme}:// is not read or written here; gs:// and s3:// '
        'are. Copy it to a local folder, mount it, or give a path without a scheme')
  bucket, _, place = rest.partition('/')
  if not bucket or {'', '.', '..'} & {bucket, *(place or 'x').split('/')}:
    raise ValueError(f'{short(url)[1:-1]} names no place in a bucket; give '
                     f'{scheme}://BUCKET/FOLDER')
  return url


def local(path: str | os.PathLike, remedy: str = _LOCAL) -> pathlib.Path:
  """`path`, which must be one of this machine.

  Raises:
    ValueError: it is a URL; `remedy` says what to do instead.
  """
  url = of(path)
  if url is None:
    return pathlib.Path(path)
  raise ValueError(f'{short(url)[1:-1]} is no path of this machine; {remedy}')


def persistently(action: Callable[[], _T], what: str) -> _T:
  """What `action()` returns, tried again while its error may pass.

  Raises:
    FileNotFoundError, FileExistsError, PermissionError: as the store has it, at once.
    OSError: it did not pass in time, or will not.
  """
  import obstore.exceptions as errors

  begun, pause = time.monotonic(), _PAUSE[0]
  while True:
    try:
      return action()
    except errors.AlreadyExistsError as e:
      raise FileExistsError(f'{what}: is there already') from e
    except FileNotFoundError as e:
      if _FINAL.search(str(e)):
        raise OSError(f'{what}: {_reason(e, what)}') from e
      raise FileNotFoundError(f'{what}: there is no such object') from e
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as e:
      raise PermissionError(f'{what}: {_reason(e, what)}') from e
    except (errors.BaseError, OSError) as e:
      if _FINAL.search(str(e)):
        raise OSError(f'{what}: {_reason(e, what)}') from e
      patience = _ACCOUNT if _NO_ACCOUNT.search(str(e)) else PATIENCE
      if time.monotonic() + pause > begun + min(patience, PATIENCE):
        raise OSError(f'{what}: still fails after {time.monotonic() - begun:.0f} s '
                      f'({_reason(e, what)})') from e
    time.sleep(pause)
    pause = min(2 * pause, _PAUSE[1])


def _reason(error: BaseException, url: str) -> str:
  """What a store said, and what to do about it."""
  text = ' '.join(str(error).split('Debug source:')[0].split())
  code = re.search(r'<Code>(\w+)</Code>', text)
  said = f'{code[1]}: {text[:200]}' if code else text[:240]
  for pattern, remedy in _REMEDIES.items():
    if found := re.search(pattern, str(error)):
      return f'{code[1] if code else found[0]}: {remedy}'
  if not _NO_ACCOUNT.search(str(error)):
    return said
  return f'no account that may do that: {_ACCOUNTS[url[:2]]} ({said})'


@dataclasses.dataclass(frozen=True)
class Object:
  """One object: how many bytes, and what changes with its contents."""

  size: int
  tag: str


class Objects:
  """The objects under a URL, by their names below it.

  Raises (all methods): as `persistently`.
  """

  def __init__(self, url: str):
    """Raises ValueError as `checked`, ModuleNotFoundError without obstore."""
    self.url = checked(url)
    bucket, _, self._prefix = self.url.partition('://')[2].partition('/')
    self._store = opened(f'{self.url.partition("://")[0]}://{bucket}')

  def _key(self, name: str) -> str:
    return '/'.join(filter(None, (self._prefix, name)))

  def _say(self, name: str) -> str:
    return f'{self.url}/{name}' if name else self.url

  def names(self) -> dict[str, Object]:
    """Every object below the URL."""
    import obstore

    def listed() -> dict[str, Object]:
      rows: Iterator[Any] = (row for page in obstore.list(
          self._store, self._prefix or None) for row in page)
      before = self._key('x')[:-1]
      return {row['path'][len(before):]: _object(row) for row in rows
              if row['path'].startswith(before)}
    return persistently(listed, self.url)

  def head(self, name: str = '') -> Object | None:
    """What is known of one object; None: it is not there."""
    import obstore
    try:
      return _object(persistently(
          lambda: obstore.head(self._store, self._key(name)), self._say(name)))
    except FileNotFoundError:
      return None

  def read(self, name: str = '') -> bytes:
    """All bytes of one object."""
    import obstore
    return persistently(
        lambda: bytes(obstore.get(self._store, self._key(name)).bytes()),
        self._say(name))

  def write(self, name: str, data: bytes | pathlib.Path, *, create: bool = False
            ) -> Object:
    """Writes an object, whole or not at all; `data` may be a file.

    Raises:
      FileExistsError: with `create`, if it is there.
    """
    import obstore
    options: dict[str, Any] = (
        {'mode': 'create', 'use_multipart': False} if create else {})
    size = data.stat().st_size if isinstance(data, pathlib.Path) else len(data)

    def put() -> Any:
      try:
        return obstore.put(self._store, self._key(name), data, **options)
      except FileNotFoundError as e:
        if isinstance(data, pathlib.Path) and not data.exists():
          raise
        # An upload in parts that was completed, and the answer lost: it is no more.
        raise OSError(str(e)) from e

    found = persistently(put, self._say(name))
    return Object(size, str(found['e_tag'] or found['version'] or size))

  def fetch(self, name: str, target: pathlib.Path, size: int) -> None:
    """Writes an object of `size` bytes to `target`, piece by piece."""
    import obstore
    part = target.with_name(target.name + '.tmp')
    with _room(self._say(name), part), part.open('wb') as file:
      for first in range(0, size, _CHUNK):
        length = min(_CHUNK, size - first)

        def piece(first=first, length=length) -> bytes:
          data = bytes(obstore.get_range(self._store, self._key(name), start=first,
                                         length=length))
          if len(data) != length:
            raise OSError(f'{len(data)} of {length} bytes came')
          return data
        file.write(persistently(piece, self._say(name)))
    part.replace(target)

  def remove(self, name: str) -> None:
    """Removes one object, which need not be there."""
    import obstore

    def gone() -> None:
      try:
        obstore.delete(self._store, self._key(name))
      except FileNotFoundError as e:
        if _FINAL.search(str(e)):
          raise
    persistently(gone, self._say(name))


@contextlib.contextmanager
def _room(what: str, target: pathlib.Path) -> Iterator[None]:
  """Says, where the disk is full, which one, and removes what was written."""
  try:
    yield
  except OSError as e:
    if e.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    target.unlink()
    raise OSError(f'{what}: the disk has no room for its copy in {target.parent}; make '
                  'room, or set XDG_CACHE_HOME to a folder on a larger one') from e


def _object(row: Any) -> Object:
  tag = row['e_tag'] or row['version'] or row['last_modified']
  return Object(int(row['size']), str(tag))


def opened(bucket: str) -> Any:
  """obstore's client of a bucket; tests put a store in memory in its place."""
  try:
    from obstore.store import from_url
  except ImportError:
    raise ModuleNotFoundError(
        f"{bucket} needs the package obstore, which is not here; pip install "
        "'jaxembed[remote]'", name='obstore') from None
  # Without TLS only where the caller's own endpoint is http://.
  return persistently(lambda: from_url(
      bucket, retry_config={'max_retries': 3}, client_options={
          'timeout': '60s', 'connect_timeout': '10s', 'allow_http': True}), bucket)
