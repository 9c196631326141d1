"""A web server on the loopback whose pages a test writes as functions."""

import contextlib
import dataclasses
import http.server
import threading
import urllib.parse


@dataclasses.dataclass
class Asked:
  """A request as the server saw it."""

  method: str
  path: str
  query: dict[str, str]
  headers: dict[str, str]
  body: bytes


@dataclasses.dataclass
class Said:
  """A response; a body of several pieces is sent in pieces, without a length."""

  body: bytes | list[bytes] = b''
  status: int = 200
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  hangs: bool = False


def page(text: str, **headers) -> Said:
  return Said(
    text.encode(), headers={'Content-Type': 'text/html; charset=utf-8', **headers}
  )


def redirect(target: str, status: int = 302) -> Said:
  return Said(status=status, headers={'Location': target})


class Server:
  """Serves `pages`: path -> a Said, or a function of Asked."""

  def __init__(self, pages):
    self.pages = pages
    self.asked: list[Asked] = []
    self._over = threading.Event()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def do_GET(self):
        outer.handle(self)

      do_POST = do_GET

      def log_message(self, *args):
        pass

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._server.daemon_threads = True
    self.port = self._server.server_address[1]
    self.host = f'127.0.0.1:{self.port}'
    self.url = f'http://{self.host}'

  def handle(self, handler):
    split = urllib.parse.urlsplit(handler.path)
    length = int(handler.headers.get('Content-Length', 0))
    asked = Asked(
      handler.command,
      split.path,
      dict(urllib.parse.parse_qsl(split.query)),
      {k.lower(): v for k, v in handler.headers.items()},
      handler.rfile.read(length),
    )
    self.asked.append(asked)
    said = self.pages.get(split.path, Said(b'nothing here', 404))
    if callable(said):
      said = said(asked)
    if said.hangs:
      self._over.wait()
    handler.close_connection = True
    with contextlib.suppress(ConnectionError):
      handler.send_response(said.status)
      if isinstance(said.body, bytes):
        handler.send_header('Content-Length', str(len(said.body)))
      for name, value in said.headers.items():
        handler.send_header(name, value)
      handler.send_header('Connection', 'close')
      handler.end_headers()
      pieces = [said.body] if isinstance(said.body, bytes) else said.body
      for piece in pieces:
        handler.wfile.write(piece)

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
