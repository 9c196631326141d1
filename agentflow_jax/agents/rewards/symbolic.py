"""Symbolic equivalence, judged by math-verify in a killable child process.

math-verify stops itself with a signal, which works in the main thread only,
and its arithmetic can hang or take all memory. So it runs in a child with its
own limits (`symbolic_worker`), started when it is first needed and started
again when it has been killed.
"""

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from agentflow_jax.agents import language_model
from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import text

_WORKER = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'symbolic_worker.py'
)

# What math-verify does not read, in a form that it does; in this order.
_SPELLINGS = (
    (re.compile(r'\\\$'), ''),
    (
        re.compile(
            r'(?<![\w)\]}*])\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![\w(\[{*])'
        ),
        r'\1',
    ),
    (re.compile(r'(?<=[\w)])(?:\*\*|\^)\s*(-?\d+)'), r'^{\1}'),
    # Not "3–5", which is a range.
    (
        re.compile(r'(?<![\w)\]}])[\u2010-\u2013\ufe63\uff0d]\s?(?=[\d\\(.])'),
        '-',
    ),
    (
        re.compile(r'(?<=\d)(?:[\u00a0\u2009\u202f]|\\[,!])(?=\d{3}(?!\d))'),
        '',
    ),
    (
        re.compile(r'(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)'),
        r'\1 \\times 10^{\2}',
    ),
    (
        re.compile(r'(?<![\w.,/])(\d+)\s+(\d+)/(\d+)(?![\w/])'),
        r'\1\\frac{\2}{\3}',
    ),
    (re.compile(r'√\s*(\d+|[a-z]\b)'), r'\\sqrt{\1}'),
    (re.compile(r'√\s*\(([^()]*)\)'), r'\\sqrt{\1}'),
)
_FULL_WIDTH = str.maketrans(
    '０１２３４５６７８９（）［］，．／＝＋', '0123456789()[],./=+'
)
_MATHEMATICS = re.compile(r'\$[^$]*\$|\\\(.*?\\\)|-?[\d.,]*\d(?:/\d+)?')


