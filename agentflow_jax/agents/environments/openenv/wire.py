"""What clients and servers of OpenEnv say to each other, releases 0.3 and 0.10.

One WebSocket is one episode. A client sends frames, and each but the last is answered:

  -> {"type": "reset" | "step" | "state" | "mcp" | "close", "data": {...}}
  <- {"type": "observation", "data": {"observation", "reward", "done", ["metadata"]}}
  <- {"type": "state" | "mcp", "data": {...}}
  <- {"type": "error", "data": {"message", "code", ["errors"]}}

The action of a step is, at a server with tools, {"type": "list_tools"} or {"type":
"call_tool", "tool_name", "arguments"}. The observation is then {"tools": [...]}, or
{"tool_name", "result", "error"}, where an error is {"error_type", "message"}.
"""

import enum
from collections.abc import Mapping
from typing import Any

# Path of the WebSocket at a server.
SOCKET = '/ws'
LIST_TOOLS, CALL_TOOL = 'list_tools', 'call_tool'
# Names that no tool may have: they are frames.
RESERVED = frozenset(('reset', 'step', 'state', 'close'))
# Fields of an observation that are not for the model.
HIDDEN = ('done', 'reward', 'metadata')
# Longest frame that a client takes [bytes].
LONGEST_ANSWER = 16 << 20


class Code(enum.StrEnum):
  """Codes of error frames."""

  INVALID_JSON = 'INVALID_JSON'
  UNKNOWN_TYPE = 'UNKNOWN_TYPE'
  # The server refuses the message, and its state is what it was.
  VALIDATION_ERROR = 'VALIDATION_ERROR'
  EXECUTION_ERROR = 'EXECUTION_ERROR'
  CAPACITY_REACHED = 'CAPACITY_REACHED'
  SESSION_ERROR = 'SESSION_ERROR'


class ToolError(enum.StrEnum):
  """Kinds of errors of a tool call."""

  INVALID_ARGUMENTS = 'invalid_args'
  NOT_FOUND = 'tool_not_found'
  EXECUTION = 'execution_error'
  TRANSPORT = 'transport_error'
  TIMEOUT = 'timeout'


# The state of the server is not known after these errors of a tool.
LOST = frozenset((ToolError.TRANSPORT, ToolError.TIMEOUT))


def call(tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the action that calls a tool."""
  return {'type': CALL_TOOL, 'tool_name': tool, 'arguments': dict(arguments)}


def observation(
  fields: Mapping[str, Any],
  reward: float | None = None,
  done: bool = False,
  metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the data of an observation.

  Args:
    fields: fields of the observation.
    reward: reward so far; None where there is none yet.
    done: whether the episode has ended.
    metadata: facts that are not for a model; they stand inside the observation and
      beside it, because typed clients read the first and generic ones the second.
  """
  found = {
    'observation': {**fields, 'metadata': dict(metadata or {})},
    'reward': reward,
    'done': done,
  }
  return found | ({'metadata': dict(metadata)} if metadata else {})


def metadata_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the metadata in the data of an observation; {} without one."""
  inner = data['observation'].get('metadata')
  for found in (data.get('metadata'), inner):
    if isinstance(found, dict) and found:
      return found
  return {}


def error(code: Code, message: str, **more: Any) -> dict[str, Any]:
  """Returns an error frame."""
  return {'type': 'error', 'data': {'message': message, 'code': code, **more}}
