"""The floors and fences of the house: imports are parsed, not trusted."""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]

# Lowest first. A module may import from lower floors and from its own room (the
# longest entry that its name begins with), never from its floor or above.
FLOORS = (
    ('jaxembed.files', 'jaxembed.former'),
    ('jaxembed.types', 'jaxembed.config'),
    ('jaxembed.mesh', 'jaxembed.paths', 'jaxembed.precision', 'jaxembed.checksum',
     'jaxembed.shares'),
    ('jaxembed.functional',),
    ('jaxembed.kernels', 'jaxembed.similarity', 'jaxembed.texts',
     'jaxembed.quantize', 'jaxembed.drop_in', 'jaxembed.side_by_side'),
    ('jaxembed.store',),
    ('jaxembed.pooling', 'jaxembed.losses', 'jaxembed.data'),
    ('jaxembed.sharding', 'jaxembed.memory', 'jaxembed.fingerprint'),
    ('jaxembed.models',),
    ('jaxembed.checkpoint', 'jaxembed.search', 'jaxembed.batch_runner'),
    ('jaxembed.workdir',),
    ('jaxembed.convert.fields', 'jaxembed.convert.rows'),
    ('jaxembed.convert.families',),
    ('jaxembed.train', 'jaxembed.convert'),
    ('jaxembed.bundle',),
    ('jaxembed.merging', 'jaxembed.reshaping'),
    ('jaxembed.convert.to_sentence_transformers',),
    ('jaxembed.convert.to_hugging_face', 'jaxembed.convert.to_onnx',
     'jaxembed.convert.to_static', 'jaxembed.convert.card'),
    ('jaxembed.convert.exporters',),
    ('jaxembed.chunks', 'jaxembed.embedder_settings'),
    ('jaxembed.embedder',),
    ('jaxembed.evaluation', 'jaxembed.corpus'),
    ('jaxembed.mining',),
    ('jaxembed.front', 'jaxembed.teach'),
    ('jaxembed.train.start', 'jaxembed.train.average', 'jaxembed.train.report',
     'jaxembed.train.remine'),
    ('jaxembed.train.plan', 'jaxembed.train.data_check', 'jaxembed.train.opening'),
    ('jaxembed.train.loop',),
    ('jaxembed.train.arguments',),
    ('jaxembed.train.fit',),
    ('jaxembed',),  # the package's public names
    ('launch',),
)
# What kernels may import beside themselves.
GROUND = ('jaxembed.types', 'jaxembed.mesh', 'jaxembed.functional',
          'jaxembed.precision')
# package -> the only places that may import it
FENCES = {
    'flax': ('jaxembed.models',),
    'orbax': ('jaxembed.checkpoint', 'jaxembed.shares'),
    'transformers': ('jaxembed.data', 'jaxembed.convert'),
    'tokenizers': ('jaxembed.data', 'jaxembed.convert'),
    'tensorflow_datasets': ('jaxembed.data',),
    'grain': ('jaxembed.data',),
    'torch': ('jaxembed.convert', 'launch.suites'),
    'sentence_transformers': ('jaxembed.convert', 'launch.suites'),
    'mteb': ('jaxembed.evaluation',),
    'sklearn': ('jaxembed.evaluation',),
    'jax.experimental.pallas': ('jaxembed.kernels',),
    'onnx': ('jaxembed.convert',),
    'onnxruntime': ('jaxembed.convert',),
    'optax': ('jaxembed.train', 'jaxembed.merging.position',
              'jaxembed.reshaping.plain_head'),
    'absl': ('launch',),
    'ml_collections': ('launch', 'configs'),
    'obstore': ('jaxembed.files',),
    'tensorflow': (),
    'pickle': (),
}


