"""The process in which one tracker's library runs; training.trackers starts it.

It may hang, print and exit as it likes: the run does not wait for it. JSON, a message a
line:

  <- {"tracker": "wandb", "run": {...}}      fields of tracker_clients.Run
  <- {"steps": [{"step": 1, "metrics": {...}, "table": null}, ...]}
  -> {"sent": 1}, or {"error": "..."}
  <- {"close": true or false}                whether the run is done
  -> {"closed": true}

When the run's process is gone, this one ends what it is doing, for some seconds at
most, and goes too. What is cut off in the middle can be worse than a step that is
missing: a database of MLflow whose tables are half made cannot be opened again. A lock
keeps the next process waiting meanwhile; it continues from what the tracker holds.
"""

import fcntl
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agentflow_jax.training import tracker_clients


_GRACE_SECONDS = 20.0
_LONGEST_ERROR = 300  # Characters.


def serve(
  tracker: tracker_clients.Tracker,
  messages: Iterable[Mapping[str, Any]],
  reply: Callable[[Mapping[str, Any]], None],
) -> None:
  """Answers messages until one closes the tracker, or says that the run is gone.

  Args:
    tracker: tracker that gets the steps; steps that it holds already are left out.
    messages: messages behind the first, see the module.
    reply: function that is called with each answer.
  """
  last = None
  for message in messages:
    if 'gone' in message:
      return
    try:
      if 'close' in message:
        tracker.close(message['close'])
        reply({'closed': True})
        return
      if last is None:
        last = tracker.begin()
      steps = [_step(said) for said in message['steps'] if said['step'] > last]
      if steps:
        tracker.send(steps)
        last = steps[-1].step
      reply({'sent': last})
    except Exception as e:  # Boundary: a library of any kind, and its server.
      last = None
      said = ' '.join(f'{type(e).__name__}: {e}'.split())
      reply({'error': said[:_LONGEST_ERROR]})


def _step(said: Mapping[str, Any]) -> tracker_clients.Step:
  table = said['table']
  return tracker_clients.Step(
    said['step'],
    said['metrics'],
    None if table is None else tracker_clients.Table(**table),
  )


def run(
  clients: Mapping[str, Callable[..., tracker_clients.Tracker]],
  grace_seconds: float = _GRACE_SECONDS,
) -> None:
  """Serves the tracker that the first line on stdin names, then ends the process.

  Args:
    clients: function that makes a tracker, by name.
    grace_seconds: longest time that this process outlives that of the run [s].
  """
  # Libraries print; replies go to a descriptor of their own.
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # The run's process says when to end.
  messages = _read(grace_seconds)
  first = next(messages)
  of = tracker_clients.Run(**first['run'])
  lock = None
  if '://' not in of.directory:
    # Until the process of an earlier attempt has ended.
    lock = open(os.path.join(of.directory, f'{first["tracker"]}.lock'), 'w')
    fcntl.flock(lock, fcntl.LOCK_EX)

  def reply(said):
    replies.write(json.dumps(said) + '\n')
    replies.flush()

  serve(clients[first['tracker']](of), messages, reply)
  os._exit(0)  # Hooks of the libraries could hang.


def _read(grace_seconds: float) -> Iterator[Mapping[str, Any]]:
  """Yields the messages on stdin, and {"gone": true} where it ends."""
  found: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()

  def read():
    for line in sys.stdin:
      found.put(json.loads(line))
    found.put({'gone': True})
    time.sleep(grace_seconds)
    os._exit(1)

  threading.Thread(target=read, daemon=True).start()
  while True:
    yield found.get()


if __name__ == '__main__':
  run(tracker_clients.CLIENTS)
