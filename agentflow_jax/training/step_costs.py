"""What a step costs: utilisation, tokens per second and device, and dollars.

Useful work is counted from tokens (core.flops.useful); padding and recomputation do not
count. docs/scaling.md has the definition.
"""

from collections.abc import Sequence

import jax

from agentflow_jax.config import schema
from agentflow_jax.core import batch, flops, model, peaks


class Costs:
  """The rates of the steps of one run.

  Attributes:
    peak: peak of a device that utilisation is a share of.
    devices: number of devices of the run, over all processes.
  """

  def __init__(
    self, config: schema.Config, network: model.ModelConfig, mesh: jax.sharding.Mesh
  ):
    """Measures the peak, where neither the config nor the chip's vendor states it.

    Args:
      config: config of the run.
      network: network that is trained and sampled from.
      mesh: devices of the run.
    """
    self._network = network
    devices = list(mesh.devices.flat)
    self.devices = len(devices)
    self._local = sum(d.process_index == jax.process_index() for d in devices)
    self.peak = peaks.of_devices(
      mesh.local_devices, network.dtype, config.metrics.peak_flops
    )
    # The reference is scored for the KL term alone; adapters keep it otherwise.
    self._reference = config.algorithm == 'flow_grpo' and config.flow_grpo.kl_coef > 0
    self._trains = config.algorithm != 'none'
    self._price = config.metrics.device_hour_dollars

  def of_rollouts(
    self, responses: Sequence[Sequence[tuple[flops.Ids, flops.Ids]]], seconds: float
  ) -> dict[str, float]:
    """Returns the rates of a step's rollouts, over this process's devices.

    Args:
      responses: (prompt_ids, response_ids) that each engine of this process sampled.
        Engines share no work: their parameters differ.
      seconds: wall time of the rollouts, tools and waits included [s].
    """
    work = flops.Work(0, 0, 0)
    for of_engine in responses:
      work += flops.useful(of_engine)
    return self._rates(
      'rollout', work, flops.forward(self._network, work), seconds, self._local
    )

  def of_update(
    self, mini_batches: Sequence[Sequence[batch.TurnRow]], seconds: float
  ) -> dict[str, float]:
    """Returns the rates of a step's updates, over the devices of all processes.

    Args:
      mini_batches: turn rows of each optimizer update.
      seconds: wall time of the updates, with packing and handover [s].
    """
    work = flops.Work(0, 0, 0)
    for rows in mini_batches if self._trains else ():
      work += flops.useful(
        [(row.prompt_ids, row.response_ids) for row in rows],
        any(row.prompt_weight for row in rows),
      )
    needed = flops.update_needed(self._network, work, reference=self._reference)
    return self._rates('update', work, needed, seconds, self.devices)

  def dollars(self, seconds: float) -> float | None:
    """Returns the price of all devices for some time; None without a price."""
    return self._price * self.devices * seconds / 3600 if self._price else None

  def _rates(self, phase, work, needed, seconds, devices) -> dict[str, float]:
    if not work.tokens or seconds <= 0:
      return {}
    return {
      f'rate/{phase}/mfu': flops.utilisation(needed, seconds, devices, self.peak.flops),
      f'rate/{phase}/tokens_per_second_per_device': (work.tokens / seconds / devices),
    }
