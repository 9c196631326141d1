"""A planner that servers sample: how they are reached, and given its weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.assembly import model_files
from agentflow_jax.config import schema
from agentflow_jax.core import gap_bounds, model
from agentflow_jax.external import calls, fleet, proof, sampler, sglang, versions
from agentflow_jax.external import vllm, wire
from agentflow_jax.files import paths
from agentflow_jax.inference import api
from agentflow_jax.weights import adapter_files, families, model_directory

ExternalSampler = sampler.ExternalSampler
Refuted = fleet.Refuted
Probe = proof.Probe
FACTOR = proof.FACTOR

_KINDS: dict[str, Callable[[], calls.Server]] = {
  'vllm': vllm.Vllm,
  'sglang': sglang.SGLang,
}

# Scores probes under parameters over the mesh: float32[A] for each.
Scores = Callable[[Any, Any], list[np.ndarray]]


class Servers:
  """Hands a planner's parameters to the servers that sample it.

  Attributes:
    sampler: sampler over the servers.
  """

  def __init__(
    self, config: schema.Config, loaded: model_files.Model, samples: ExternalSampler
  ):
    self.sampler = samples
    self._config, self._loaded = config, loaded
    self._score: Scores | None = None
    self._adapters: Callable[[], Any] | None = None

  def prove_by(self, score: Scores, adapters: Callable[[], Any]) -> None:
    """Sets what the trainer brings: it is made later.

    Args:
      score: function from parameters and probes to the scores of the probes.
      adapters: function that returns the adapters as they are now.
    """
    self._score, self._adapters = score, adapters

  def hand_over(self, params: model.Params, version: int) -> dict[str, float]:
    """Gives the servers parameters that lie over the mesh.

    Args:
      params: whole parameters; where adapters are handed over, those that the run
        starts from, or the trainer's now.
      version: number of the parameters in results.

    Returns:
      Metrics, see external.fleet.Fleet.hand_over.

    Raises:
      Refuted: a server does not have them.
      OSError: they cannot be written.
    """
    assert self._score is not None
    score = self._score
    by_adapter = self._config.planner.external.hand_over == 'adapter'
    write = self._adapter_writer(params) if by_adapter else self._writer(params)
    return self.sampler.fleet.hand_over(
      version, write, lambda probes: score(params, probes), is_adapter=by_adapter
    )

  def _writer(self, params) -> Callable[[str], None]:
    # The head is always written: a server that ties it does not read it.
    network, whole = model_directory.untied(self._loaded.config, params)
    found = model_files.Model(
      network, whole, self._loaded.tokenizer, self._loaded.described
    )
    # Products round their kernels to it in any case.
    return lambda path: found.save(path, network.dtype)

  def _adapter_writer(self, params) -> Callable[[str], None] | None:
    if params is self._loaded.params:
      return None
    assert self._adapters is not None
    lora, network = self._config.planner.lora, self._loaded.config
    adapters = self._adapters()
    return lambda path: adapter_files.save(path, network, lora, adapters)


def make(
  config: schema.Config, loaded: model_files.Model, workdir: epath.Path, processes: int
) -> Servers:
  """Connects a run to the servers that sample its planner.

  Args:
    config: config of the run.
    loaded: model that it starts from.
    workdir: work directory of the run.
    processes: number of processes of the run.

  Raises:
    ConfigError: the servers cannot be used.
  """
  external = config.planner.external
  if processes > 1:
    raise schema.ConfigError(
      'planner.sampler=external is for a run of one process, which may have many'
      f' devices; this one has {processes}'
    )
  directory = external.directory or str(workdir / 'external')
  if not paths.is_local(directory):
    raise schema.ConfigError(
      f'planner.external.directory: {directory} is not local: name a directory of a'
      ' file system that the servers see, too'
    )
  network = loaded.config
  for name, value, most in (
    (
      'planner.max_prompt_tokens',
      config.planner.max_prompt_tokens,
      network.max_positions,
    ),
    ('engine.max_kept', config.engine.max_kept, network.vocab_size),
  ):
    if value > most:
      raise schema.ConfigError(f'{name} {value}: the model has {most}')
  try:
    families.to_hugging_face(network, 'float32')
    key = client_lib.read_key(external.api_key_variable)
  except families.UnsupportedModel as e:
    raise schema.ConfigError(f'planner.sampler=external: {e}') from e
  except ValueError as e:
    raise schema.ConfigError(f'planner.external.api_key_variable: {e}') from e
  servers = fleet.Fleet(
    _KINDS[external.api](),
    [wire.Wire(url, key, external.concurrency) for url in external.servers],
    fleet.Settings(
      model=external.model,
      concurrency=external.concurrency,
      timeout_seconds=external.timeout_seconds,
      load_seconds=external.load_seconds,
      patience_seconds=external.patience_seconds,
      max_kept=config.engine.max_kept,
    ),
    _bounds(config, network.dtype),
    versions.Versions(directory, external.server_directory),
  )
  samples = sampler.ExternalSampler(
    servers,
    api.EngineConfig(
      max_prompt_tokens=config.planner.max_prompt_tokens,
      max_new_tokens=config.planner.sampling.max_new_tokens,
      max_kept=config.engine.max_kept,
    ),
    vocab_size=network.vocab_size,
    max_positions=network.max_positions,
  )
  return Servers(config, loaded, samples)


def _bounds(config: schema.Config, dtype: str) -> proof.Bounds:
  found = gap_bounds.of(
    dtype,
    outside=True,
    mean=config.train.mean_logprob_gap,
    p99=config.train.p99_logprob_gap,
  )
  return proof.Bounds(mean=found.mean, p99=found.p99)
