"""Loads a model and listens for clients."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Sequence

from agentflow_jax.assembly import standalone_model
from agentflow_jax.config import schema


def serve(
    config: schema.Config,
    *,
    planner: str,
    name: str,
    host: str,
    port: int,
    key_variable: str,
    host_names: Sequence[str] = (),
) -> None:
  """Serves until it is interrupted.

  Args:
    config: `engine` and the dtypes of `planner` are read.
    planner: a model directory or a GGUF file; '' for the config's own.
    name: name of the model for clients.
    host: the address to listen on.
    port: port to listen on; 0 takes a free one.
    key_variable: environment variable of the key that clients must send, or ''.
    host_names: further names in the header Host that are answered where only
      this machine is listened to.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  try:
    from agentflow_jax.serving import app, connections
  except ModuleNotFoundError as e:
    raise schema.ConfigError(
        f'serving needs {e.name}: pip install h11 starlette uvicorn (the extra'
        ' `serve`)'
    ) from e
  key = os.environ.get(key_variable, '').strip() if key_variable else ''
  if key_variable and not key:
    raise schema.ConfigError(
        f'--api_key_variable: the environment variable {key_variable} holds no'
        ' key'
    )
  directory = planner or config.planner.directory
  if not directory:
    raise schema.ConfigError('give --planner, or planner.directory')
  # Before the model is loaded: a port that is taken should not cost a minute.
  listener = _listen(host, port)
  where, taken = listener.getsockname()[:2]
  is_local = ipaddress.ip_address(where).is_loopback
  if wrong := [name for name in host_names if ':' in name]:
    listener.close()
    raise schema.ConfigError(f'--host_names: {wrong[0]!r}: leave the port out')
  if host_names and not is_local:
    listener.close()
    raise schema.ConfigError(
        f'--host_names is read only where --host is this machine alone, and {host}'
        ' is not: leave it out'
    )
  with listener, standalone_model.opened(config, directory) as model:
    service = app.Service(
        model=model,
        name=name,
        max_new_tokens=config.engine.max_new_tokens,
        key=key,
        hosts=frozenset(map(str.lower, host_names)) if is_local else None,
    )
    shown = f'[{where}]' if ':' in where else where
    print(f'{name} at http://{shown}:{taken}/v1', flush=True)
    if not key and not is_local:
      print(
          'warning: anyone who reaches this machine can use the model; set'
          ' --api_key_variable', flush=True,
      )
    server = connections.make_server(app.make(service))
    with contextlib.suppress(KeyboardInterrupt):  # It is how to end it.
      server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
  try:
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(address)
      listener.listen(128)
    except OSError:
      listener.close()
      raise
  except (OSError, OverflowError) as e:
    raise schema.ConfigError(
        f'cannot listen on {host} port {port}: {e}; choose another --port'
    ) from e
  return listener
