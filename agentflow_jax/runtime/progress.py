"""A progress bar for people: reward, rollouts a second, time left.

On a terminal it is one live bar; where stderr is a file or a pipe it is a plain
line now and then, so that a log stays readable. Nothing reads it back: figures
for machines are in metrics.jsonl.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm


class Progress:
  """Shows how much of a run, or of an evaluation, is done.

  A context manager: leaving it closes the bar and so frees the terminal line.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    *,
    unit: str = 'step',
    quiet: bool = False,
    stream: TextIO | None = None,
    seconds_between_lines: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens the bar.

    Args:
      total_steps: steps of the whole run, those before a resume included.
      start_step: steps already finished when this process took over; they move
        the bar but not the estimate of the time left.
      unit: name of one of what is counted, such as 'step' or 'task'.
      quiet: whether nothing but warnings is written.
      stream: stream that is written to; None for stderr.
      seconds_between_lines: least time between two plain lines [s]. The first
        and the last step always get one.
      clock: seconds, monotonic; for tests.
    """
    self._total = total_steps
    self._start = self._step = start_step
    self._unit = unit
    self._quiet = quiet
    self._stream = sys.stderr if stream is None else stream
    self._pause = seconds_between_lines
    self._clock = clock
    self._opened = clock()
    self._last_line = -math.inf
    self._bar = None
    if not quiet and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        file=self._stream,
        unit=unit,
        desc='train' if unit == 'step' else f'{unit}s',
        dynamic_ncols=True,
        smoothing=0,
        bar_format=(
          '{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}'
          '{postfix} [{elapsed}<{remaining}]'
        ),
      )

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Moves to `step` finished steps.

    Args:
      step: steps finished so far, counted from the start of the whole run.
      metrics: a line of metrics.jsonl; 'reward/mean' and
        'rate/rollouts_per_second' are shown where they are there and finite.
    """
    previous, self._step = self._step, step
    if self._quiet:
      return
    figures = _figures(metrics)
    if self._bar is not None:
      self._bar.set_postfix_str(figures, refresh=False)
      self._bar.update(step - previous)
      # Steps take seconds: every one is worth drawing, however soon it came.
      self._bar.refresh()
      return
    now = self._clock()
    due = now - self._last_line >= self._pause
    if not due and step < self._total:
      return
    self._last_line = now
    parts = [f'{self._unit} {step}/{self._total}']
    if figures:
      parts.append(figures)
    if step < self._total:
      parts.append(f'{_duration(self.seconds_left())} left')
    self._write(', '.join(parts))

  def note(self, text: str) -> None:
    """Writes a line of text above the bar."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      self._write(text)

  def warn(self, text: str) -> None:
    """Writes a warning above the bar, also where the bar is quiet."""
    if self._bar is not None:
      self._bar.write(f'warning: {text}', file=self._stream)
    else:
      self._write(f'warning: {text}')

  def seconds_left(self) -> float:
    """Time left [s] at this process's mean pace; nan before its first step."""
    done = self._step - self._start
    if done <= 0:
      return math.nan
    pace = (self._clock() - self._opened) / done
    return pace * max(0, self._total - self._step)

  def close(self) -> None:
    """Leaves the bar as it stands; closing twice is harmless."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def _write(self, text: str) -> None:
    self._stream.write(text + '\n')
    self._stream.flush()


def _figures(metrics: Mapping[str, float]) -> str:
  """The figures worth a glance, as 'reward 0.61, 12.3 rollouts/s'."""
  parts = []
  reward = metrics.get('reward/mean')
  if reward is not None and math.isfinite(reward):
    parts.append(f'reward {reward:.3f}')
  rate = metrics.get('rate/rollouts_per_second')
  if rate is not None and math.isfinite(rate):
    parts.append(f'{rate:.1f} rollouts/s')
  return ', '.join(parts)


def _duration(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss; '?' where unknown."""
  if not math.isfinite(seconds):
    return '?'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{rest:02d}'
  return f'{minutes}:{rest:02d}'


def say(text: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
  """Writes a line on what a command does before it has steps to count.

  Args:
    text: text of the line.
    quiet: whether nothing is written.
    stream: stream that is written to; None for stderr.
  """
  if not quiet:
    print(text, file=stream or sys.stderr, flush=True)
