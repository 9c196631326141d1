"""Traces of chosen steps, where TensorBoard's profile plugin looks for them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from agentflow_jax.config import schema
from agentflow_jax.runtime import profiling


def test_steps_are_said_from_first_to_last():
  assert profiling.Steps.parse('10:12') == profiling.Steps(10, 12)
  assert profiling.Steps.parse('3') == profiling.Steps(3, 3)
  none = profiling.Steps.parse('')
  assert none.last < none.first


@pytest.mark.parametrize('text', ['0:3', '5:4', 'a', '1:', ':2', '1:2:3', '-1'])
def test_what_says_no_steps_is_refused(text):
  with pytest.raises(schema.ConfigError, match=f'profile_steps={text}'):
    profiling.Steps.parse(text)


def _run(directory, chosen, steps):
  """Works through steps of a tiny program each."""
  profiler = profiling.Profiler(
    profiling.Steps.parse(chosen), epath.Path(directory), process=1
  )
  program = jax.jit(lambda x: x @ x)
  program(jnp.ones((8, 8)))
  with profiler.running():
    for step in steps:
      profiler.begin(step)
      with jax.profiler.StepTraceAnnotation('update', step_num=step):
        program(jnp.ones((8, 8))).block_until_ready()
      profiler.end(step)


def _seen(directory, name):
  """The numbers of the steps in a trace."""
  there = directory / 'plugins' / 'profile' / name
  assert (there / 'p1.xplane.pb').stat().st_size > 0
  with gzip.open(there / 'p1.trace.json.gz') as f:
    events = json.load(f)['traceEvents']
  return [int(e['args']['step_num']) for e in events if e.get('name') == 'update']


def test_the_chosen_steps_are_traced_and_no_others(tmp_path):
  _run(tmp_path, '2:3', range(1, 6))
  assert sorted(_seen(tmp_path, 'step_000002')) == [2, 3]
  assert len(list((tmp_path / 'plugins' / 'profile').iterdir())) == 1


def test_a_run_that_goes_on_or_ends_between_keeps_what_it_has(tmp_path):
  _run(tmp_path, '2:9', range(5, 8))
  assert sorted(_seen(tmp_path, 'step_000005')) == [5, 6, 7]


def test_nothing_is_written_where_nothing_was_chosen(tmp_path):
  _run(tmp_path, '', range(1, 3))
  _run(tmp_path, '7:8', range(1, 3))
  assert not list(tmp_path.iterdir())
