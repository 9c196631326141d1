"""The `python` tool: runs a program that a model wrote, in a sandbox.

The program never runs in this process, nor with this process's files, network
or environment. Which sandbox runs it is decided, by trying, when the tool is
made; the card says what its programs can do.
"""

import re
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import bubblewrap, monty, sandbox

# A whole text in one Markdown fence, which may lack its end.
_FENCED = re.compile(
  r'\s*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[`~]*\s*)?',
  re.DOTALL | re.MULTILINE,
)

BACKENDS = ('auto', 'bubblewrap', 'monty')


def make(
  backend: str = 'auto',
  limits: sandbox.Limits | None = None,
  *,
  concurrency: int | None = None,
  queue_seconds: float = 120.0,
) -> base.Tool:
  """Makes the python tool, after running a program in its sandbox.

  Args:
    backend: 'bubblewrap' (full CPython, Linux), 'monty' (a part of Python,
      anywhere) or 'auto': the first of them that works.
    limits: bounds of one program.
    concurrency: programs at a time; the number of processors by default.
    queue_seconds: longest wait of a call for its turn, which does not count as the
      program's time [s]. A call that waits longer was not the model's mistake, so it
      raises `base.ToolUnreachable`.

  Returns:
    A tool whose result is what the program printed. A program that fails raises
    `base.BadArguments` with its error in one line and what it had printed.

  Raises:
    base.ToolUnavailable: no sandbox works here; names the remedies.
    ValueError: the backend's name is unknown, or a bound is not positive.
  """
  if backend not in BACKENDS:
    raise ValueError(f'backend must be one of {BACKENDS}: {backend!r}')
  limits = limits or sandbox.Limits()
  chosen, refused = _choose(backend, limits)
  turns = sandbox.Turns(concurrency, queue_seconds)

  async def call(arguments: Mapping[str, Any]) -> str:
    program = program_of(arguments['code'], limits)
    async with turns:
      outcome = await chosen.run(program)
    return _result_text(outcome, limits)

  return base.Tool(
    card=_card(chosen, limits),
    call=call,
    # Both limits below this have a better-named end than the rollout's.
    timeout=queue_seconds + limits.wall_seconds + 10.0,
    notice='; '.join([f'python: programs run in {chosen.name}', *refused]),
  )


def _choose(backend: str, limits: sandbox.Limits) -> tuple[sandbox.Backend, list[str]]:
  """Returns the sandbox to use, and why those before it cannot be used."""
  kinds = {'bubblewrap': bubblewrap.Bubblewrap, 'monty': monty.Monty}
  names = tuple(kinds) if backend == 'auto' else (backend,)
  reasons = []
  for name in names:
    try:
      return kinds[name](limits), reasons
    except base.ToolUnavailable as error:
      reasons.append(f'{name}: {error}')
  raise base.ToolUnavailable(
    'the python tool has no sandbox to run programs in. ' + '; '.join(reasons)
  )


def program_of(code: str, limits: sandbox.Limits) -> str:
  """Returns the program in what a model gave as one, without a fence around it.

  Raises:
    base.BadArguments: it is empty, too long, or no text that can be encoded.
  """
  return _checked_program(_unwrapped(code), limits)


def _unwrapped(code: str) -> str:
  """Returns code without a byte order mark and the Markdown fence around it."""
  code = code.removeprefix('\ufeff')
  if fenced := _FENCED.fullmatch(code):
    code = fenced['code'].removeprefix('\ufeff')
  return code


def _checked_program(code: str, limits: sandbox.Limits) -> str:
  try:
    size = len(code.encode('utf-8'))
  except UnicodeEncodeError as error:
    raise base.BadArguments(
      f'the code cannot be written as UTF-8: {error.reason}'
    ) from error
  if '\0' in code:
    raise base.BadArguments('the code holds a null character')
  if size > limits.program_bytes:
    raise base.BadArguments(
      f'the code has {size} bytes; {limits.program_bytes} at most'
    )
  if not code.strip():
    raise base.BadArguments('the code is empty')
  return code


def _result_text(outcome: sandbox.Outcome, limits: sandbox.Limits) -> str:
  """What the model reads.

  Raises:
    base.BadArguments: the program failed.
  """
  output = outcome.output.strip('\n')
  if outcome.cut:
    output += f'\n... (cut: the program printed over {limits.output_bytes} bytes)'
  if outcome.error:
    error = outcome.error[:500]
    printed = f'; before that it printed:\n{output}' if output else ''
    raise base.BadArguments(f'the program failed: {error}{printed}')
  return output or 'The program printed nothing; use print to see a result.'


def _card(chosen: sandbox.Backend, limits: sandbox.Limits) -> base.Card:
  return base.Card(
    name='python',
    purpose='Runs a Python program and returns what it prints.',
    arguments=(base.Argument('code', 'a whole program that prints its result'),),
    examples=('execution = tool.execute(code="print(17 * 23)")',),
    limits=(
      f'{chosen.card_limits[0].upper()}{chosen.card_limits[1:]}; at most '
      f'{limits.cpu_seconds:g} s of processor time, '
      f'{limits.wall_seconds:g} s in all, '
      f'{limits.memory_bytes // 2**20} MB and '
      f'{limits.output_bytes} bytes of output. Nothing is kept between '
      'programs.'
    ),
  )
