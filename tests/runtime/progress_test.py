import io

import pytest

from agentflow_jax.runtime import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _Clock:
  """Seconds that pass when the test says so."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def _plain(total, start=0, **kwargs):
  stream, clock = io.StringIO(), _Clock()
  bar = progress.Progress(total, start, stream=stream, clock=clock, **kwargs)
  return bar, stream, clock


def test_an_evaluation_counts_its_tasks_and_warnings_are_never_quiet():
  bar, stream, _ = _plain(2, unit='task')
  bar.update(2, {})
  assert stream.getvalue() == 'task 2/2\n'
  bar, stream, _ = _plain(2, quiet=True)
  bar.update(2, {})
  bar.note('n')
  bar.warn('w')
  assert stream.getvalue() == 'warning: w\n'


def test_plain_lines_are_rare_but_first_and_last_always_come():
  bar, stream, clock = _plain(10)
  for step in range(1, 11):
    clock.now += 4.0
    metrics = {'reward/mean': step / 10, 'rate/rollouts_per_second': 12.34}
    bar.update(step, metrics)
  bar.close()
  # Steps end at 4, 8, ... s. A line at 4 s, then 16 s later each time (the
  # first step at least 15 s after), and at the end. Left: 4 s a step.
  assert stream.getvalue().splitlines() == [
    'step 1/10, reward 0.100, 12.3 rollouts/s, 0:36 left',
    'step 5/10, reward 0.500, 12.3 rollouts/s, 0:20 left',
    'step 9/10, reward 0.900, 12.3 rollouts/s, 0:04 left',
    'step 10/10, reward 1.000, 12.3 rollouts/s',
  ]


def test_a_resumed_run_estimates_from_its_own_steps_only():
  bar, stream, clock = _plain(100, start=90)
  clock.now += 30.0
  bar.update(91, {})
  # 9 steps of 30 s are 4:30; counting the 90 old steps would give seconds.
  assert stream.getvalue() == 'step 91/100, 4:30 left\n'


def test_hours_and_unknown_time():
  bar, stream, clock = _plain(1000, start=5)
  bar.update(5, {})
  clock.now += 36.0
  bar.update(15, {})
  # 3.6 s a step, 985 steps left: 3,546 s. Then 59 minutes more a step.
  clock.now += 3564.0
  bar.update(15, {})
  assert stream.getvalue().splitlines() == [
    'step 5/1000, ? left',
    'step 15/1000, 59:06 left',
    'step 15/1000, 98:30:00 left',
  ]


@pytest.mark.parametrize('value', [None, float('nan')])
def test_figures_that_are_not_there_are_not_shown(value):
  bar, stream, _ = _plain(1)
  bar.update(1, {'reward/mean': value, 'rate/rollouts_per_second': value})
  assert stream.getvalue() == 'step 1/1\n'


def test_quiet_writes_nothing():
  for stream in (io.StringIO(), _Terminal()):
    with progress.Progress(3, quiet=True, stream=stream) as bar:
      bar.update(1, {'reward/mean': 0.5})
      bar.note('hello')
    assert stream.getvalue() == ''


def test_note_is_a_line_of_its_own():
  bar, stream, _ = _plain(3)
  bar.note('checkpoint at step 2')
  assert stream.getvalue() == 'checkpoint at step 2\n'


def test_terminal_shows_a_bar_with_figures_and_survives_a_second_close():
  stream = _Terminal()
  with progress.Progress(8, 2, stream=stream) as bar:
    bar.update(4, {'reward/mean': 0.25, 'rate/rollouts_per_second': 3.0})
    bar.note('a note')
    bar.close()
  shown = stream.getvalue()
  assert '4/8, reward 0.250, 3.0 rollouts/s [' in shown
  assert ' 50%|' in shown
  assert 'a note\n' in shown
  assert shown.endswith('\n')


def test_a_line_before_there_is_a_bar():
  stream = io.StringIO()
  progress.say('reading', stream=stream)
  progress.say('compiling', quiet=True, stream=stream)
  assert stream.getvalue() == 'reading\n'
