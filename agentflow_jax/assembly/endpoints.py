"""Connects to the endpoints that a config names."""

import dataclasses

from agentflow_jax.agents import recording as recording_lib
from agentflow_jax.agents.endpoints import client as client_lib, presets
from agentflow_jax.config import schema


def connect(
  config: schema.EndpointConfig,
  name: str,
  recording: recording_lib.Recording | None,
  processes: int = 1,
) -> client_lib.EndpointClient | recording_lib.RecordedModel:
  """Connects to a language model, recorded where there is a recording.

  Args:
    config: settings of the endpoint; its limits are those of all processes together.
    name: name of its field, for errors.
    recording: recording of answers, or None; one that replays needs no key.
    processes: number of processes that ask it.

  Raises:
    ConfigError: it cannot be asked.
  """
  replays = recording is not None and recording.replays
  client = connect_unrecorded(config, name, replays, processes)
  return client if recording is None else recording.model(client, client.name)


def connect_unrecorded(
  config: schema.EndpointConfig, name: str, replays: bool, processes: int = 1
) -> client_lib.EndpointClient:
  """Connects to an endpoint; as `connect`, but whoever asks records, if at all.

  Args:
    config, name, processes: the same arguments of `connect`.
    replays: whether it will not be asked, so that no key is needed.

  Raises:
    ConfigError: it cannot be asked.
  """
  try:
    found = presets.config(**dataclasses.asdict(config))
    if replays:
      found = dataclasses.replace(found, api_key_variable='', cache='')
    return client_lib.EndpointClient(
      dataclasses.replace(
        found,
        concurrency=max(1, found.concurrency // processes),
        requests_per_minute=found.requests_per_minute / processes,
        tokens_per_minute=found.tokens_per_minute / processes,
      )
    )
  except ValueError as e:
    raise schema.ConfigError(f'{name}: {e}') from e


def usage(
  client: client_lib.EndpointClient | recording_lib.RecordedModel,
) -> dict[str, float]:
  """Returns what an endpoint's requests came to, by module, flat."""
  return {
    f'endpoint/{module}/{name}': value
    for module, used in sorted(client.usage.items())
    for name, value in dataclasses.asdict(used).items()
  }
