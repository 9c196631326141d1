"""A server that speaks the wire of EnterpriseOps-Gym, oddities included.

Its databases are SQLite; its tools act on a table ticket (id, title, state).
"""

import http.server
import json
import sqlite3
import threading
import time

SQL = """
create table ticket (id integer primary key, title text, state text);
insert into ticket values (1, 'printer', 'open'), (2, 'screen', 'open');
"""


def _text(value):
  return {'content': [{'type': 'text', 'text': value}]}


def _tool(name, description='Does it.', **properties):
  return {
    'name': name,
    'description': description,
    'inputSchema': {
      'type': 'object',
      'properties': properties,
      'required': list(properties),
    },
  }


class GymServer:
  """A server on a free port, for a `with` block.

  Attributes:
    requests: (path, database of the header, headers, body) of each request.
    databases: the open ones, by id.
    deleted: ids of those that were deleted.
    peak: most databases that were open at once.
  """

  def __init__(self, mark='', deletes=True, delay=0.0):
    self.mark, self.deletes, self.delay = mark, deletes, delay
    self.requests, self.databases, self.deleted, self.peak = [], {}, [], 0
    self._lock = threading.RLock()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def do_POST(self):
        outer._handle(self)

      def do_DELETE(self):
        outer._handle(self)

      def log_message(self, *args):
        pass

    class Server(http.server.ThreadingHTTPServer):
      daemon_threads, request_queue_size = True, 256

    self._server = Server(('127.0.0.1', 0), Handler)

  @property
  def url(self):
    return f'http://127.0.0.1:{self._server.server_port}'

  def __enter__(self):
    threading.Thread(
      target=self._server.serve_forever, args=(0.02,), daemon=True
    ).start()
    return self

  def __exit__(self, *unused):
    self._server.shutdown()
    self._server.server_close()

  def calls(self):
    """The tool calls: (database, name)."""
    return [
      (database, body['params']['name'])
      for _, database, _, body in self.requests
      if body.get('method') == 'tools/call'
    ]

  def _handle(self, handler):
    size = int(handler.headers.get('content-length', 0))
    body = json.loads(handler.rfile.read(size) or b'{}')
    headers = {k.lower(): v for k, v in handler.headers.items()}
    database = headers.get('x-database-id', '')
    with self._lock:
      self.requests.append((handler.path, database, headers, body))
    status, reply = self._reply(handler.path, database, body)
    content = b'' if reply is None else json.dumps(reply).encode()
    try:
      handler.send_response(status)
      handler.send_header('content-length', str(len(content)))
      if body.get('method') == 'initialize':
        handler.send_header('mcp-session-id', f'session of {database}')
      handler.end_headers()
      handler.wfile.write(content)
    except OSError:
      pass  # The client gave up.

  def _reply(self, path, database, body):
    if path == '/api/seed-database':
      with self._lock:
        if body['database_id'] in self.databases:
          return 409, {'detail': 'exists'}
        made = sqlite3.connect(':memory:', check_same_thread=False)
        try:
          made.executescript(body['sql_content'])
        except sqlite3.Error as e:
          return 500, {'detail': str(e)}
        self.databases[body['database_id']] = made
        self.peak = max(self.peak, len(self.databases))
      return 200, {'success': True}
    if path == '/api/delete-database':
      if not self.deletes:
        return 405, {'detail': 'not allowed'}
      if body['database_id'] in self.databases:
        time.sleep(self.delay)
      with self._lock:
        known = self.databases.pop(body['database_id'], None)
      if known is None:
        return 404, {'detail': 'no such database'}
      self.deleted.append(body['database_id'])
      return 200, {'success': True}
    if path == '/api/sql-runner':
      return self._sql(body['database_id'], body['query'])
    if path != '/mcp':
      return 404, {'detail': 'no such path'}
    method = body.get('method')
    if method == 'notifications/initialized':
      return 204, None
    if method == 'initialize':
      result = {'protocolVersion': '2024-11-05', 'capabilities': {}}
    elif method == 'tools/list':
      result = {'tools': self.tools()}
    elif method == 'tools/call':
      params = body['params']
      status, result = self._call(database, params['name'], params['arguments'])
      if status != 200:
        return status, result
    else:
      result = {'error': f'unknown method {method}'}
    return 200, {'jsonrpc': '2.0', 'id': body.get('id'), 'result': result}

  def tools(self):
    return [
      _tool('create_ticket', 'Opens a ticket.', title={'type': 'string'}),
      _tool('close_ticket', 'Closes a ticket.', id={'type': 'integer'}),
      _tool('list_tickets', 'Lists tickets.'),
      _tool('slow'),
      _tool('broken'),
      _tool('refuses'),
      _tool(f'only_{self.mark}' if self.mark else 'only'),
    ]

  def _sql(self, database, query):
    with self._lock:
      made = self.databases.get(database)
      if made is None:
        return 404, {'detail': 'no such database'}
      try:
        cursor = made.execute(query)
      except sqlite3.Error as e:
        return 400, {'detail': str(e)}
      names = [c[0] for c in cursor.description or ()]
      return 200, {'data': [dict(zip(names, row)) for row in cursor.fetchall()]}

  def _call(self, database, name, arguments):
    with self._lock:
      made = self.databases.get(database)
    if made is None:
      return 200, _text('Error: no database')
    if name == 'slow':
      time.sleep(1.5)
      return 200, _text('done')
    if name == 'broken':
      return 503, {'detail': 'down'}
    if name == 'refuses':
      return 422, {'detail': 'a field is wrong'}
    with self._lock:
      if name == 'create_ticket':
        made.execute(
          'insert into ticket (title, state) values (?, ?)',
          (arguments['title'] + self.mark, 'open'),
        )
        return 200, _text('created')
      if name == 'close_ticket':
        done = made.execute(
          "update ticket set state = 'closed' where id = ?", (arguments['id'],)
        )
        if not done.rowcount:
          return 200, _text(f'Ticket not found: {arguments["id"]}')
        return 200, _text('closed')
      if name == 'list_tickets':
        rows = made.execute('select id, title, state from ticket order by id')
        return 200, _text(json.dumps({'tickets': rows.fetchall()}))
    return 200, {'error': f'unknown tool {name}'}
