"""Listens for agents that are not ours, in the event loop of their rollouts."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from agentflow_jax.serving import agent_app, agent_host, connections


@contextlib.asynccontextmanager
async def listening(
  host: agent_host.AgentHost,
  listener: socket.socket,
  hosts: frozenset[str] | None = None,
) -> AsyncIterator[None]:
  """Answers agents and drivers while the body runs.

  Args:
    host: sessions and tasks.
    listener: open port.
    hosts: names that the header Host may give, see app.Service.
  """
  server = connections.make_server(agent_app.make(host, hosts), in_loop=True)
  running = asyncio.create_task(server.serve(sockets=[listener]))
  try:
    yield
  finally:
    await host.close()
    server.should_exit = True
    await asyncio.wait({running})
