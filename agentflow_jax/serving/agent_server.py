"""Opens the endpoint of agents that are not ours, for as long as a run needs it."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import AsyncIterator

from etils import epath

from agentflow_jax.agents import served_command
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import schema
from agentflow_jax.files import paths
from agentflow_jax.serving import server

DIRECTORY = 'served'  # Of a workdir: a file for each process.


def check(config: schema.Config) -> None:
  """Refuses what could not be served, before any model is loaded.

  Raises:
    ConfigError: a package, the key or the command is missing; names the field.
  """
  if config.agent.kind != 'served':
    return
  try:
    from agentflow_jax.serving import agent_listener  # noqa: F401  # Asks for the extra.
  except ModuleNotFoundError as e:
    raise schema.ConfigError(
      f"agent.kind=served needs {e.name}: pip install -e '.[serve]'"
    ) from e
  _key(config.agent.served)
  _command(config.agent.served)


def _key(served: schema.ServedConfig) -> str:
  return server.key_of(served.key_variable, 'agent.served.key_variable')


@contextlib.asynccontextmanager
async def opened(system: system_lib.System, workdir: epath.Path) -> AsyncIterator[str]:
  """Serves the models of a system to its agent while the body runs.

  The rollouts of `system.agent` are then sessions. The address, and the key of a
  driver, are in served/pN.json of the workdir, N being the process.

  Args:
    system: system whose config may have agent.kind=served; otherwise nothing is done.
    workdir: work directory of the run.

  Yields:
    A notice for the user; '' where nothing is served.

  Raises:
    ConfigError: nothing can listen there, a package or the command is missing.
  """
  config = system.config
  if config.agent.kind != 'served':
    yield ''
    return
  check(config)
  from agentflow_jax.serving import agent_host, agent_listener

  served = config.agent.served
  key, command = _key(served), _command(served)
  try:
    listener, url, hosts = server.opened(served.host, served.port, ())
  except schema.ConfigError as e:
    raise schema.ConfigError(f'agent.served: {e}') from e
  with listener:
    if hosts is None and not key:
      raise schema.ConfigError(
        f'agent.served.host={served.host} lets other machines in: set'
        ' agent.served.key_variable, the environment variable with the key that'
        ' agents must send'
      )
    models = {'policy': system.model.samplers['planner']}
    limits = {'policy': config.planner.sampling.max_new_tokens}
    if served.frozen:
      models['frozen'] = system.model.samplers['frozen']
      limits['frozen'] = config.engine.max_new_tokens
    host = agent_host.AgentHost(
      models,
      url,
      served.sampling,
      config.planner.sampling,
      limits,
      command,
      takes_rewards=not config.reward.weights,
      key=key,
    )
    path = workdir / DIRECTORY / f'p{system.processes.index}.json'
    agent = system.agent
    async with agent_listener.listening(host, listener, hosts):
      try:
        _write(path, {'url': url} | _driver(host))
        system.agent = dataclasses.replace(agent, host=host)
        yield _notice(config, url, path, command is not None)
      finally:
        system.agent = agent
        path.unlink(missing_ok=True)


def _driver(host) -> dict[str, str]:
  return {'driver_key': host.driver_key} if host.driver_key else {}


def _notice(config, url, path, is_command) -> str:
  sampling = config.planner.sampling
  said = (
    f'planner.sampling holds for all responses of the policy (temperature'
    f' {sampling.temperature:g}, or 0 in greedy evaluations)'
  )
  if config.agent.served.sampling == 'run':
    said += ", whatever an agent's requests say"
  who = (
    'agent.served.command solves the tasks' if is_command else f'drivers read {path}'
  )
  return f'agents are served at {url}; {who}; {said}'


def _command(served: schema.ServedConfig) -> served_command.Command | None:
  """Returns the command that is run for each rollout, if there is one."""
  if not served.command:
    return None
  try:
    arguments = tuple(shlex.split(served.command))
  except ValueError as e:
    raise schema.ConfigError(f'agent.served.command={served.command}: {e}') from e
  if not arguments or shutil.which(arguments[0]) is None:
    raise schema.ConfigError(
      f'agent.served.command={served.command}: there is no such program'
    )
  return served_command.Command(
    arguments, served.cpu_seconds, served.memory_bytes, served.environment
  )


def _write(path: epath.Path, content: dict[str, str]) -> None:
  """Writes the file for drivers, which other users of this machine cannot read."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)  # One that a killed process left behind.
  text = json.dumps(content, indent=1)
  if not paths.is_local(path):
    path.write_text(text)
    return
  partial = f'{path}.partial'
  with contextlib.suppress(FileNotFoundError):
    os.unlink(partial)
  with os.fdopen(
    os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w'
  ) as f:
    f.write(text)
  os.replace(partial, path)
