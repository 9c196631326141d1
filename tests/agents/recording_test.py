import asyncio
import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model, recording
from agentflow_jax.agents.endpoints import client

_KEY = records.RequestKey(0, records.Purpose.EVALUATE, 0, 'q', 0, module='tool/search')
_CALL = records.ToolCall('search', {'query': 'a \udc80 lone surrogate'})
_KINDS = records.ToolErrorKind


def results(directory, replays, *asked, made=None):
  """Asks for results, each made as its number in order."""

  async def run():
    kept = recording.Recording(str(directory), replays=replays)
    number = 0
    found = []

    async def make():
      nonlocal number
      number += 1
      if made is not None:
        return made.pop(0)
      return records.ToolResult(str(number), None, 0.5, {'web_fetched': number})

    try:
      for key, call, version in asked:
        found.append(await kept.tool_result(key, call, version, make))
    finally:
      kept.close()
    return found

  return asyncio.run(run())


def test_a_replay_gives_what_was_recorded_for_each_name(tmp_path):
  other = records.ToolCall('search', {'query': 'b'})
  asked = [
    (_KEY, _CALL, 'v'),
    (_KEY, _CALL, 'v'),  # Repeated: an ordinal apart.
    (_KEY, other, 'v'),
    (_KEY, _CALL, 'w'),
    (dataclasses.replace(_KEY, rollout=1), _CALL, 'v'),
    (dataclasses.replace(_KEY, turn=1), _CALL, 'v'),
    (dataclasses.replace(_KEY, query='r'), _CALL, 'v'),
  ]
  made = results(tmp_path, False, *asked)
  assert [r.text for r in made] == list('1234567')
  assert made[0].counts == {'web_fetched': 1}
  # In another order, but for what is asked twice.
  mixed = [0, 6, 1, 5, 2, 4, 3]
  played = results(tmp_path, True, *(asked[i] for i in mixed))
  assert played == [made[i] for i in mixed]


def test_a_miss_names_the_call(tmp_path):
  results(tmp_path, False, (_KEY, _CALL, 'v'))
  for key, call, version in (
    (_KEY, records.ToolCall('search', {'query': 'unheard'}), 'v'),
    (dataclasses.replace(_KEY, seed=1), _CALL, 'v'),
    (dataclasses.replace(_KEY, purpose=records.Purpose.TRAIN), _CALL, 'v'),
    (_KEY, _CALL, 'w'),
  ):
    with pytest.raises(recording.Miss) as missed:
      results(tmp_path, True, (key, call, version))
    text = str(missed.value)
    assert '"search"' in text and "rollout 0 of 'q'" in text
    assert '--recording=record' in text
  with pytest.raises(recording.Miss, match=r'2 time\(s\)'):
    results(tmp_path, True, (_KEY, _CALL, 'v'), (_KEY, _CALL, 'v'))


def test_who_records_asks_nothing_twice_but_what_failed(tmp_path):
  bad = records.ToolResult('no', _KINDS.ARGUMENTS)
  down = records.ToolResult('down', _KINDS.UNREACHABLE)
  good = records.ToolResult('yes')
  other = dataclasses.replace(_KEY, rollout=1)
  asked = [(_KEY, _CALL, ''), (other, _CALL, '')]
  assert results(tmp_path, False, *asked, made=[bad, down]) == [bad, down]
  # Cut off and begun again: the host is well now.
  assert results(tmp_path, False, *asked, made=[good]) == [bad, good]
  assert results(tmp_path, True, *asked) == [bad, good]


def test_occasions_are_apart(tmp_path):
  async def run(replays):
    kept = recording.Recording(str(tmp_path), replays=replays)
    texts = iter('ab')

    async def make():
      return records.ToolResult(next(texts))

    found = []
    for occasion in ('first', 'second')[:: -1 if replays else 1]:
      with recording.during('outer'), recording.during(occasion):
        result = await kept.tool_result(_KEY, _CALL, '', make)
        found.append((occasion, result.text))
    kept.close()
    return dict(found)

  assert asyncio.run(run(False)) == asyncio.run(run(True))


