"""A stand-in for servers of OpenEnv: the same frames, tool-style or plain.

A tool-style one counts (tools add, look, bug, lost); a plain one repeats a message.
Three steps with the plain one, or a count of 10, end an episode.
"""

import asyncio
import http
import json
import threading

from websockets.asyncio import server as websocket_server
from websockets.datastructures import Headers
from websockets.http11 import Response

SCHEMA = {
  'type': 'object',
  'additionalProperties': False,
  'required': ['message'],
  'description': 'Says something.',
  'properties': {
    'message': {'type': 'string', 'description': 'what to say'},
    'metadata': {'type': 'object'},
  },
}
_TOOLS = [
  {
    'name': 'add',
    'description': 'Adds.',
    'input_schema': {
      'type': 'object',
      'properties': {'n': {'type': 'integer'}},
      'required': ['n'],
    },
  },
  *(
    {'name': name, 'description': 'Does it.', 'input_schema': {'type': 'object'}}
    for name in ('look', 'bug', 'lost', 'slow')
  ),
]


class OpenEnvServer:
  """A server on a free port, for a `with` block.

  Args:
    style: 'tools' or 'plain'.
    capacity: most episodes at a time.
    old: whether answers have no "metadata", as those of release 0.3.

  Attributes:
    open: number of open episodes now.
    peak: most of them at once.
    resets: arguments of each reset.
  """

  def __init__(self, style='tools', capacity=64, old=False):
    self._style, self._capacity, self._old = style, capacity, old
    self.open = self.peak = 0
    self.resets, self._ready = [], threading.Event()
    self._loop = asyncio.new_event_loop()
    self._connections = set()

  def __enter__(self):
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()
    self._ready.wait()
    return self

  def __exit__(self, *unused):
    self._loop.call_soon_threadsafe(self._stop.set)
    self._thread.join()

  def kill(self):
    """Ends all sockets at once, without a word."""

    def cut():
      for connection in list(self._connections):
        connection.transport.abort()

    self._loop.call_soon_threadsafe(cut)

  def _run(self):
    asyncio.set_event_loop(self._loop)
    self._loop.run_until_complete(self._serve())

  async def _serve(self):
    self._stop = asyncio.Event()
    async with websocket_server.serve(
      self._episode, '127.0.0.1', 0, process_request=self._page
    ) as serving:
      port = serving.sockets[0].getsockname()[1]
      self.url = f'http://127.0.0.1:{port}'
      self._ready.set()
      await self._stop.wait()

  def _page(self, connection, request):
    if request.path != '/schema':
      return None
    body = json.dumps({'action': SCHEMA}).encode()
    headers = Headers(
      {'Content-Type': 'application/json', 'Content-Length': str(len(body))}
    )
    return Response(http.HTTPStatus.OK, 'OK', headers, body)

  async def _episode(self, connection):
    async def say(kind, **data):
      await connection.send(json.dumps({'type': kind, 'data': data}))

    if self.open >= self._capacity:
      await say('error', message='full', code='CAPACITY_REACHED')
      return
    self.open += 1
    self.peak = max(self.peak, self.open)
    self._connections.add(connection)
    count, steps = 0, 0
    try:
      async for text in connection:
        frame = json.loads(text)
        data = frame.get('data', {})
        if frame['type'] == 'close':
          return
        if frame['type'] == 'reset':
          self.resets.append(data)
          count, steps = data.get('start', 0), 0
          if data.get('refuse'):
            await say('error', message='Invalid message', code='VALIDATION_ERROR')
            continue
          seen = {'echoed': f'start {count}'} if self._style == 'plain' else {}
          if 'say' in data:  # Whatever a test wants as an answer.
            await connection.send(data['say'])
            continue
        else:
          steps += 1
          found = self._step(data, count)
          if isinstance(found, str):
            if found == 'slow':
              await asyncio.sleep(3.0)
            await say(
              'error',
              message='no',
              code=found,
              errors=[{'loc': ['message'], 'msg': 'Field required'}],
            )
            continue
          seen, count = found
        done = count >= 10 or (self._style == 'plain' and steps >= 3)
        answer = {'observation': seen, 'reward': count / 10, 'done': done}
        await say('observation', **answer, **({} if self._old else {'metadata': {}}))
    finally:
      self.open -= 1
      self._connections.discard(connection)

  def _step(self, data, count):
    """Returns the observation and the count, or the code of an error."""
    if self._style == 'plain':
      if set(data) - {'metadata'} != {'message'}:
        return 'VALIDATION_ERROR'
      if data['message'] == 'bug':
        return 'EXECUTION_ERROR'
      return {'echoed': data['message'], 'metadata': {}}, count + 1
    if data.get('type') == 'list_tools':
      return {'tools': _TOOLS, 'metadata': {}}, count
    name, arguments = data.get('tool_name'), data.get('arguments', {})

    def failed(kind, message):
      error = {'error_type': kind, 'message': message}
      return {'tool_name': name, 'result': None, 'error': error}, count

    if name == 'slow':
      return 'slow'
    if name == 'bug':
      return failed('execution_error', 'a bug of the tool')
    if name == 'lost':
      return failed('transport_error', 'the tool is gone')
    if name == 'add':
      if not isinstance(arguments.get('n'), int):
        return failed('invalid_args', 'n is missing')
      count += arguments['n']
    elif name != 'look':
      return failed('tool_not_found', f'Unknown tool: {name}')
    result = {
      'content': [{'type': 'text', 'text': f'{count}', 'annotations': None}],
      'structured_content': {'result': f'{count}'},
      'is_error': False,
    }
    return {'tool_name': name, 'result': result, 'error': None}, count
