"""What a user is told of an error, and the exit code."""

import errno
import os

import httpx
import jax
import pytest

from agentflow_jax.agents import language_model
from agentflow_jax.agents.endpoints import client
from agentflow_jax.config import schema
from agentflow_jax.runtime import exits


def _raised(error, within=None):
  """Returns `error` as raised while something else was handled."""
  try:
    try:
      raise within or KeyError('first')
    except Exception:
      raise error  # noqa: B904 (its context is what is tested)
  except Exception as e:
    return e


_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/x/metrics.jsonl')


@pytest.mark.parametrize(
  'error',
  [
    _FULL,
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), 'runs/x'),
    ExceptionGroup('tasks', [ValueError('other'), _FULL]),
    _raised(RuntimeError('the commit failed'), _FULL),
    # As a library that is not Python's says it.
    ValueError('UNKNOWN: write failed: No space left on device [path]'),
    ExceptionGroup('a', [ExceptionGroup('b', [_raised(KeyError(1), _FULL)])]),
  ],
  ids=['space', 'quota', 'group', 'behind', 'text', 'deep'],
)
def test_a_full_disk_is_one_line_and_worth_another_try(error):
  found = exits.cause(error)
  assert isinstance(found, exits.DiskFull)
  assert exits.code_of(found) == exits.PREEMPTED_CODE
  message = str(found)
  assert 'no space is left' in message and 'make room' in message
  assert '\n' not in message and len(message) < 600


@pytest.mark.parametrize(
  'error',
  [
    client.Refused('POST x gave status 400: No space left on device'),
    language_model.Unreachable('No space left on device'),
    schema.ConfigError('agent.endpoint: No space left on device'),
    httpx.RemoteProtocolError('No space left on device'),
    ValueError('the tool said: No space left on device'),
  ],
)
def test_what_a_server_says_of_a_disk_does_not_decide_the_exit_code(error):
  assert not isinstance(exits.cause(error), exits.DiskFull)
  assert exits.code_of(exits.cause(error)) != exits.PREEMPTED_CODE


@pytest.mark.parametrize(
  'number', [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR]
)
def test_a_path_that_cannot_be_used_is_the_user_s_to_mend(number):
  error = OSError(number, os.strerror(number), 'runs/x/planner')
  for one in (error, ExceptionGroup('tasks', [error])):
    found = exits.cause(one)
    assert isinstance(found, schema.ConfigError)
    assert exits.code_of(found) == 2
    assert 'runs/x/planner' in str(found)
    assert os.strerror(number) in str(found)


@pytest.mark.parametrize(
  'error', [OSError(errno.EIO, 'Input/output error'), ValueError('ours')]
)
def test_what_nobody_could_mend_stays_as_it_is(error):
  assert exits.cause(error) is error
  assert exits.code_of(error) == 1


def test_a_mistake_in_a_group_is_found():
  mistake = schema.ConfigError('planner: no')
  group = ExceptionGroup('tasks', [ValueError('x'), mistake])
  assert exits.cause(group) is mistake


_GLOO = (
  'FAILED_PRECONDITION: Gloo all-reduce failed: [external/gloo/transport/tcp/'
  'pair.cc:547] Connection closed by peer [127.0.0.1]:40122'
)


@pytest.mark.parametrize('is_one_of_several', [True, False])
def test_another_process_that_is_gone_is_one_line(monkeypatch, is_one_of_several):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: is_one_of_several)
  error = _raised(ValueError('in the loop'), jax.errors.JaxRuntimeError(_GLOO))
  found = exits.cause(error)
  if not is_one_of_several:  # Nobody else can be to blame.
    assert found is error
    return
  assert isinstance(found, exits.ProcessGone)
  assert exits.code_of(found) == exits.PREEMPTED_CODE
  assert 'another process of the run is gone' in str(found)
  assert '\n' not in str(found)
