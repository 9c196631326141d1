"""A chat completions server on the loopback that misbehaves as it is told."""

import contextlib
import dataclasses
import http.server
import json
import socket
import threading
import time


def completion(text='Because.', finish_reason='stop'):
  choice = {
    'message': {'role': 'assistant', 'content': text},
    'finish_reason': finish_reason,
  }
  return json.dumps({'choices': [choice]}).encode()


@dataclasses.dataclass
class Reply:
  """What the server does with one request."""

  status: int = 200
  body: bytes = completion()
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  hang_seconds: float = 0.0
  drop: bool = False
  drip: bool = False


class Server:
  """Answers from a list of replies; the last one repeats."""

  def __init__(self, *replies):
    self.replies = list(replies)
    self.requests = []
    self.times = []
    self._lock = threading.Lock()
    self._over = threading.Event()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def do_POST(self):
        outer.handle(self)

      def log_message(self, *args):
        pass

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._server.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}/v1'

  def handle(self, handler):
    length = int(handler.headers['Content-Length'])
    body = json.loads(handler.rfile.read(length))
    with self._lock:
      self.requests.append((handler.path, dict(handler.headers), body))
      self.times.append(time.monotonic())
      reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
    self._over.wait(reply.hang_seconds)
    if reply.drop:
      handler.close_connection = True
      handler.connection.shutdown(socket.SHUT_RDWR)
      return
    with contextlib.suppress(ConnectionError):
      handler.send_response(reply.status)
      handler.send_header('Content-Length', str(len(reply.body)))
      for name, value in reply.headers.items():
        handler.send_header(name, value)
      handler.end_headers()
      for byte in reply.body if reply.drip else ():
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if self._over.wait(0.1):
          break
      if not reply.drip:
        handler.wfile.write(reply.body)

  def __enter__(self):
    self._thread = threading.Thread(
      target=self._server.serve_forever, kwargs={'poll_interval': 0.02}
    )
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._over.set()
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()
