import dataclasses

import pytest
import zstandard
from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import rollout_files


def _turn(prompt_ids, text='Sub-Goal: x', **kwargs):
  completion = records.Completion(
    text=text,
    prompt_ids=prompt_ids,
    response_ids=(5, 6),
    # 0.1 and 1/3 have no short decimal form.
    logprobs=(-0.1, -1 / 3),
    params_version=4,
    queue_seconds=0.25,
  )
  return records.Turn(completion, records.SamplingSpec(stop=('a',)), **kwargs)


def _group():
  task = records.Task('t/1', 'Q \ud800?', ('a', 'b'), 'f1', {'hops': '2'})
  done = records.Trajectory(
    task_id='t/1',
    rollout=0,
    status=records.Status.ANSWERED,
    turns=(
      _turn(
        (1, 2, 3, 9),
        call=records.ToolCall('python', {'code': 'print(1)'}),
        result=records.ToolResult('no', records.ToolErrorKind.ARGUMENTS, 0.5),
        modules=(records.ModuleCall('verifier', 'continue', 0.1, ('p', 'q')),),
        memory='1. ...',
        shortened=2,
      ),
      _turn((1, 2, 3, 4, 5, 9), parse_error='no sub-goal'),
      _turn((7,), text='shorter, nothing shared'),
    ),
    analysis='think',
    answer='a',
    modules=(records.ModuleCall('generator', 'a'),),
    reward=0.5,
    seconds={'total': 1.5},
  )
  lost = records.Trajectory(
    't/1', 1, records.Status.MODEL_UNREACHABLE, (), detail='down'
  )
  return records.Group(task, (done, lost))


def test_thoughts_are_written_where_there_are_any(tmp_path):
  group = _group()
  plain = rollout_files.to_bytes([group])
  text = zstandard.ZstdDecompressor().decompress(plain)
  assert b'"thoughts"' not in text and b'"thinking"' not in text
  first = group.trajectories[0]
  turn = first.turns[0]
  completion = dataclasses.replace(turn.completion, thoughts='hm', thinking=True)
  turns = (dataclasses.replace(turn, completion=completion), *first.turns[1:])
  group = records.Group(group.task, (dataclasses.replace(first, turns=turns),))
  path = epath.Path(tmp_path) / 'x.zst'
  rollout_files.write(path, [group])
  assert rollout_files.read(path) == [group]


def test_what_is_written_reads_back_to_the_same_values(tmp_path):
  path = epath.Path(tmp_path) / 'a' / 'x.zst'
  other = records.Group(records.Task('t/2', 'q', ('1',), 'f1'), ())
  rollout_files.write(path, [_group(), other])
  assert rollout_files.read(path) == [_group(), other]
  assert [p.name for p in path.parent.iterdir()] == ['x.zst']


def test_a_prompt_is_written_as_the_difference_to_the_turn_before(tmp_path):
  path = epath.Path(tmp_path) / 'x.zst'
  rollout_files.write(path, [_group()], {(0, 0): {'advantage': 0.75}})
  text = (
    zstandard.ZstdDecompressor()
    .decompress(path.read_bytes())
    .decode('utf-8', 'surrogatepass')
  )
  # [ids shared with the turn before, the rest]: (1,2,3,9) -> (1,2,3,4,5,9).
  assert '"prompt_ids":[0,1,2,3,9]' in text
  assert '"prompt_ids":[3,4,5,9]' in text
  assert '"prompt_ids":[0,7]' in text
  assert '"advantage":0.75' in text


def _truncated(kept):
  turn = _turn((1, 2))
  return dataclasses.replace(
    turn,
    sampling=records.SamplingSpec(top_p=0.9),
    completion=dataclasses.replace(turn.completion, kept=kept),
  )


def test_sets_are_written_and_read_back_and_files_without_stay_the_same():
  kept = records.KeptSets.of((1, 3), (5, 9, 6, 151_000))
  first, second = _group().trajectories
  group = records.Group(
    _group().task,
    (
      dataclasses.replace(
        first, turns=(_truncated(kept), _turn((1, 2)), _truncated(kept))
      ),
      second,
    ),
  )
  data = rollout_files.to_bytes([group])
  assert rollout_files.from_bytes(data, 'x') == [group]
  text = zstandard.ZstdDecompressor().decompress(data).decode('utf-8', 'surrogatepass')
  line = '"kept":{"counts":[1,3],"ids":[5,9,6,151000]}'
  assert text.count(line) == 2 and text.count('kept') == 2


@pytest.mark.parametrize(
  'change',
  [
    ('"counts":[1,1]', '"counts":[1,2]'),
    ('"counts":[1,1],', ''),
    ('"ids":[5,6]', '"ids":[5,"6"]'),
    ('"ids":[5,6]', '"ids":[5,99999999999]'),
  ],
)
def test_sets_that_do_not_add_up_are_one_clear_error(change):
  kept = records.KeptSets.of((1, 1), (5, 6))
  group = records.Group(
    _group().task,
    (dataclasses.replace(_group().trajectories[0], turns=(_truncated(kept),)),),
  )
  text = zstandard.ZstdDecompressor().decompress(rollout_files.to_bytes([group]))
  broken = text.replace(*(part.encode() for part in change))
  assert broken != text
  with pytest.raises(rollout_files.RecordError, match='what x sent'):
    rollout_files.from_bytes(zstandard.ZstdCompressor().compress(broken), 'what x sent')