def test_torn_and_broken_files(tmp_path):
  results(tmp_path, False, (_KEY, _CALL, ''))
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  path.write_bytes(whole + whole[: len(whole) // 2])
  assert results(tmp_path, True, (_KEY, _CALL, ''))[0].text == '1'
  path.write_bytes(b'{"a": 1}\n' + whole)
  with pytest.raises(recording.RecordingError, match=r'jsonl:1: .*not a recorded'):
    recording.Recording(str(tmp_path), replays=True)


def test_directories_that_hold_none(tmp_path):
  with pytest.raises(recording.RecordingError, match='nothing to replay'):
    recording.Recording(str(tmp_path / 'none'), replays=True)
  (tmp_path / 'file').touch()
  with pytest.raises(recording.RecordingError, match='local directory'):
    recording.Recording(str(tmp_path / 'file'), replays=False)


def test_a_run_that_asked_nothing_can_be_replayed(tmp_path):
  recording.Recording(str(tmp_path), replays=False).close()
  kept = recording.Recording(str(tmp_path), replays=True)
  assert not len(kept)


def test_processes_write_files_of_their_own(tmp_path):
  made = [
    recording.Recording(str(tmp_path), replays=False, process=i) for i in range(2)
  ]

  async def write(i):
    async def make():
      return records.ToolResult(str(i))

    key = dataclasses.replace(_KEY, rollout=i)
    await made[i].tool_result(key, _CALL, '', make)

  for i in range(2):
    asyncio.run(write(i))
    made[i].close()
  both = recording.Recording(str(tmp_path), replays=True)
  assert len(both) == 2


class _Failing:
  def __init__(self, error):
    self.error = error

  async def generate(self, prompt, sampling, request_key):
    raise self.error


@pytest.mark.parametrize(
  'error', [language_model.PromptTooLong, language_model.Unreachable, client.Refused]
)
def test_a_model_s_errors_are_replayed(tmp_path, error):
  prompt = (records.Segment('user', 'hello', trusted=False),)
  sampling = records.SamplingSpec()

  def ask(model, replays):
    kept = recording.Recording(str(tmp_path), replays=replays)
    try:
      asyncio.run(kept.model(model, 'm').generate(prompt, sampling, _KEY))
    finally:
      kept.close()

  for replays in (False, True):
    with pytest.raises(error, match='because'):
      ask(_Failing(error('because')), replays)


@pytest.mark.parametrize('error', [language_model.Unreachable, client.Refused])
def test_who_goes_on_recording_asks_again_what_was_refused(tmp_path, error):
  def ask(model, replays=False):
    kept = recording.Recording(str(tmp_path), replays=replays)
    try:
      return asyncio.run(
        kept.model(model, 'm').generate(
          (records.Segment('user', 'a'),), records.SamplingSpec(), _KEY
        )
      ).text
    finally:
      kept.close()

  with pytest.raises(error):
    ask(_Failing(error('a wrong key')))
  mended = fakes.FakeLanguageModel({_KEY.module: ['yes']})
  assert ask(mended) == 'yes'
  assert ask(_Failing(error('nobody asks')), replays=True) == 'yes'


def test_what_a_deadline_cut_off_is_cut_off_again(tmp_path):
  async def ask(replays, hangs):
    kept = recording.Recording(str(tmp_path), replays=replays)
    reply = fakes.hang if hangs else 'late'
    model = kept.model(fakes.FakeLanguageModel({_KEY.module: [reply]}), 'm')

    async def make():
      if hangs:
        await asyncio.Event().wait()
      return records.ToolResult('late')

    found = []
    for call in (
      lambda: model.generate(
        (records.Segment('user', 'a'),), records.SamplingSpec(), _KEY
      ),
      lambda: kept.tool_result(_KEY, _CALL, '', make),
    ):
      try:
        found.append((await asyncio.wait_for(call(), 0.2)).text)
      except TimeoutError:
        found.append('timeout')
    kept.close()
    return found

  assert asyncio.run(ask(False, hangs=True)) == ['timeout'] * 2
  assert asyncio.run(ask(True, hangs=False)) == ['timeout'] * 2
  # Who goes on recording asks again.
  assert asyncio.run(ask(False, hangs=False)) == ['late'] * 2
  assert asyncio.run(ask(True, hangs=True)) == ['late'] * 2


def test_a_model_s_answers_are_replayed(tmp_path):
  sampling = records.SamplingSpec(temperature=0.5)
  prompt = (records.Segment('user', 'a', trusted=False),)

  def ask(replays, version='m'):
    kept = recording.Recording(str(tmp_path), replays=replays)
    fake = fakes.FakeLanguageModel({_KEY.module: ['one', 'two']})
    model = kept.model(fake, version)
    try:
      return [
        asyncio.run(
          model.generate(prompt, sampling, dataclasses.replace(_KEY, turn=turn))
        ).text
        for turn in range(2)
      ], len(fake.requests)
    finally:
      kept.close()

  assert ask(False) == (['one', 'two'], 2)
  assert ask(True) == (['one', 'two'], 0)
  with pytest.raises(recording.Miss):
    ask(True, 'another')


def test_thoughts_are_recorded_and_replayed(tmp_path):
  answer = records.Completion(
    'Paris', finish_reason='length', thoughts='hm', thinking=True
  )

  class Model(fakes.FakeLanguageModel):
    async def generate(self, prompt, sampling, request_key):
      return answer

  for replays in (False, True):
    kept = recording.Recording(str(tmp_path), replays=replays)
    model = kept.model(Model({}), 'm')
    try:
      found = asyncio.run(
        model.generate((records.Segment('user', 'a'),), records.SamplingSpec(), _KEY)
      )
    finally:
      kept.close()
    assert found == answer


def test_tools_and_calls_are_part_of_what_a_model_was_asked(tmp_path):
  tool = {'type': 'function', 'function': {'name': 'f'}}

  def ask(replays, tools, *calls):
    kept = recording.Recording(str(tmp_path), replays=replays)
    fake = fakes.FakeLanguageModel({_KEY.module: ['yes']})
    prompt = (records.Segment('assistant', 'a', False, calls),)
    try:
      asyncio.run(
        kept.model(fake, 'm').generate(prompt, records.SamplingSpec(), _KEY, tools)
      )
      return fake.tools
    finally:
      kept.close()

  call = records.ToolCall('f', {'q': 1})
  assert ask(False, (tool,), call) == [[tool]]
  assert ask(True, (tool,), call) == []
  for tools, calls in (((), (call,)), ((tool,), ()), ((tool,), (call, call))):
    with pytest.raises(recording.Miss):
      ask(True, tools, *calls)
