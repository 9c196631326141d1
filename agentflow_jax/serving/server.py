"""Loads a model or an environment, and listens for clients."""

import contextlib
import ipaddress
import socket
import tempfile
from collections.abc import Collection, Sequence

from agentflow_jax.agents.endpoints import client
from agentflow_jax.assembly import served_worlds, standalone_model
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
  given: Collection[str] = (),
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
    given: dotted names of the fields that flags set; the engine's other sizes are
      those of the model's context, or what fits in memory.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  try:
    from agentflow_jax.serving import app, connections
  except ModuleNotFoundError as e:
    raise schema.ConfigError(
      f'serving needs {e.name}: pip install h11 starlette uvicorn (the extra `serve`)'
    ) from e
  key = key_of(key_variable, '--api_key_variable')
  directory = planner or config.planner.directory
  if not directory:
    raise schema.ConfigError('give --planner, or planner.directory')
  # Before the model is loaded: a port that is taken should not cost a minute.
  listener, url, hosts = opened(host, port, host_names)
  with listener, standalone_model.opened(config, directory, given) as model:
    shapes = model.engine.config
    service = app.Service(
      model=model,
      name=name,
      max_new_tokens=shapes.max_new_tokens,
      key=key,
      hosts=hosts,
      row_tokens=min(shapes.longest, model.context),
      context=model.context,
    )
    print(f'{name} at {url}/v1\n{model.shapes_said}', flush=True)
    if not key and hosts is None:
      print(
        'warning: anyone who reaches this machine can use the model; set'
        ' --api_key_variable',
        flush=True,
      )
    server = connections.make_server(app.make(service))
    with contextlib.suppress(KeyboardInterrupt):  # It is how to end it.
      server.run(sockets=[listener])


def serve_environment(
  config: schema.Config,
  *,
  kind: str,
  split: str,
  workdir: str,
  capacity: int,
  idle_seconds: float,
  host: str,
  port: int,
  host_names: Sequence[str] = (),
) -> None:
  """Serves an environment of this process to clients of OpenEnv until interrupted.

  Args:
    config: config with the tasks, see served_worlds.load.
    kind: kind of the environment.
    split: split of the tasks.
    workdir: directory below which data sets are written; '' for a temporary one.
    capacity: largest number of episodes at once.
    idle_seconds: time after which a connection that sends nothing is closed [s].
    host, port, host_names: address, as in `serve`.

  Raises:
    ConfigError: names the remedy.
  """
  try:
    import websockets  # noqa: F401  # Asks for the extra.

    from agentflow_jax.serving import connections, openenv_app, openenv_places
    from agentflow_jax.serving import openenv_sessions
  except ModuleNotFoundError as e:
    raise schema.ConfigError(
      f"serving an environment needs {e.name}: pip install -e '.[serve,openenv]'"
    ) from e
  listener, url, hosts = opened(host, port, host_names)
  with contextlib.ExitStack() as stack:
    stack.enter_context(listener)
    directory = (
      f'{workdir}/data'
      if workdir
      else stack.enter_context(tempfile.TemporaryDirectory())
    )
    served = served_worlds.load(config, kind, split, directory)
    service = openenv_app.Service(
      openenv_places.Places(openenv_sessions.Worlds(served), capacity, idle_seconds),
      hosts,
    )
    print(f'{served.environment.name} at {url}, {len(served.tasks)} tasks', flush=True)
    if hosts is None:
      print(
        'warning: anyone who reaches this machine can take its places; this server'
        ' asks for no key',
        flush=True,
      )
    server = connections.make_server(openenv_app.make(service), sockets=True)
    with contextlib.suppress(KeyboardInterrupt):
      server.run(sockets=[listener])


def key_of(variable: str, flag: str) -> str:
  """Returns the key that an environment variable holds; '' where none is named.

  Raises:
    ConfigError: the variable holds no key that a client could send; names the flag.
  """
  try:
    return client.read_key(variable)
  except ValueError as e:
    raise schema.ConfigError(f'{flag}: {e}') from e


def opened(
  host: str, port: int, host_names: Sequence[str]
) -> tuple[socket.socket, str, frozenset[str] | None]:
  """Opens a port; returns it, its address, and the names that Host may give.

  The names are None where other machines reach it.
  """
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
  shown = f'[{where}]' if ':' in where else where
  names = frozenset(map(str.lower, host_names)) if is_local else None
  return listener, f'http://{shown}:{taken}', names


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
