"""One call of a tool: it is bounded in time, recorded, and its errors are classified.

Rollouts make their calls here, and programs that call tools as functions, too.
"""

import asyncio
import dataclasses
import time

from agentflow_jax import records
from agentflow_jax.agents import cancelling, language_model
from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents import recording as recording_lib
from agentflow_jax.agents.tools import base


async def made(
  tool: base.Tool,
  call: records.ToolCall,
  key: records.RequestKey,
  recording: recording_lib.Recording | None = None,
) -> records.ToolResult:
  """Calls a tool, or finds the call in a recording.

  Args:
    tool: tool to call.
    call: call with checked arguments.
    key: request key of the turn; the tool's name becomes its module.
    recording: recording of tools' results; None for none.

  Returns:
    The result. Its `error` says who caused an error: the arguments, the host of the
    tool, or a language model that the tool asks.
  """
  key = dataclasses.replace(key, module=f'tool/{tool.card.name}')
  if recording is None:
    return await _attempt(tool, call, key)
  return await recording.tool_result(
    key, call, tool.version, lambda: _attempt(tool, call, key)
  )


async def _attempt(
  tool: base.Tool, call: records.ToolCall, key: records.RequestKey
) -> records.ToolResult:
  """Calls a tool within its timeout; whose fault an overrun is, it knows."""
  name, kinds = tool.card.name, records.ToolErrorKind
  limit = asyncio.timeout(tool.timeout)
  token = base.request_key.set(key)
  start, error = time.monotonic(), None
  try:
    with base.counting() as counts, base.noting_calls() as inner:
      async with limit:
        text = await tool.call(call.arguments)
        if not isinstance(text, str):
          raise TypeError(f'{type(text).__name__} is no text')
  except recording_lib.Miss:
    raise
  except base.BadArguments as e:
    text, error = str(e), kinds.ARGUMENTS
  except base.ToolUnreachable as e:
    text, error = f'{name}: {e}', kinds.UNREACHABLE
  except language_model.Unreachable as e:
    text, error = f'{name}: {e}', kinds.MODEL_UNREACHABLE
  except (Exception, asyncio.CancelledError) as e:
    # A tool's bug ends this rollout, not the run.
    cancelling.raise_if_cancelled(e)
    text, error = f'{name} raised {type(e).__name__}: {e}', kinds.UNREACHABLE
    if isinstance(e, TimeoutError) and limit.expired():
      text = f'{name} took longer than {tool.timeout} s'
      if tool.arguments_set_time:
        error = kinds.ARGUMENTS
  finally:
    base.request_key.reset(token)
  return records.ToolResult(
    memory_lib.bounded(text),
    error,
    time.monotonic() - start,
    dict(counts),
    tuple(inner),
  )
