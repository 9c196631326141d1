"""Sessions: keys, turns and ends that do not depend on the order of requests."""

import asyncio
import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.agents import language_model, served_session

_TASK = records.Task('t', 'What?', ('a',), 'match')
_KEY = records.RequestKey(3, records.Purpose.TRAIN, 5, 't', 1)
_SAMPLING = records.SamplingSpec(max_new_tokens=4)
_LIMITS = served_session.Limits(max_turns=3, max_prompt_tokens=8, deadline_seconds=9.0)
_S = records.Status


class _Model:
  """Says the words of the key; `slow` holds requests until it is set."""

  def __init__(self, finish_reason='stop'):
    self.keys, self.slow, self.finish_reason = [], None, finish_reason

  async def __call__(self, key):
    self.keys.append(key)
    if self.slow is not None:
      await self.slow.wait()
    language_model.spend(0.25)
    ids = tuple(word % 97 for word in key.words())
    return records.Completion(
      str(key.words()), (), ids, (-0.5, -0.5), self.finish_reason
    )


def _session(**limits):
  return served_session.Session(
    _TASK, _KEY, _SAMPLING, dataclasses.replace(_LIMITS, **limits)
  )


def _run(work):
  return asyncio.run(work())


def _said(turns):
  return [t.completion.text for t in turns]


def test_a_request_is_named_by_what_is_asked_and_how_often():
  async def one(order):
    session, model = _session(max_turns=9), _Model()
    for ids in order:
      session.deliver(await session.ask(ids, _SAMPLING, model))
    return {k.words() for k in model.keys}, _said(session.turns), model.keys

  orders = [[1], [1, 2], [1], [2, 1]], [[2, 1], [1], [1, 2], [1]]
  (words, said, keys), (others, also, _) = (_run(lambda o=o: one(o)) for o in orders)
  assert words == others and len(words) == 4
  assert said == also
  first = keys[0]
  assert (first.seed, first.step, first.query, first.rollout) == (3, 5, 't', 1)

  async def shorter():
    session, model = _session(), _Model()
    await session.ask([1], dataclasses.replace(_SAMPLING, max_new_tokens=2), model)
    await session.ask([1], _SAMPLING, model, frozen_text='?')
    return {k.words() for k in model.keys}

  assert not _run(shorter) & words  # Other sampling, and another model.


def test_requests_side_by_side_are_as_requests_in_turn():
  async def together():
    session, model = _session(max_turns=9), _Model()
    model.slow = asyncio.Event()
    running = [
      asyncio.create_task(session.ask(ids, _SAMPLING, model)) for ids in ([3], [1], [3])
    ]
    await asyncio.sleep(0)
    model.slow.set()
    for asked in reversed(await asyncio.gather(*running)):
      session.deliver(asked)
    waited = session.waiting_seconds
    assert session.sampling_seconds == 0.75 and waited < 0.75
    return _said(session.turns)

  async def in_turn():
    session, model = _session(max_turns=9), _Model()
    for ids in ([1], [3], [3]):
      session.deliver(await session.ask(ids, _SAMPLING, model))
    return _said(session.turns)

  assert _run(together) == _run(in_turn)


def test_a_lost_response_is_kept_apart_and_its_repetition_is_another():
  async def run():
    session, model = _session(max_turns=1), _Model()
    model.slow = asyncio.Event()
    gone = asyncio.create_task(session.ask([1], _SAMPLING, model))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
      await gone
    again = asyncio.create_task(session.ask([1], _SAMPLING, model))
    await asyncio.sleep(0)
    model.slow.set()
    session.deliver(await again)
    session.finish(served_session.Outcome('a'))
    assert session.status == (_S.ANSWERED, '')
    assert [k.attempt for k in model.keys] == [0, 1]
    assert len(session.turns) == len(session.undelivered) == 1
    assert _said(session.turns) != _said(session.undelivered)

  _run(run)


@pytest.mark.parametrize(
  'asks, answers, status',
  [
    ([], False, _S.MODULE_FAILED),
    ([[1]], False, _S.MODULE_FAILED),
    ([[1]], True, _S.ANSWERED),
    ([[1], [2], [3], [4]], False, _S.OUT_OF_TURNS),
    ([[1], [2], [3], [4]], True, _S.OUT_OF_TURNS),
    ([[1], [1] * 9], False, _S.PROMPT_TOO_LONG),
    ([[1], [1] * 9], True, _S.ANSWERED),
    ([[1] * 9, [1]], False, _S.MODULE_FAILED),  # The agent made it shorter.
  ],
)
def test_a_failed_agent_is_the_policys_fault_where_that_was_refused(
  asks, answers, status
):
  async def run():
    session, model = _session(), _Model()
    for ids in asks:
      try:
        session.deliver(await session.ask(ids, _SAMPLING, model))
      except (served_session.OutOfTurns, language_model.PromptTooLong):
        pass
    failure = '' if answers else 'it broke'
    session.finish(served_session.Outcome('a' if answers else '', failure=failure))
    assert session.status[0] is status

  _run(run)


def test_a_cut_off_response_is_the_policys_fault_until_the_next():
  async def run():
    session = _session()
    session.deliver(await session.ask([1], _SAMPLING, _Model('length')))
    failed = served_session.Outcome(failure='no JSON')
    again = _session()
    again.deliver(await again.ask([1], _SAMPLING, _Model('length')))
    again.deliver(await again.ask([2], _SAMPLING, _Model()))
    for one in (session, again):
      one.finish(failed)
    assert session.status[0] is _S.TRUNCATED_RESPONSE
    assert again.status == (_S.MODULE_FAILED, 'no JSON')

  _run(run)


def test_what_comes_after_the_end_changes_nothing():
  async def run():
    session, model = _session(), _Model()
    kept = await session.ask([1], _SAMPLING, model)
    session.deliver(kept)
    late = await session.ask([2], _SAMPLING, model)
    model.slow = asyncio.Event()
    running = asyncio.create_task(session.ask([3], _SAMPLING, model))
    await asyncio.sleep(0)
    session.finish(served_session.Outcome('a'))
    with pytest.raises(served_session.Over):
      await running
    for ended in (served_session.Outcome('b'), served_session.Outcome(reward=1.0)):
      with pytest.raises(served_session.Over, match='ended with an answer'):
        session.finish(ended)
    session.deliver(late)
    session.lose(kept)
    with pytest.raises(served_session.Over):
      await session.ask([4], _SAMPLING, model)
    assert (await session.outcome()).answer == 'a'
    assert [t.completion.text for t in session.turns] == [kept.completion.text]
    assert len(session.undelivered) == 1

  _run(run)


def test_a_model_that_does_not_answer_ends_the_session():
  async def broken(key):
    raise language_model.Unreachable('closed')

  async def run():
    session = _session()
    with pytest.raises(language_model.Unreachable):
      await session.ask([1], _SAMPLING, broken)
    assert session.status == (_S.MODEL_UNREACHABLE, 'closed')
    assert not session.turns and not session.undelivered

  _run(run)


def test_the_frozen_model_takes_no_turn():
  async def run():
    session, model = _session(max_turns=1), _Model()
    for _ in range(3):
      long = [1] * 20  # Its prompts have the engine's bound alone.
      session.deliver(await session.ask(long, _SAMPLING, model, frozen_text='Why?'))
    session.deliver(await session.ask([1], _SAMPLING, model))
    assert len(session.turns) == 1 and len(session.frozen_calls) == 3
    call = session.frozen_calls[0]
    assert (call.module, call.prompts) == ('frozen', ('Why?',))

  _run(run)
