"""Decides how long a chunk of decoding waits for requests that are known to come."""

from collections.abc import Sequence

from agentflow_jax.inference import api


class Company:
  """The callers that are at work, and the pace at which their requests come.

  A chunk costs the same for one row as for all, so a chunk of few rows waits for
  callers that are between two requests. It waits only while at least one request
  arrives in the time of a chunk: where requests arrive more slowly, waiting would
  hardly add a row. The lock of the engine has to guard this object.

  Attributes:
    callers: number of callers that are at work, those with a request included.
    came: time of the last request [s].
    decoded: end of the last chunk [s].
  """

  def __init__(self, config: api.EngineConfig):
    """Knows of no caller.

    Args:
      config: config in which nothing is left open.
    """
    assert config.company_chunks is not None and config.read_share is not None
    self._most, self._share = config.company_chunks, config.read_share
    self._slots = config.slots
    self.callers = 0
    self.came = self.decoded = float('-inf')

  def waits_until(self, submitted: Sequence[float], chunk_seconds: float) -> float:
    """Returns the time until which the next chunk waits [s], which may be past.

    Args:
      submitted: times of the requests that are there, with a slot or without [s]; at
        least one.
      chunk_seconds: time that a chunk takes [s]; 0 where that is not known yet.
    """
    if len(submitted) >= self._share * min(self.callers, self._slots):
      return float('-inf')
    since = max(self.decoded, min(submitted))
    return min(self.came + chunk_seconds, since + self._most * chunk_seconds)