def _name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imports(path: pathlib.Path):
  """Dotted names imported anywhere in the file, functions included."""
  for node in ast.walk(ast.parse(path.read_text(), str(path))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      module = node.module
      if node.level:
        module = _launch_import(path, node)
      yield from (f'{module}.{alias.name}' for alias in node.names)


def _launch_import(path: pathlib.Path, node: ast.ImportFrom) -> str:
  """Module of a relative import, which launchers alone use: their package is `launch`
  in a checkout and `jaxembed.launch` in an installation."""
  inside = path.relative_to(ROOT).parts
  assert inside[0] == 'launch', f'{path}: relative import'
  return '.'.join([*inside[:-node.level], *filter(None, [node.module])])


def _within(name: str, room: str) -> bool:
  return name == room or name.startswith(room + '.')


def _room(name: str) -> tuple[int, str]:
  """Floor and room of a module; the longest matching entry wins."""
  matches = [(len(room), floor, room) for floor, rooms in enumerate(FLOORS)
             for room in rooms if _within(name, room)]
  assert matches, f'{name} lives on no floor; add its room to FLOORS'
  _, floor, room = max(matches)
  return floor, room


FILES = sorted(p for d in ('jaxembed', 'launch') for p in (ROOT / d).rglob('*.py'))


def test_imports_go_down():
  for path in FILES:
    me = _name(path)
    if me == 'jaxembed':
      continue  # the front door re-exports from every floor
    floor, room = _room(me)
    for name in _imports(path):
      assert not _within(name, 'configs'), f'{me} imports {name}'
      if not (_within(name, 'jaxembed') or _within(name, 'launch')):
        continue
      other_floor, other_room = _room(name)
      assert other_floor < floor or other_room == room, (
          f'{me} (floor {floor}) imports {name} (floor {other_floor})')


def test_launchers_import_each_other_relatively():
  """`from . import cli`; by another name they would be missing in an installation."""
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
      named = ([a.name for a in node.names] if isinstance(node, ast.Import) else
               [node.module] if isinstance(node, ast.ImportFrom) and not node.level
               else [])
      assert not any(_within(n, 'launch') for n in named), f'{path}: from . import ...'


def test_fences():
  for path in FILES:
    me = _name(path)
    for name in _imports(path):
      for package, allowed in FENCES.items():
        if _within(name, package):
          assert any(_within(me, room) for room in allowed), (
              f'{me} imports {name}; only {allowed or "nobody"} may')


def _of_room(room: str):
  """(name, imports) of every module of a room."""
  return [(_name(p), list(_imports(p))) for p in FILES if _within(_name(p), room)]


def test_data_is_host_side():
  for me, names in _of_room('jaxembed.data'):
    assert not [n for n in names if _within(n, 'jax')], me


def test_kernels_stand_alone():
  for me, names in _of_room('jaxembed.kernels'):
    ours = [n for n in names if _within(n, 'jaxembed')]
    assert all(_within(n, 'jaxembed.kernels') or n in GROUND
               or n.rpartition('.')[0] in GROUND for n in ours), (me, ours)


def test_losses_know_no_model():
  for me, names in _of_room('jaxembed.losses'):
    assert not [n for n in names if _within(n, 'jaxembed.models')], me


def test_configs_import_config_and_presets_only():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in _imports(path):
      assert any(_within(name, ok) for ok in (
          'jaxembed.files.checked_json', 'jaxembed.config', 'jaxembed.models.presets',
          'ml_collections')
      ) or name.split('.')[0] in sys.stdlib_module_names, f'{path.name}: {name}'


def test_environment_is_read_by_launchers_only():
  for path in FILES:
    if _name(path).startswith('jaxembed'):
      text = path.read_text()
      assert 'os.environ' not in text and 'os.getenv' not in text, path


def test_files_are_short():
  """400 lines is the wall; kernels may pass it with a reason at the top."""
  for path in FILES:
    if _within(_name(path), 'jaxembed.kernels'):
      continue
    lines = path.read_text().count('\n')
    assert lines <= 400, f'{path.relative_to(ROOT)} has {lines} lines'
  for path in (ROOT / 'launch').glob('*.py'):
    assert path.read_text().count('\n') <= 100, path
  for path in (ROOT / 'configs').glob('*.py'):
    assert path.read_text().count('\n') <= 80, path


def _public(body):
  """Functions and classes, with their methods, that are offered to others."""
  for node in body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    # What sets a property, and what is said to type checkers alone.
    other = [d for d in node.decorator_list
             if ast.unparse(d).endswith('.setter') or ast.unparse(d) == 'overload']
    if node.name.startswith('_') or other:
      continue
    yield node
    if isinstance(node, ast.ClassDef):
      yield from _public(node.body)


def test_public_names_are_described():
  """Docstrings are the API reference."""
  lacking = []
  for path in sorted((ROOT / 'jaxembed').rglob('*.py')):
    module = ast.parse(path.read_text())
    lacking += [f'{path.relative_to(ROOT)}: {getattr(node, "name", "the module")}'
                for node in (module, *_public(module.body))
                if not ast.get_docstring(node)]
  assert not lacking, 'say what they are: ' + ', '.join(lacking)
