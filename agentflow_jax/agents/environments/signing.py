"""States of episodes that only the process that wrote them reads."""

import hmac
import os

_SECRET = os.urandom(32)
_SIZE = 32


def signed(kind: bytes, body: bytes) -> bytes:
  """Returns a state of a kind of episode, which `read` takes in this process."""
  return hmac.digest(_SECRET, kind + body, 'sha256') + body


def read(kind: bytes, state: bytes) -> bytes:
  """Returns the body of a state.

  Raises:
    ValueError: it is no state of this kind that this process wrote.
  """
  digest, body = state[:_SIZE], state[_SIZE:]
  if not hmac.compare_digest(digest, hmac.digest(_SECRET, kind + body, 'sha256')):
    raise ValueError(f'this is no state of a {kind.decode()} of this process')
  return body