def spell(said: str) -> str:
  """Rewrites what a person reads and math-verify does not.

  Full-width digits, typographers' minus signs and spaces, scientific notation
  ("1e3"), mixed numbers ("1 1/2"), roots ("√3"), Markdown's bold, dollar signs
  that are a currency, number words that stand alone ("three"); and what is
  denied ("not 5") goes, or it would be read as said.

  Args:
    said: a gold, or the part of a response that counts.
  """
  if (value := numeric.parse(said)) is not None and said.strip().isalpha():
    return str(value)
  said = said.translate(_FULL_WIDTH)
  for pattern, replacement in _SPELLINGS:
    said = pattern.sub(replacement, said)
  return _MATHEMATICS.sub(
      lambda m: '' if text.is_denied(said, m.start()) else m[0], said
  )


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one check may cost.

  Attributes:
    cpu_seconds: CPU time of a check, rounded up to the kernel's whole seconds;
      an answer that takes more is wrong.
    wall_seconds: time until a check is given up. Only a starved or stopped
      machine gets here, so this is no verdict on the answer.
    start_seconds: time until a new child must be ready.
    characters: longer answers are wrong.
    requests: checks after which the child is replaced (sympy's caches grow).
  """

  cpu_seconds: float = 5.0
  wall_seconds: float = 60.0
  start_seconds: float = 60.0
  characters: int = 2000
  requests: int = 1000


class _Died(Exception):
  """The child ended during a check; carries its exit status."""


class Checker:
  """Checks equivalence in a child process; one check at a time.

  Use it from one event loop and await `aclose` at the end. Cancelling a check
  kills the child, so that no reply is ever read by another check.

  Args:
    limits: what one check may cost.

  Raises:
    ValueError: math-verify is not installed.
  """

  def __init__(self, limits: Limits = Limits()):
    if importlib.util.find_spec('math_verify') is None:
      raise ValueError(
          'the symbolic reward needs math-verify: '
          'pip install "math-verify[antlr4_13_2]"'
      )
    self._limits = limits
    self._lock = asyncio.Lock()
    self._process: asyncio.subprocess.Process | None = None
    self._served = 0

  @property
  def pid(self) -> int | None:
    """The child's process id, or None while there is no child."""
    return self._process.pid if self._process else None

  async def equal(self, golds: Sequence[str], answer: str) -> bool:
    """Whether a response is equivalent to an acceptable answer.

    Args:
      golds: acceptable answers, as LaTeX or plain arithmetic.
      answer: the response; `text.extract` says which part of it counts.

    Returns:
      The verdict. A response that is too long, takes too much CPU time or
      twice brings the child down is wrong.

    Raises:
      ValueError: no acceptable answer can be read as mathematics.
      language_model.Unreachable: the child does not start, or twice gave no
        reply in time without using its CPU time.
    """
    said = text.extract(answer)
    if not said or len(said) > self._limits.characters:
      return False
    # The common case costs no process.
    if ''.join(said.split()) in {''.join(g.split()) for g in golds}:
      return True
    request = {
        'golds': [spell(g) for g in golds],
        'answer': spell(said),
        'cpu_seconds': self._limits.cpu_seconds,
    }
    async with self._lock:
      reply = await self._ask(request)
    if 'error' in reply:
      raise ValueError(reply['error'])
    return reply['equal']

  async def aclose(self) -> None:
    """Ends the child, if there is one; the checker can be used again."""
    async with self._lock:
      await self._kill()

  async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply, from a second child if the first one failed."""
    for attempt in range(2):
      if self._process is None or self._served >= self._limits.requests:
        await self._kill()
        await self._start()
      try:
        return await self._exchange(request, self._limits.wall_seconds)
      except _Died as error:
        status = error.args[0]
        if status == -signal.SIGXCPU or attempt:
          logging.warning(
              'symbolic check ended with status %s: scored as wrong', status
          )
          return {'equal': False}
      except TimeoutError as error:
        if attempt:
          raise language_model.Unreachable(
              f'no symbolic verdict within {self._limits.wall_seconds} s, twice'
          ) from error
    raise AssertionError('unreachable')

  async def _exchange(
      self, request: dict[str, Any] | None, seconds: float
  ) -> dict[str, Any]:
    """Sends a line, if any, and reads one; kills the child on any failure.

    Raises:
      _Died: the child ended instead of replying.
      TimeoutError: it did not reply in time.
    """
    process = self._process
    done = False
    try:
      async with asyncio.timeout(seconds):
        if request is not None:
          # A child that is gone shows at the read below.
          with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(request).encode() + b'\n')
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b'\n'):
          raise _Died(await process.wait())
      self._served += 1
      done = True
      return json.loads(line)
    finally:
      if not done:
        await self._kill()

  async def _start(self) -> None:
    try:
      self._process = await asyncio.create_subprocess_exec(
          sys.executable,
          *('-s', '-P', _WORKER),
          json.dumps([p for p in sys.path if p]),
          stdin=asyncio.subprocess.PIPE,
          stdout=asyncio.subprocess.PIPE,
          stderr=asyncio.subprocess.DEVNULL,
          # Sets iterate in the same order in every child.
          env={'PYTHONHASHSEED': '0', 'PYTHONUTF8': '1'},
          cwd=os.sep,
          start_new_session=True,
      )
      await self._exchange(None, self._limits.start_seconds)
      self._served = 0
    except (OSError, TimeoutError, _Died) as error:
      raise language_model.Unreachable(
          f'the symbolic checker does not start: {error!r}'
      ) from error

  async def _kill(self) -> None:
    process, self._process = self._process, None
    if process is None:
      return
    with contextlib.suppress(ProcessLookupError):
      process.kill()
    process.stdin.close()
    await process.wait()
