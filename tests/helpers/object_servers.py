"""Servers of S3 and of Google Cloud Storage on loopback, and faults on the way."""

from collections.abc import Iterator
import contextlib
import importlib.util
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

_UNAVAILABLE = (b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n'
                b'Connection: close\r\n\r\n')


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def s3(bucket: str = 'bucket') -> Iterator[int]:
  """The port of an S3 server that has one bucket."""
  if importlib.util.find_spec('moto') is None:
    pytest.skip("the package moto is not installed: pip install 'moto[server]'")
  port = free_port()
  with _running([sys.executable, '-m', 'moto.server', '-p', str(port)],
                f'http://127.0.0.1:{port}/moto-api/'):
    _ask(f'http://127.0.0.1:{port}/{bucket}', 'PUT')
    yield port


def s3_environment(port: int) -> dict[str, str]:
  """Variables by which clients find the server."""
  return {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}',
          'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test',
          'AWS_REGION': 'us-east-1'}


@contextlib.contextmanager
def _running(command: list[str], alive: str) -> Iterator[None]:
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  try:
    end = time.monotonic() + 60
    while True:
      try:
        _ask(alive)
        break
      except OSError:
        assert process.poll() is None and time.monotonic() < end, command
        time.sleep(0.1)
    yield
  finally:
    process.kill()
    process.wait()


def _ask(url: str, method: str = 'GET', data: bytes | None = None) -> bytes:
  request = urllib.request.Request(url, data, method=method)
  with urllib.request.urlopen(request, timeout=5) as answer:
    return answer.read()


class Faults:
  """A proxy before a server that answers 503, waits, and cuts connections, by chance.

  Attributes:
    port: where it listens.
    counts: of each fault, how often.
  """

  def __init__(self, server: int, *, refuse: float = 0.0, wait: float = 0.0,
               cut: float = 0.0, seed: int = 0):
    """The three are chances, of a request or an answer."""
    self._server, self._chances = server, (refuse, wait, cut)
    self._random = random.Random(seed)
    self.counts = {'refused': 0, 'waited': 0, 'cut': 0}
    self._listener = socket.create_server(('127.0.0.1', 0))
    self.port = self._listener.getsockname()[1]
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self) -> None:
    self._listener.close()

  def _accept(self) -> None:
    with contextlib.suppress(OSError):
      while True:
        client, _ = self._listener.accept()
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

  def _serve(self, client: socket.socket) -> None:
    with contextlib.suppress(OSError), client, socket.create_connection(
        ('127.0.0.1', self._server)) as server:
      back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
      back.start()
      while data := client.recv(1 << 16):
        refuse, wait, _ = self._chances
        if data.split(b' ', 1)[0] in (b'GET', b'PUT', b'POST', b'HEAD', b'DELETE'):
          if self._random.random() < refuse:
            self.counts['refused'] += 1
            client.sendall(_UNAVAILABLE)
            break
          if self._random.random() < wait:
            self.counts['waited'] += 1
            time.sleep(self._random.uniform(0.05, 1.0))
        server.sendall(data)
      for s in (server, client):
        s.shutdown(socket.SHUT_RDWR)

  def _answer(self, server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while data := server.recv(1 << 16):
        if self._random.random() < self._chances[2]:
          self.counts['cut'] += 1
          client.sendall(data[:len(data) // 2])
          break
        client.sendall(data)
      for s in (server, client):
        s.shutdown(socket.SHUT_RDWR)
