"""Answers of an endpoint, kept in a file between runs."""

import asyncio
import dataclasses
import hashlib
import json
import pathlib
import sqlite3
import threading
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from agentflow_jax import records
from agentflow_jax.agents.endpoints import openai_protocol

# Part of every key: raise it when the meaning of a request or answer changes.
_SCHEMA = 1
# Between tries to open a file that others open, too [s].
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def key(url: str, body: Mapping[str, Any], request_key: records.RequestKey) -> str:
  """Names a request by all that its answer depends on.

  Two requests of one name are the same request. Unless temperature is 0, the
  request key is part of it: the G samples of a group ask the same on purpose.
  At temperature 0 the seed decides nothing and is left out.

  Args:
    url: address that the request goes to.
    body: JSON of the request: model, messages and sampling.
    request_key: key of the request, see above.
  """
  said = {name: value for name, value in body.items() if name != 'seed'}
  named = dataclasses.asdict(request_key) if said['temperature'] else None
  text = json.dumps([_SCHEMA, url, said, named], sort_keys=True, default=str)
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


class ResponseCache:
  """A SQLite file of answers; several processes may use it at once.

  Holds answers alone: prompts enter as part of a hash.

  Args:
    path: path of the SQLite file, which is created where it is absent.

  Raises:
    ValueError: there can be no cache at that path.
  """

  def __init__(self, path: str):
    self._path = path
    self._lock = threading.Lock()
    try:
      pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
      # Used by the threads of `to_thread`, one at a time.
      self._db = sqlite3.connect(
        path, timeout=30, isolation_level=None, check_same_thread=False
      )
      try:
        self._prepare()
      except sqlite3.Error:
        self._db.close()
        raise
    except (OSError, sqlite3.Error) as e:
      raise ValueError(
        f'cache: {path} cannot hold answers ({e}); delete it, or name another'
        ' local file'
      ) from e

  def _prepare(self) -> None:
    for pause in (*_PAUSES, None):
      try:
        # A crash loses the last answers at worst, and breaks nothing.
        self._db.execute('PRAGMA journal_mode=WAL')
        break
      except sqlite3.OperationalError as e:
        # Who else makes the file just now: SQLite does not wait for that.
        if pause is None or 'locked' not in str(e):
          raise
        time.sleep(pause)
    self._db.execute('PRAGMA synchronous=NORMAL')
    self._db.execute(
      'CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)'
    )

  async def get(self, name: str) -> openai_protocol.Answer | None:
    """Returns the answer to the request of that name, if there is one."""
    rows = await self._execute('SELECT answer FROM answers WHERE key = ?', (name,))
    if not rows:
      return None
    try:
      return openai_protocol.Answer(**json.loads(rows[0][0]))
    except (TypeError, ValueError):  # Not what we wrote.
      return None

  async def put(self, name: str, answer: openai_protocol.Answer) -> None:
    """Keeps an answer; the first one of a name stays."""
    await self._execute(
      'INSERT OR IGNORE INTO answers VALUES (?, ?)',
      (name, json.dumps(dataclasses.asdict(answer))),
    )

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._db.close()

  async def _execute(self, statement, values) -> list[tuple[Any, ...]]:
    def run():
      with self._lock:
        return self._db.execute(statement, values).fetchall()

    try:
      return await asyncio.to_thread(run)
    except sqlite3.Error as e:  # A full disk should not end a run.
      logging.warning('cache %s: %s', self._path, e)
      return []
