"""Figures of a kernel's schedule, read from a text in the form that libtpu writes."""

from launch import bundles

PRODUCT = '%1 = vmatmul.mubr.bf16.gmra.mxu0 %v1'
FIRST_PRODUCT = '%2 = vmatprep.mubr.bf16.mxu1 %v2'
SPILL = '%3 = vst [vmem:[#allocation7_spill] sm:$0xff] %v3'
FILL = '%v4 = vld [vmem:[#allocation7_spill] sm:$0xff]'
STORE = '%5 = vst [vmem:[#allocation7 + $0x8] sm:$0xff] %v5'


class Schedule:
  """Bundles, and regions that are marked in the comments of their first and last."""

  def __init__(self):
    self.lines = ['LB: loop body', '']

  def add(self, *instructions, note='', times=1):
    for _ in range(times):
      at = f'{hex(len(self.lines)):>6}'
      body = '  ;;  '.join(instructions)
      self.lines.append(f'{at}   : > {{ {body} }} /* {note} */')

  def branch(self, number, *work):
    """A branch past region `number`, which holds `work`."""
    self.add(f'%9 = sbr.rel (%p1) target = $region{number + 1}')
    self.add(note=f'Start region {number}')
    for instructions, times in work:
      self.add(*instructions, times=times)
    self.add(note=f'End region {number}')

  def text(self):
    return '\n'.join(self.lines)


def loop(body):
  """A kernel of 10 bundles, a loop of `body`, and 10 bundles."""
  out = Schedule()
  out.add(SPILL, times=10)
  out.add(note='Start region 100')
  body(out)
  out.add('%8 = sbr.rel (!%p2) target = $region100')
  out.add(SPILL, times=10)
  return out.text()


def test_each_way_through_a_grid_step_is_counted_with_what_all_share():
  def body(out):
    out.branch(10, ((STORE,), 200))  # at the first step alone: no product
    out.branch(20, ((PRODUCT, SPILL), 100), ((FILL,), 30))
    out.branch(30, ((PRODUCT, FIRST_PRODUCT), 100), ((SPILL, SPILL), 5))
    out.add(FILL, times=3)

  shared = 1 + 3 * 1 + 3  # the loop's start, the branches, the end
  short, long = bundles.of_text(loop(body))
  assert (short.products, short.spills, short.fills) == (100, 100, 33)
  assert (long.products, long.spills, long.fills) == (200, 10, 3)
  assert short.bundles - shared == 100 + 30 + 2
  assert long.bundles - shared == 100 + 5 + 2


def test_a_step_without_branches_is_one_way():
  found = bundles.of_text(loop(lambda out: out.add(PRODUCT, STORE, times=50)))
  assert [(p.bundles, p.products, p.spills) for p in found] == [(51, 50, 0)]


def test_kernels_of_a_folder_go_by_their_names(tmp_path):
  text = loop(lambda out: out.add(PRODUCT, times=20))
  for name in ('123-contrastive_sums.1-01-final_bundles.txt',
               '123-contrastive_sums.1-00-schedule-analysis_final_bundles.txt',
               '124-TLP-hlo.txt'):
    (tmp_path / name).write_text(text if '-01-' in name else 'x')
  (tmp_path / '125-fusion.3-01-final_bundles.txt').write_text(
      loop(lambda out: out.add(STORE, times=20)))
  assert set(bundles.of_folder(tmp_path)) == {'contrastive_sums'}
