"""The servers that sample a planner: their weights, and proofs that they have them."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np
from absl import logging

from agentflow_jax.external import calls, proof, versions as versions_lib, wire

# Groups whose server is remembered.
_GROUPS = 4096
# Time limit of a request that loads nothing and samples next to nothing [s].
_SHORT_SECONDS = 120.0

# Scores probes under the weights that are handed over: float32[A] for each.
Score = Callable[[Sequence[proof.Probe]], list[np.ndarray]]


class Refuted(Exception):
  """A server does not have the weights that it says it loaded."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """Model name, limits and times of requests to servers.

  Attributes:
    model: name of the model on the servers; '' for the only one.
    concurrency: largest number of requests that one server is sent at a time.
    timeout_seconds: time limit of one request [s].
    load_seconds: time limit of loading weights [s].
    patience_seconds: time that a request waits for a server to come back where none
      is left [s].
    max_kept: number of ids that are recorded with each token where a request
      truncates.
    retry_seconds: time between two attempts to bring servers back [s].
  """

  model: str = ''
  concurrency: int = 64
  timeout_seconds: float = 600.0
  load_seconds: float = 600.0
  patience_seconds: float = 300.0
  max_kept: int = 0
  retry_seconds: float = 5.0


@dataclasses.dataclass(frozen=True)
class Given:
  """Weights that servers are to sample from.

  Attributes:
    version: number of the weights in results.
    label: name of the weights, on the servers, too.
    path: directory of the weights, as the servers see it; '' where `model` is all
      that a request needs.
    model: name of the model that requests ask for.
    is_adapter: whether the directory holds an adapter.
    probes: texts that are scored to prove it.
    new: scores of the trainer under these weights.
    old: scores under the weights before; None where these are unknown.
  """

  version: int
  label: str
  path: str
  model: str
  is_adapter: bool
  probes: tuple[proof.Probe, ...] = ()
  new: tuple[np.ndarray, ...] = ()
  old: tuple[np.ndarray, ...] | None = None


@dataclasses.dataclass
class Server:
  """One server.

  Attributes:
    wire: its HTTP.
    is_live: whether it proved to have the newest weights, and has not failed since.
    reason: words on why it is not live.
    running: number of requests that it was sent and has not answered.
    adapter: name of the adapter that it was given last; '' for none.
    verdict: result of the last proof.
  """

  wire: wire.Wire
  is_live: bool = False
  reason: str = 'it was given no weights yet'
  running: int = 0
  adapter: str = ''
  verdict: proof.Verdict | None = None


class Fleet:
  """Servers that are given the same weights.

  A server is `live` while it has proved to have the newest weights and has not failed
  since; only those are asked. All methods may be called from any thread.

  Attributes:
    server: requests and answers of the servers.
    settings: model name, limits and times of requests.
    bounds: bounds on the noise between servers and trainer.
  """

  def __init__(
    self,
    server: calls.Server,
    wires: Sequence[wire.Wire],
    settings: Settings,
    bounds: proof.Bounds,
    versions: versions_lib.Versions,
  ):
    """Sends no request yet.

    Args:
      server: requests and answers of the servers.
      wires: HTTP of each server.
      settings: model name, limits and times of requests.
      bounds: bounds on the noise between servers and trainer.
      versions: directories that weights are handed over in.
    """
    self.server, self.settings, self.bounds = server, settings, bounds
    self._servers = [Server(one) for one in wires]
    self._versions = versions
    self._given: Given | None = None
    self._probes: tuple[proof.Probe, ...] = ()
    self._scores: tuple[np.ndarray, ...] | None = None
    self._groups: collections.OrderedDict[str, Server] = collections.OrderedDict()
    # One hand-over, or one attempt to bring a server back, at a time.
    self._handing = threading.Lock()
    self._state = threading.Lock()  # Guards servers and groups.

  def __len__(self) -> int:
    return len(self._servers)

  @property
  def version(self) -> int:
    """Version of the weights that are sampled from; -1 before the first ones."""
    return -1 if self._given is None else self._given.version

  @property
  def live(self) -> list[str]:
    """Addresses of the servers that are asked."""
    with self._state:
      return [one.wire.url for one in self._servers if one.is_live]

  @property
  def running(self) -> int:
    """Requests that servers were sent and have not answered."""
    with self._state:
      return sum(one.running for one in self._servers)

  def why_not(self) -> str:
    """Says why servers are left out; '' where none is."""
    with self._state:
      return '; '.join(
        f'{one.wire.url}: {one.reason}' for one in self._servers if not one.is_live
      )

  # Requests.

  def take(self, group: str) -> tuple[Server, Given] | None:
    """Returns a server that counts one more request, and what it samples from.

    Args:
      group: name that requests with a common beginning share; they go to one server.

    Returns:
      None while no live server has room.
    """
    with self._state:
      live = [one for one in self._servers if one.is_live]
      room = [one for one in live if one.running < self.settings.concurrency]
      mine = self._groups.get(group)
      if mine is None or not mine.is_live:
        mine = min(room, key=lambda one: one.running, default=None)
      if mine is None or mine not in room:
        return None
      mine.running += 1
      if group:
        self._groups[group] = mine
        self._groups.move_to_end(group)
        while len(self._groups) > _GROUPS:
          self._groups.popitem(last=False)
      assert self._given is not None
      return mine, self._given

  def give_back(self, server: Server) -> None:
    """Counts one request less."""
    with self._state:
      server.running -= 1

  def drop(self, server: Server, reason: str) -> None:
    """Leaves a server out, until it was given the weights again and proved it.

    Args:
      server: server that failed.
      reason: words on how.
    """
    with self._state:
      was_live, server.is_live = server.is_live, False
      server.reason = reason
      for group in [g for g, one in self._groups.items() if one is server]:
        del self._groups[group]
    if was_live:
      logging.warning('%s is left out: %s', server.wire.url, reason)

  async def aclose(self) -> None:
    """Closes connections."""
    for server in self._servers:
      await server.wire.aclose()

  # Weights.

  def wait_for_one(self) -> str:
    """Waits until a server can be asked; says why none can, or ''."""
    end = time.monotonic() + self.settings.patience_seconds
    while True:
      reasons = []
      for server in self._servers:
        try:
          server.wire.ask_now(self.server.health(), _SHORT_SECONDS)
          return ''
        except (wire.Unavailable, wire.Refused, calls.BadAnswer) as e:
          reasons.append(str(e))
      if time.monotonic() > end:
        return '; '.join(reasons)
      time.sleep(1.0)

  def probe_with(
    self, probes: Sequence[proof.Probe], scores: Sequence[np.ndarray]
  ) -> dict[str, float]:
    """Sets what hand-overs are proved with, and proves the last one.

    Args:
      probes: texts that are scored.
      scores: float32[A] for each: the trainer's scores of them under the weights that
        were handed over last.

    Returns:
      Metrics, see `hand_over`.

    Raises:
      Refuted: a server does not have the weights.
    """
    with self._handing:
      assert self._given is not None
      self._probes, self._scores = tuple(probes), tuple(scores)
      given = dataclasses.replace(
        self._given, probes=self._probes, new=self._scores, old=None
      )
      with self._state:
        self._given = given
        live = [one for one in self._servers if one.is_live]
      for server in live:
        self._give(server, given, loads=False)
      return self._judged()

  def hand_over(
    self,
    version: int,
    write: Callable[[str], None] | None,
    score: Score,
    is_adapter: bool = False,
  ) -> dict[str, float]:
    """Gives every server new weights, and has them proved.

    No request must be on its way. Servers that cannot be reached are left out.

    Args:
      version: number of the weights in results.
      write: function that writes the weights into the directory that it is given;
        None for those that the servers were started with, beside adapters.
      score: function that scores probes under these weights.
      is_adapter: whether `write` writes an adapter.

    Returns:
      Metrics: 'external/servers' that are live, 'external/indistinguishable', of
      those the ones whose weights no probe told from the ones before, and the largest
      'external/probe_gap' [nats].

    Raises:
      Refuted: a server loaded the weights, and does not have them.
      OSError: the weights cannot be written.
    """
    with self._handing:
      label = self._versions.label_of(version)
      path = '' if write is None else self._versions.write(label, write)
      new = tuple(score(self._probes)) if self._probes else ()
      given = Given(
        version=version,
        label=label,
        path=path,
        model=label if is_adapter and path else self.settings.model,
        is_adapter=is_adapter,
        probes=self._probes,
        new=new,
        old=self._scores,
      )
      with self._state:
        self._given = given
        self._groups.clear()
        for server in self._servers:
          if server.is_live:
            server.is_live, server.reason = False, 'it is being given new weights'
      with futures.ThreadPoolExecutor(len(self._servers)) as threads:
        list(threads.map(lambda one: self._give(one, given), self._servers))
      self._scores = new or None
      metrics = self._judged()
      if metrics['external/servers']:
        # Servers that are left out may still be given the newest ones.
        self._versions.forget_but(label)
      return metrics

  def try_again(self) -> None:
    """Gives the newest weights to the servers that are left out."""
    with self._handing:
      if self._given is None:
        return
      for server in self._servers:
        if not server.is_live:
          self._give(server, self._given)

  def _judged(self) -> dict[str, float]:
    """Returns metrics of the last proofs; raises Refuted."""
    refuted = [
      f'{one.wire.url}: {one.verdict.said}'
      for one in self._servers
      if one.verdict and one.verdict.outcome == proof.Outcome.REFUTED
    ]
    if refuted:
      raise Refuted(
        f'the weights of version {self.version} were handed over, and not'
        f' taken: {"; ".join(refuted)}'
      )
    live = [one for one in self._servers if one.is_live]
    verdicts = [one.verdict for one in live if one.verdict is not None]
    unknown = proof.Outcome.INDISTINGUISHABLE
    return {
      'external/servers': len(live),
      'external/indistinguishable': sum(v.outcome == unknown for v in verdicts),
      'external/told_apart': min((v.told_apart for v in verdicts), default=0),
      'external/probe_gap': max((v.mean_gap for v in verdicts), default=0.0),
    }

  def _give(self, server: Server, given: Given, loads: bool = True) -> None:
    """Loads weights on a server and has them proved; it is live then."""
    server.verdict = None
    try:
      if loads:
        server.wire.ask_now(self.server.health(), _SHORT_SECONDS)
        self._load(server, given)
      if given.probes:
        served, names = self._scored(server, given)
        server.verdict = proof.judge(given.new, given.old, served, self.bounds)
        if server.verdict.outcome == proof.Outcome.INDISTINGUISHABLE and (
          not given.is_adapter and names != {given.label}
        ):
          raise calls.BadAnswer(
            f'{server.verdict.said}, and it names them'
            f' {" and ".join(sorted(names))[:200] or "nothing"}, not {given.label}'
          )
    except (wire.Unavailable, wire.Refused, calls.BadAnswer) as e:
      with self._state:
        is_news = server.reason != str(e)
        server.is_live, server.reason = False, str(e)
      if is_news:
        logging.warning('%s was not given weights: %s', server.wire.url, e)
      return
    with self._state:
      refuted = server.verdict and server.verdict.outcome == proof.Outcome.REFUTED
      server.is_live = not refuted
      server.reason = server.verdict.said if refuted and server.verdict else ''

  def _load(self, server: Server, given: Given) -> None:
    if not given.path:
      return
    if not given.is_adapter:
      steps, after = self.server.load(given.path, given.label)
      try:
        for call in steps:
          self._do(server, call)
      finally:
        for call in after:
          self._do(server, call)
      return
    for call in self.server.load_adapter(given.path, given.label):
      self._do(server, call)
    if server.adapter and server.adapter != given.label:
      for call in self.server.unload_adapter(server.adapter):
        try:
          self._do(server, call)
        except (wire.Refused, calls.BadAnswer):
          # A server that was started again does not know it.
          logging.info('%s did not know %s', server.wire.url, server.adapter)
    server.adapter = given.label

  def _do(self, server: Server, call: calls.Call) -> None:
    for left in range(call.retries, -1, -1):
      try:
        server.wire.ask_now(call, self.settings.load_seconds)
        return
      except calls.BadAnswer:
        if not left:
          raise
        time.sleep(0.1)

  def _scored(self, server: Server, given: Given):
    """Returns the server's scores of the probes, and the names of its weights."""
    found, names = [], set()
    for probe in given.probes:
      call = self.server.score(probe.ids, given.model)
      answer = server.wire.ask_now(call, _SHORT_SECONDS)
      scored = self.server.read_score(answer, probe.ids)
      found.append(np.array(scored.logprobs[-len(probe.response_ids) :], np.float32))
      names |= set(scored.versions)
    return found, names