@pytest.mark.parametrize('damage', ['cut', 'garbage', 'schema', 'empty'])
def test_a_broken_file_is_one_clear_error(tmp_path, damage):
  path = epath.Path(tmp_path) / 'x.zst'
  rollout_files.write(path, [_group()])
  whole = path.read_bytes()
  compress = zstandard.ZstdCompressor().compress
  path.write_bytes(
    {
      'cut': whole[: len(whole) // 2],
      'garbage': b'not zstd',
      'schema': compress(b'{"schema": 99}\n'),
      'empty': compress(b''),
    }[damage]
  )
  with pytest.raises(rollout_files.RecordError, match='x.zst'):
    rollout_files.read(path)


def test_the_digest_ignores_times_and_nothing_else(tmp_path):
  def digest(group):
    path = epath.Path(tmp_path) / 'x.zst'
    rollout_files.write(path, [group])
    return rollout_files.digest(path)

  def changed(**kwargs):
    first, second = group.trajectories
    return records.Group(group.task, (dataclasses.replace(first, **kwargs), second))

  group = _group()
  slow = dataclasses.replace(
    group.trajectories[0].turns[0].completion, queue_seconds=9.0
  )
  turns = (
    dataclasses.replace(group.trajectories[0].turns[0], completion=slow),
  ) + group.trajectories[0].turns[1:]
  assert digest(group) == digest(changed(seconds={'total': 99.0}))
  assert digest(group) == digest(changed(turns=turns))
  assert digest(group) != digest(changed(reward=0.25))
  assert digest(group) != digest(changed(turns=group.trajectories[0].turns[:2]))


def _group_in_a_world(reward=None):
  world = records.World(
    'toy',
    {'seed': 'a', 'changes': [{'key': [1, 'x'], 'set': None}]},
    'Be kind.',
    ('find', 'move'),
    (records.Check('c', 'ending', {'ended': 'refuse', 'rule': ['late']}),),
    'find, then move',
    False,
  )
  task = records.Task('t/2', 'Move it.', (), 'checks', {}, world)
  call = records.ToolCall('move', {'thing': 'T1'})
  inner = (
    (call, records.ToolResult('moved')),
    (call, records.ToolResult('again', records.ToolErrorKind.ARGUMENTS)),
  )
  done = records.Trajectory(
    't/2',
    0,
    records.Status.REFUSED,
    (
      _turn(
        (1,),
        call=records.ToolCall('code', {'text': 'move()'}),
        result=records.ToolResult('ran', inner=inner),
      ),
    ),
    reward=0.75,
    score=records.Score(
      {'success': records.Term(1.0), 'calls': records.Term(-2.5, 0.1)}
    ),
    verdict=records.Verdict(
      (
        records.CheckResult('c', 'ending', True, 'ended by refuse'),
        records.CheckResult('d', 'state', None, 'no gym', True),
      ),
      ('thing/T1: shelf "S1" -> "S2"',),
      ('thing/T1: shelf "S1" -> "S2"',),
      reward,
    ),
    digest='ab' * 32,
    briefing='The price is 35.',
  )
  return records.Group(task, (done,))


def test_worlds_verdicts_and_scores_read_back(tmp_path):
  path = epath.Path(tmp_path / 'x.jsonl.zst')
  rollout_files.write(path, [_group_in_a_world(), _group()])
  assert rollout_files.read(path) == [_group_in_a_world(), _group()]


@pytest.mark.parametrize('reward', [None, 0.0, -2.5])
def test_the_reward_of_an_environment_reads_back(tmp_path, reward):
  path = epath.Path(tmp_path / 'x.jsonl.zst')
  rollout_files.write(path, [_group_in_a_world(reward)])
  assert rollout_files.read(path) == [_group_in_a_world(reward)]


def test_schema_1_is_read():
  """Its rewards with parts had terms of weight 1, and nothing had a world."""
  group = _group()
  lines = (
    zstandard.ZstdDecompressor()
    .decompress(rollout_files.to_bytes([group]))
    .decode('utf-8', 'surrogatepass')
    .split('\n')
  )
  assert lines[0] == '{"schema":2}' and '"reward":0.5,' in lines[2]
  assert not any(
    name in line for line in lines for name in ('world', 'score', 'inner', 'digest')
  ), 'what few rollouts have is not written where it is not'
  lines[0] = '{"schema":1}'
  lines[2] = lines[2].replace(
    '"reward":0.5,', '"reward":0.5,"reward_parts":{"b":0.25,"a":0.25},'
  )
  text = '\n'.join(lines).encode('utf-8', 'surrogatepass')
  (found,) = rollout_files.from_bytes(zstandard.ZstdCompressor().compress(text), 'x')
  first = found.trajectories[0]
  assert first.score == records.Score(
    {'a': records.Term(0.25), 'b': records.Term(0.25)}
  )
  assert first.score.reward == first.reward
  assert dataclasses.replace(first, score=None) == group.trajectories[0]
