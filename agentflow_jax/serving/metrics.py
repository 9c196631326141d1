"""What a server did so far, in the text form that Prometheus reads.

The format is version 0.0.4 of the Prometheus text exposition format.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator

from starlette import types

from agentflow_jax.assembly import engine_model

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
# Paths with a count of their own; a client may name any number of others.
_PATHS = frozenset(
  [
    '/health',
    '/version',
    '/metrics',
    '/v1/models',
    '/v1/completions',
    '/v1/chat/completions',
  ]
)
# Field of EngineStats -> its name here, its type and what it is.
_ENGINE = {
  'requests': ('requests_total', 'counter', 'Requests that the engine accepted.'),
  'completed': ('completed_total', 'counter', 'Requests that have a result.'),
  'failed': ('failed_total', 'counter', 'Requests that failed on the device.'),
  'cancelled': ('cancelled_total', 'counter', 'Requests whose clients left.'),
  'queued': ('queued', 'gauge', 'Requests that wait for a slot or for room.'),
  'running': ('running', 'gauge', 'Requests that have a slot.'),
  'prompt_tokens': ('prompt_tokens_total', 'counter', 'Tokens of prompts.'),
  'hit_tokens': (
    'prefix_hit_tokens_total',
    'counter',
    'Tokens of prompts that were read before.',
  ),
  'prefill_tokens': ('prefill_tokens_total', 'counter', 'Tokens of prompts read.'),
  'response_tokens': ('response_tokens_total', 'counter', 'Tokens of responses.'),
  'sampled_tokens': (
    'sampled_tokens_total',
    'counter',
    'Tokens sampled, those behind a stop included.',
  ),
  'prefill_seconds': ('prefill_seconds_total', 'counter', 'Time of prefill.'),
  'decode_seconds': ('decode_seconds_total', 'counter', 'Time of decoding.'),
  'queue_seconds': (
    'queue_seconds_total',
    'counter',
    'Time between requests and their slots, summed over requests.',
  ),
  'first_token_seconds': (
    'first_token_seconds_total',
    'counter',
    'Time between requests and their first tokens, summed over requests.',
  ),
  'slots': ('slots', 'gauge', 'Requests that are sampled at a time, at most.'),
  'pages': ('pages', 'gauge', 'Pages of keys and values.'),
  'free_pages': ('free_pages', 'gauge', 'Pages that hold nothing.'),
  'evicted_pages': (
    'evicted_pages_total',
    'counter',
    'Pages whose tokens were forgotten to make room.',
  ),
  'compilations': ('compilations_total', 'counter', 'Programs compiled.'),
}


@dataclasses.dataclass
class Counts:
  """Answers of a server so far.

  Attributes:
    answers: (path, status code) -> number of responses that were begun.
    open: number of requests that are being answered.
  """

  answers: collections.Counter[tuple[str, int]] = dataclasses.field(
    default_factory=collections.Counter
  )
  open: int = 0


class Counter:
  """ASGI middleware that counts responses by path and status code."""

  def __init__(self, app: types.ASGIApp, counts: Counts):
    self._app, self._counts = app, counts

  async def __call__(self, scope, receive, send):
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    path = scope['path'] if scope['path'] in _PATHS else 'other'

    async def counted(message):
      if message['type'] == 'http.response.start':
        self._counts.answers[path, message['status']] += 1
      await send(message)

    self._counts.open += 1
    try:
      await self._app(scope, receive, counted)
    finally:
      self._counts.open -= 1


def text(stats: engine_model.EngineStats, counts: Counts) -> str:
  """Returns the metrics of an engine, of its server and of this process."""
  lines = []
  for field, (name, kind, told) in _ENGINE.items():
    lines += _family(f'agentflow_engine_{name}', kind, told)
    lines.append(f'agentflow_engine_{name} {getattr(stats, field)}')
  name = 'agentflow_http_responses_total'
  lines += _family(name, 'counter', 'Responses by path and status code.')
  for (path, status), count in sorted(counts.answers.items()):
    lines.append(f'{name}{{path="{path}",status="{status}"}} {count}')
  name = 'agentflow_http_open_requests'
  lines += _family(name, 'gauge', 'Requests that are being answered.')
  lines.append(f'{name} {counts.open}')
  lines += _process()
  return '\n'.join(lines) + '\n'


def _family(name: str, kind: str, told: str) -> list[str]:
  return [f'# HELP {name} {told}', f'# TYPE {name} {kind}']


def _process() -> Iterator[str]:
  """Yields what Prometheus' own clients tell of a process, where Linux knows it."""
  try:
    with open('/proc/self/statm') as file:
      resident = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    descriptors = len(os.listdir('/proc/self/fd')) - 1  # Less that of the list.
  except (OSError, ValueError, IndexError):
    return
  name = 'process_resident_memory_bytes'
  yield from _family(name, 'gauge', 'Resident memory of the process.')
  yield f'{name} {resident}'
  name = 'process_open_fds'
  yield from _family(name, 'gauge', 'Open file descriptors.')
  yield f'{name} {descriptors}'
