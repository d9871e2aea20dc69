"""What libtpu's compiler schedules for a TPU kernel: instruction bundles per grid step.

LIBTPU_INIT_ARGS=--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true makes the compiler
write its last schedule of every kernel. A bundle is what a core issues in a cycle, so
their number is the least time of a grid step in cycles; waits come on top of it.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import re

_FILE = re.compile(r'\d+-([\w<>.-]+?)(?:\.\d+)?-\d+-final_bundles\.txt')
_BUNDLE = re.compile(r'^ *(?:0x)?[0-9a-f]+ +(?:[A-Z]+)? *:')
_START = re.compile(r'Start region (\d+)\b')
_END = re.compile(r'End region (\d+)\b')
_BRANCH = re.compile(r'= sbr\.rel .*?target = \$region(\d+)')
_PRODUCT = re.compile(r'vmat(?:mul|prep\.mubr)')


@dataclasses.dataclass(frozen=True)
class Path:
  """One way through a grid step: where it is branched, each branch with products."""

  bundles: int
  spills: int  # stores of vectors for which there was no register
  fills: int  # loads of them
  products: int  # instructions of the matrix unit


def of_folder(folder: pathlib.Path | str) -> dict[str, list[Path]]:
  """kernel -> its paths, by the dumps of a folder."""
  found = {}
  for path in sorted(pathlib.Path(folder).iterdir()):
    if match := _FILE.fullmatch(path.name):
      paths = of_text(path.read_text())
      if any(p.products for p in paths):
        found[match[1]] = paths
  return found


def of_text(text: str) -> list[Path]:
  """Paths of a grid step by the text of a kernel's last schedule.

  Branches without products are left out if they take more than 64 bundles: what a
  kernel does at the first or the last step of a row of tiles. Inner loops count once.
  """
  lines = [line for line in text.split('\n') if _BUNDLE.match(line)]
  low, high = max(_loops(lines), key=lambda x: x[1] - x[0], default=(0, len(lines)))
  branches = _innermost([(a, b) for a, b in _skips(lines) if low < a and b < high
                         and b - a > 64])
  base = [i for i in range(low, high) if not any(a < i <= b for a, b in branches)]
  ways = [range(a + 1, b + 1) for a, b in branches
          if any(_PRODUCT.search(lines[i]) for i in range(a + 1, b + 1))]
  return [_path([lines[i] for i in [*base, *way]]) for way in ways or [()]]


def _path(lines: Sequence[str]) -> Path:
  def count(pattern):
    return sum(len(re.findall(pattern, line)) for line in lines)

  return Path(len(lines), count(r'\bvst \[vmem:\[#allocation\d+_spill\]'),
              count(r'= vld \[vmem:\[#allocation\d+_spill\]'), count(_PRODUCT))


def _marks(lines, pattern) -> dict[str, int]:
  return {name: i for i, line in enumerate(lines) for name in pattern.findall(line)}


def _branches(lines) -> Iterator[tuple[int, int]]:
  for i, line in enumerate(lines):
    if match := _BRANCH.search(line):
      yield i, int(match[1])


def _loops(lines) -> list[tuple[int, int]]:
  """(first, last) bundle of every loop: a branch back to a region's start."""
  starts = _marks(lines, _START)
  return [(starts[str(to)], i) for i, to in _branches(lines)
          if starts.get(str(to), i + 1) <= i]


def _skips(lines) -> list[tuple[int, int]]:
  """(branch, last skipped bundle) of every branch ahead."""
  starts, ends = _marks(lines, _START), _marks(lines, _END)
  return [(i, ends[str(to - 1)]) for i, to in _branches(lines)
          if starts.get(str(to), i + 1) > i and ends.get(str(to - 1), 0) > i]


def _innermost(spans):
  return [(a, b) for a, b in spans
          if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]
