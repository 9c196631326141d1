"""How long a chunk waits for requests that are known to come, by hand arithmetic."""

import pytest

from agentflow_jax.inference import api, company

_NEVER = float('-inf')


def _made(callers, came, decoded, chunks=2.0):
  config = api.EngineConfig(slots=8, read_share=0.5, company_chunks=chunks)
  made = company.Company(config)
  made.callers, made.came, made.decoded = callers, came, decoded
  return made


@pytest.mark.parametrize(
  ('callers', 'here', 'until'),
  [
    (0, 1, _NEVER),  # Nobody is known to come.
    (1, 1, _NEVER),  # All are there.
    (2, 1, _NEVER),  # Half of them are.
    (3, 1, 103.0),
    (8, 3, 103.0),
    (8, 4, _NEVER),
    (100, 3, 103.0),  # Half of the slots count.
    (100, 4, _NEVER),
  ],
)
def test_it_waits_for_half_of_the_callers(callers, here, until):
  made = _made(callers, came=100.0, decoded=99.0)
  assert made.waits_until([90.0] * here, chunk_seconds=3.0) == until


@pytest.mark.parametrize(
  ('came', 'decoded', 'first', 'until'),
  [
    (100.0, 99.0, 90.0, 103.0),  # A chunk's time behind the last request.
    (104.0, 99.0, 90.0, 105.0),  # Two behind the last chunk.
    (104.0, 90.0, 99.5, 105.5),  # Two behind the first request of an idle engine.
  ],
)
def test_it_does_not_wait_for_long(came, decoded, first, until):
  made = _made(8, came, decoded)
  assert made.waits_until([first, came], chunk_seconds=3.0) == until


def test_before_the_first_chunk_and_with_the_setting_off_it_does_not_wait():
  now = 100.0
  assert _made(8, came=now, decoded=_NEVER).waits_until([now], 0.0) <= now
  off = _made(8, came=now, decoded=now, chunks=0.0)
  assert off.waits_until([now], 3.0) <= now
