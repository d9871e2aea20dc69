"""The commands and programs of a page of documentation, to be run.

A fenced block of bash or python is run, one after the other, those of Python as one
program; a block with title="FILE" is that file. In front of a block may stand

    <!-- in the test: steps=1000 -> steps=2; DATA -> data.jsonl -->
    <!-- not run: needs a TPU pod -->

The first replaces texts, which must be there. Of what is not run, flags are parsed.
"""

import dataclasses
import pathlib
import re
import shlex
import textwrap

_BLOCK = re.compile(
    r'(?P<marker>^ *<!-- (?:in the test|not run): .*?-->\n\n?)?'
    r'^(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n'
    r'(?P<text>.*?)^(?P=indent)```$', re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r'(?:jaxembed\.)?launch\.(\w+)')


@dataclasses.dataclass(frozen=True)
class Block:
  """One fenced block."""

  language: str
  text: str
  line: int  # of the page, where its first line stands
  title: str = ''
  not_run: str = ''  # the reason
  replaced: tuple[tuple[str, str], ...] = ()

  @property
  def runs(self) -> bool:
    return self.language in ('bash', 'python') and not self.title and not self.not_run

  @property
  def in_the_test(self) -> str:
    """The text with what the test replaces."""
    text = self.text
    for old, new in self.replaced:
      assert old in text, f'line {self.line}: the block has no {old!r} to replace'
      text = text.replace(old, new)
    return text


def of_page(page: pathlib.Path) -> list[Block]:
  """The blocks of a page, in order."""
  source = page.read_text()
  found = []
  for match in _BLOCK.finditer(source):
    marker = re.sub(r'\s+', ' ', match['marker'] or '').strip()
    kind, _, said = marker.removeprefix('<!-- ').removesuffix(' -->').partition(': ')
    title = re.search(r'title="([^"]+)"', match['options'])
    found.append(Block(
        language=match['language'],
        text=textwrap.dedent(match['text']),
        line=source.count('\n', 0, match.start('text')) + 1,
        title=title[1] if title else '',
        not_run=said if kind == 'not run' else '',
        replaced=_pairs(said) if kind == 'in the test' else ()))
  return found


def _pairs(said: str) -> tuple[tuple[str, str], ...]:
  pairs = [tuple(part.strip().split(' -> ')) for part in said.split('; ')]
  assert all(len(p) == 2 for p in pairs), f'no "old -> new; ...": {said!r}'
  return tuple(pairs)


def commands(block: Block) -> list[tuple[str, list[str]]]:
  """(launcher, its arguments) of every call of one in a block of bash."""
  lexer = shlex.shlex(block.in_the_test.replace('\\\n', ' ').replace('\n', ' ; '),
                      posix=True, punctuation_chars=';&|')
  lexer.whitespace_split, lexer.commenters = True, ''
  found, words = [], []
  for word in [*lexer, ';']:
    if set(word) <= set(';&|'):
      found += _call(words)
      words = []
    else:
      words.append(word)
  return found


def _call(words: list[str]) -> list[tuple[str, list[str]]]:
  """A command's launcher and arguments, if it calls one, without a comment behind."""
  if '#' in words:
    words = words[:words.index('#')]
  for i, word in enumerate(words):
    module = _MODULE.fullmatch(word)
    if module and words[i - 1] == '-m':
      return [(module[1], words[i + 1:])]
    if word == 'jaxembed' and words[i + 1:]:
      return [(words[i + 1], words[i + 2:])]
  return []
