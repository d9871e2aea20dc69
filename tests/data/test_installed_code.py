"""Docstring -> function: what is taken, what is left, and no leak."""

import sysconfig
import textwrap

import pytest

from jaxembed.data import installed_code

GOOD = '''
    def add(a, b):
      """Return the sum of two given numbers.

      More words that are not part of the query.
      """
      total = a + b
      return total
'''


def _package(root, files):
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
  return root


def _read(root, **kwargs):
  pairs = [(e.query, e.positives[0].text, e.query_id) for split in ('train', 'test')
           for e in installed_code.read(split, roots=[root], **kwargs)]
  return sorted(pairs)


def test_first_paragraph_and_source_without_docstring(tmp_path):
  _package(tmp_path, {'pkg/mod.py': GOOD})
  assert _read(tmp_path) == [(
      'Return the sum of two given numbers.',
      'def add(a, b):\n  total = a + b\n  return total', 'pkg.mod')]


@pytest.mark.parametrize('name, text', [
    ('pkg/tests/mod.py', GOOD), ('pkg/test_mod.py', GOOD), ('pkg/mod_test.py', GOOD),
    ('site-packages/mod.py', GOOD), ('pkg/a-b.py', GOOD),
    ('pkg/syntax.py', GOOD + '\n    def ('),
    ('pkg/short.py', GOOD.replace('the sum of two given numbers', 'a sum')),
    ('pkg/dunder.py', GOOD.replace('add', '__add__')),
    ('pkg/abstract.py', GOOD.replace('total = a + b\n', '').replace(
        'return total', 'raise NotImplementedError')),
    ('pkg/long.py', GOOD.replace('total = a + b', 'b = a\n' + '      b += 1\n' * 99)),
    ('pkg/only_doc.py', 'def f():\n  """Return the sum of two given numbers."""\n'),
])
def test_what_is_left_out(tmp_path, name, text):
  assert _read(_package(tmp_path, {name: text})) == []


def test_methods_count_and_repeats_do_not(tmp_path):
  method = 'class A:\n' + textwrap.indent(textwrap.dedent(GOOD), '  ')
  _package(tmp_path, {'pkg/a.py': method, 'pkg/b.py': GOOD,
                      'pkg/c.py': GOOD.replace('a + b', 'b + a')})
  assert len(_read(tmp_path)) == 1


def test_installed_modules_are_on_one_side_and_nothing_leaks():
  root = [sysconfig.get_paths()['stdlib']]
  train = installed_code.read('train', 300, roots=root)
  test = installed_code.read('test', 100, roots=root)
  assert (len(train), len(test)) == (300, 100)
  for key in (lambda e: e.query_id, lambda e: e.query.lower(),
              lambda e: e.positives[0].text):
    assert not {key(e) for e in train} & {key(e) for e in test}
  assert installed_code.read('test', 50, roots=root) == test[:50]
  for e in train + test:
    assert e.query not in e.positives[0].text


def test_a_vendored_copy_stays_on_its_side():
  assert (installed_code._side('requests.api')
          == installed_code._side('pip._vendor.requests.api'))


def test_unknown_split():
  with pytest.raises(ValueError, match="'train' and 'test', not 'dev'"):
    installed_code.read('dev')
