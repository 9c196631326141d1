"""Runs an application as `serve` does, for tests."""

import contextlib
import socket
import threading

from agentflow_jax.serving import connections


@contextlib.contextmanager
def listening(application, bounds=None, sockets=False):
  """Runs an application on a free port of this machine; yields its URL."""
  with socket.create_server(('127.0.0.1', 0)) as listener:
    server = connections.make_server(application, bounds, sockets)
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
      yield f'http://127.0.0.1:{listener.getsockname()[1]}'
    finally:
      server.should_exit = True
      thread.join(timeout=20)
      assert not thread.is_alive()
