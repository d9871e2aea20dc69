"""A server on loopback that speaks the XML API of Google Cloud Storage.

As https://cloud.google.com/storage/docs/xml-api has it, of which it knows what clients
of objects need: objects whole, in ranges and in parts, listings page by page, and the
precondition by which an object is made only where there is none.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import http.server
import itertools
import json
import pathlib
import re
import threading
import urllib.parse
from xml.sax import saxutils

_PAGE = 50  # names of one listing: few, so that several pages are asked for
_PART = 5 << 20  # bytes that every part but the last must have


class _Bucket:
  """The objects of one bucket: name -> (bytes, generation)."""

  def __init__(self, name: str):
    self.name, self.lock = name, threading.Lock()
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
    self.generations = itertools.count(1)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  bucket: _Bucket

  def log_message(self, format, *args):
    del format, args

  def _answer(self, status: int, body: bytes = b'', **headers):
    self.send_response(status)
    length = headers.pop('length', len(body))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(length))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def _refuse(self, status: int, code: str):
    self._answer(status, f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}"
                 f'</Code><Message>{code}</Message></Error>'.encode())

  def _do(self):
    parsed = urllib.parse.urlsplit(self.path)
    bucket, _, name = urllib.parse.unquote(parsed.path.lstrip('/')).partition('/')
    asked = dict(urllib.parse.parse_qsl(parsed.query, keep_blank_values=True))
    data = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    if bucket != self.bucket.name:
      self._refuse(404, 'NoSuchBucket')
      return
    with self.bucket.lock:
      if 'uploads' in asked or 'uploadId' in asked:
        self._in_parts(name, asked, data)
      elif not name:
        self._list(asked)
      else:
        getattr(self, f'_{self.command.lower()}')(name, data)

  do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

  def _put(self, name: str, data: bytes):
    wanted = self.headers.get('x-goog-if-generation-match')
    _, now = self.bucket.objects.get(name, (b'', 0))
    if wanted is not None and int(wanted) != now:
      self._refuse(412, 'PreconditionFailed')
      return
    self._answer(200, **self._keep(name, data))

  def _keep(self, name: str, data: bytes) -> dict[str, str]:
    generation = next(self.bucket.generations)
    self.bucket.objects[name] = data, generation
    return {'ETag': _tag(data), 'x_goog_generation': str(generation)}

  def _get(self, name: str, _):
    if name not in self.bucket.objects:
      self._refuse(404, 'NoSuchKey')
      return
    data, generation = self.bucket.objects[name]
    headers = {'ETag': _tag(data), 'x_goog_generation': str(generation),
               'Last_Modified': 'Thu, 01 Jan 2026 00:00:00 GMT'}
    asked = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range') or '')
    if not asked:
      self._answer(200, data, **headers)
      return
    first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
    self._answer(206, data[first:last + 1], **headers,
                 Content_Range=f'bytes {first}-{last}/{len(data)}')

  _head = _get

  def _delete(self, name: str, _):
    if self.bucket.objects.pop(name, None) is None:
      self._refuse(404, 'NoSuchKey')
    else:
      self._answer(204)

  def _list(self, asked: dict[str, str]):
    names = sorted(n for n in self.bucket.objects
                   if n.startswith(asked.get('prefix', ''))
                   and n > asked.get('continuation-token', ''))
    page, more = names[:_PAGE], len(names) > _PAGE
    rows = ''.join(
        f'<Contents><Key>{saxutils.escape(n)}</Key><Size>{len(data)}</Size>'
        f'<ETag>{saxutils.escape(_tag(data))}</ETag>'
        '<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>'
        for n in page for data, _ in [self.bucket.objects[n]])
    token = (f'<NextContinuationToken>{saxutils.escape(page[-1])}'
             '</NextContinuationToken>' if more else '')
    self._answer(200, (
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>"
        f'<Name>{self.bucket.name}</Name><IsTruncated>{str(more).lower()}</IsTruncated>'
        f'{token}{rows}</ListBucketResult>').encode())

  def _in_parts(self, name: str, asked: dict[str, str], data: bytes):
    """An upload that is begun, given a part, completed or given up."""
    if 'uploads' in asked:
      number = f'upload-{next(self.bucket.generations)}'
      self.bucket.uploads[number] = name, {}
      self._answer(200, (
          "<?xml version='1.0' encoding='UTF-8'?><InitiateMultipartUploadResult>"
          f'<Bucket>{self.bucket.name}</Bucket><Key>{saxutils.escape(name)}</Key>'
          f'<UploadId>{number}</UploadId></InitiateMultipartUploadResult>').encode())
      return
    number = asked['uploadId']
    if self.bucket.uploads.get(number, ('',))[0] != name:
      self._refuse(404, 'NoSuchUpload')
      return
    parts = self.bucket.uploads[number][1]
    if self.command == 'PUT':
      parts[int(asked['partNumber'])] = data
      self._answer(200, ETag=_tag(data))
    elif self.command == 'DELETE':
      del self.bucket.uploads[number]
      self._answer(204)
    else:
      self._complete(name, number, parts, data)

  def _complete(self, name: str, number: str, parts: dict[int, bytes], data: bytes):
    given = [int(n) for n in re.findall(rb'<PartNumber>(\d+)</PartNumber>', data)]
    if given != sorted(parts) or any(len(parts[n]) < _PART for n in given[:-1]):
      self._refuse(400, 'InvalidPart')
      return
    del self.bucket.uploads[number]
    whole = b''.join(parts[n] for n in given)
    headers = self._keep(name, whole)
    self._answer(200, (
        "<?xml version='1.0' encoding='UTF-8'?><CompleteMultipartUploadResult>"
        f'<Bucket>{self.bucket.name}</Bucket><Key>{saxutils.escape(name)}</Key>'
        f'<ETag>{saxutils.escape(headers["ETag"])}</ETag>'
        '</CompleteMultipartUploadResult>').encode(), **headers)


def _tag(data: bytes) -> str:
  return f'"{hashlib.md5(data).hexdigest()}"'


@contextlib.contextmanager
def opened(bucket: str = 'bucket') -> Iterator[int]:
  """The port of a server that has one bucket."""
  handler = type('Handler', (_Handler,), {'bucket': _Bucket(bucket)})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  server.daemon_threads = True
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield server.server_address[1]
  finally:
    server.shutdown()
    server.server_close()


def environment(port: int, folder: pathlib.Path) -> dict[str, str]:
  """Variables by which clients find the server; an account is written to `folder`."""
  account = folder / f'account-{port}.json'
  account.write_text(json.dumps({
      'gcs_base_url': f'http://127.0.0.1:{port}', 'disable_oauth': True,
      'client_email': '', 'private_key': '', 'private_key_id': ''}))
  return {'GOOGLE_SERVICE_ACCOUNT': str(account)}
