"""Progress: a line a minute where there is no terminal, with a time left that is right.
"""

import re

import pytest

from jaxembed.train import progress


class _Run:
  """Steps of known lengths, by a clock of our own."""

  def __init__(self, start=0, last=10, **options):
    self.now, self.lines = 0.0, []
    self.progress = progress.Progress(
        'one', start, last, self.lines.append, terminal=False, clock=lambda: self.now,
        **options)

  def step(self, seconds: float, figures: str = ''):
    self.now += seconds
    self.progress.update()
    if figures:
      self.progress.set_postfix_str(figures)


def test_a_line_for_the_first_step_then_one_a_minute_and_the_last():
  run = _Run(last=300)
  run.step(40, 'loss 3')  # compiles
  for i in range(299):
    run.step(1, f'loss {i}')
  run.progress.close()
  told = [int(re.search(r'(\d+) of 300 \(one\)', line)[1]) for line in run.lines]
  assert told == [1, 61, 121, 181, 241, 300]
  # Figures come with records, of which the newest is that of the step before.
  assert 'loss 58' in run.lines[1] and 'GB' in run.lines[1]


@pytest.mark.parametrize('each', [2.0, 45.0])
def test_the_time_left_is_that_of_the_steps_left_without_the_first(each):
  run = _Run(start=100, last=200)
  run.step(500, 'loss 1')
  for _ in range(39):
    run.step(each, 'loss 1')
  left = re.search(r'a step, (.+) left', run.lines[-1])[1]
  done = int(re.search(r'(\d+) of 200', run.lines[-1])[1])
  hours, minutes, seconds = map(int, left.split(':'))
  assert 3600 * hours + 60 * minutes + seconds == pytest.approx(each * (200 - done))


def test_other_processes_are_silent(capsys):
  run = _Run(silent=True)
  run.step(100, 'loss 1')
  run.progress.write('a line')
  run.progress.close()
  assert not run.lines and not capsys.readouterr().out


def test_on_a_terminal_it_is_a_bar_with_figures_and_time(capsys):
  times = iter([0.0, 10.0, 70.0, 130.0, 130.0, 130.0, 130.0])
  bar = progress.Progress('one', 0, 4, print, terminal=True, clock=lambda: next(times))
  for _ in range(3):
    bar.update()
    bar.set_postfix_str('loss 0.5')
  bar.close()
  shown = capsys.readouterr().err
  assert '3/4' in shown and 'loss 0.5' in shown and '0:01:00 left' in shown
