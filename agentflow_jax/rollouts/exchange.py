"""Rollouts in the rows of other trainers, and back: token ids and log probabilities.

  verl      fields of verl's AgentLoopOutput: a row a turn, whose prompt is all that
            the turn was sampled from
  openenv   document of OpenEnv's capture of harnesses: one a rollout, with a training
            sequence a turn

A turn is a row of its own in both, because a history may have been rewritten. What
these formats have no field for (task, status, sampling, versions) stands in
`extra_fields` and `metadata`, so that nothing is lost on the way back.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from agentflow_jax import records
from agentflow_jax.files import reading
from agentflow_jax.rollouts import rollout_files

Format = Literal['verl', 'openenv']


def rows(
  form: Format, step: int, task: records.Task, trajectory: records.Trajectory
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a rollout, JSON objects.

  Args:
    form: format of the rows.
    step: training step, from 1.
    task: task of the rollout.
    trajectory: rollout; of one without turns, 'verl' has no row.
  """
  if form == 'openenv':
    yield _document(step, task, trajectory)
    return
  shared = _shared(step, task, trajectory)
  for i, turn in enumerate(trajectory.turns):
    done = turn.completion
    yield {
      'prompt_ids': list(done.prompt_ids),
      'response_ids': list(done.response_ids),
      'response_mask': [1] * len(done.response_ids),
      'response_logprobs': list(done.logprobs),
      'reward_score': trajectory.reward,
      'num_turns': len(trajectory.turns),
      'metrics': {'generate_sequences': done.model_seconds},
      'extra_fields': shared | {'turn': i} | _of_turn(turn),
    }


def _document(step, task, trajectory) -> dict[str, Any]:
  turns, sequences = [], []
  every = (*trajectory.turns, *trajectory.undelivered)
  for i, turn in enumerate(every):
    done, is_lost = turn.completion, i >= len(trajectory.turns)
    prompt, sampled = len(done.prompt_ids), len(done.response_ids)
    turns.append(
      {
        'node_id': str(i),
        'index': i,
        'root_id': str(i),
        'n_prompt': prompt,
        'n_sampled': sampled,
        'finish_reason': done.finish_reason,
        'discarded': is_lost,
        'sampling_params': _of_turn(turn),
      }
    )
    sequences.append(
      {
        'role': 'discarded' if is_lost else 'agent',
        'root_id': str(i),
        'node_ids': [str(i)],
        'n_turns': 1,
        'prompt_len': prompt,
        'n_trainable': sampled,
        'turn_lengths': [sampled],
        'input_ids': [*done.prompt_ids, *done.response_ids],
        'loss_mask': [0] * prompt + [1] * sampled,
        'logprobs': [0.0] * prompt + list(done.logprobs),
        'trainable': not is_lost and trajectory.reward is not None and sampled > 0,
        'validation': [],
      }
    )
  return {
    'session_id': f'{step}/{task.id}/{trajectory.rollout}',
    'metadata': _shared(step, task, trajectory) | {'reward': trajectory.reward},
    'turns': turns,
    'stats': {
      'n_turns': len(every),
      'n_sequences': len(sequences),
      'n_discarded': len(trajectory.undelivered),
      'n_trainable_sequences': sum(s['trainable'] for s in sequences),
      'n_trainable_tokens': sum(s['n_trainable'] for s in sequences if s['trainable']),
    },
    'sequences': sequences,
    'validation': [],
    'trainable': any(s['trainable'] for s in sequences),
    'capture_level': 'tokens',
    'rollout_type': 'train',
  }


def _shared(step, task, trajectory) -> dict[str, Any]:
  """Returns what both formats say of a rollout in a place for anything."""
  return {
    'step': step,
    'uid': f'{step}/{task.id}',
    'task': {
      'id': task.id,
      'query': task.query,
      'answers': list(task.answers),
      'reward': task.reward,
    },
    'rollout': trajectory.rollout,
    'status': trajectory.status.value,
    'answer': trajectory.answer,
  }


def _of_turn(turn: records.Turn) -> dict[str, Any]:
  done, sampling = turn.completion, dataclasses.asdict(turn.sampling)
  more = {} if done.kept is None else {'kept': done.kept.numbers()}
  return more | {
    'sampling': sampling | {'stop': list(turn.sampling.stop)},
    'finish_reason': done.finish_reason,
    'text': done.text,
    'params_version': done.params_version,
  }


def read(path: epath.Path, form: Format) -> dict[int, list[records.Group]]:
  """Reads rows of either format, also those that other programs wrote.

  Rows with the same uid (else: the rows of one file) are a group, and of these, rows
  with the same number of a rollout are its turns. Without such fields a row is a
  rollout of one turn.

  Args:
    path: JSON lines.
    form: format of the rows.

  Returns:
    The groups of each step, from 1.

  Raises:
    RecordError: the file cannot be read, or a row lacks token ids or log
      probabilities; names the line.
  """
  found: dict[int, dict[str, dict[int, list[tuple[Mapping, records.Turn, bool]]]]] = {}
  about: dict[tuple[int, str, int], Mapping[str, Any]] = {}
  try:
    for number, line in enumerate(reading.json_lines(path)):
      try:
        said, turns = (_of_verl if form == 'verl' else _of_openenv)(line.value)
        step, uid = int(said.get('step', 1)), str(said.get('uid', 'imported'))
        rollout = int(said.get('rollout', number))
        about.setdefault((step, uid, rollout), said)
        records.Status(said.get('status', records.Status.ANSWERED.value))
        found.setdefault(step, {}).setdefault(uid, {}).setdefault(rollout, [])
        found[step][uid][rollout] += turns
      except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise rollout_files.RecordError(
          f'{line.where}: not a row of {form} with token ids and log probabilities:'
          f' {type(e).__name__}: {e}'
        ) from e
  except reading.FileError as e:
    raise rollout_files.RecordError(str(e)) from e
  return {
    step: [
      _group(uid, [(about[step, uid, i], turns) for i, turns in rollouts.items()])
      for uid, rollouts in groups.items()
    ]
    for step, groups in sorted(found.items())
  }


def _group(uid: str, rollouts) -> records.Group:
  (said, _), *_ = rollouts
  task = said.get('task', {})
  return records.Group(
    records.Task(
      str(task.get('id', uid)),
      str(task.get('query', '')),
      tuple(map(str, task.get('answers', ()))),
      str(task.get('reward', 'match_or_number')),
    ),
    tuple(_trajectory(uid, said, turns) for said, turns in rollouts),
  )


def _trajectory(uid, said, turns) -> records.Trajectory:
  reward = said['reward']
  default = (
    records.Status.ANSWERED if reward is not None else (records.Status.MODULE_FAILED)
  )
  ordered = sorted(turns, key=lambda one: one[0].get('turn', 0))
  return records.Trajectory(
    task_id=str(said.get('task', {}).get('id', uid)),
    rollout=int(said.get('rollout', 0)),
    status=records.Status(said.get('status', default.value)),
    turns=tuple(turn for _, turn, is_lost in ordered if not is_lost),
    answer=str(said.get('answer', '')),
    reward=reward,
    undelivered=tuple(turn for _, turn, is_lost in ordered if is_lost),
  )


def _of_verl(row: Mapping[str, Any]):
  said = {**(row.get('extra_fields') or {}), 'reward': _reward(row['reward_score'])}
  if not all(row['response_mask']):
    raise ValueError(
      'response_mask has a 0: a row with several turns names no prompt of each'
    )
  ids, sampled = row['prompt_ids'], row['response_ids']
  turn = _turn(ids, sampled, row['response_logprobs'], said)
  return said, [(said, turn, False)]


def _of_openenv(document: Mapping[str, Any]):
  said = dict(document['metadata'])
  said['reward'] = _reward(said.get('reward'))
  nodes = {node['node_id']: node for node in document['turns']}
  turns = []
  for i, sequence in enumerate(document['sequences']):
    ids, mask, logprobs = (
      sequence[name] for name in ('input_ids', 'loss_mask', 'logprobs')
    )
    if not len(ids) == len(mask) == len(logprobs):
      raise ValueError('input_ids, loss_mask and logprobs differ in length')
    node = nodes.get(sequence['node_ids'][-1], {})
    # A path of several turns is one turn for each stretch of sampled tokens.
    for begin, end in _stretches(mask):
      more = node.get('sampling_params') or {}
      turn = _turn(ids[:begin], ids[begin:end], logprobs[begin:end], more)
      turns.append(({'turn': i}, turn, sequence['role'] != 'agent'))
  return said, turns


def _stretches(mask: Sequence[int]) -> Iterator[tuple[int, int]]:
  """Yields the bounds of each stretch of ones; of a mask without any, an empty one."""
  begin = None
  for i, one in enumerate([*mask, 0]):
    if one and begin is None:
      begin = i
    elif not one and begin is not None:
      yield begin, i
      begin = None
  if not any(mask):
    yield len(mask), len(mask)


def _turn(prompt, sampled, logprobs, more: Mapping[str, Any]) -> records.Turn:
  if len(sampled) != len(logprobs):
    raise ValueError(f'{len(sampled)} ids and {len(logprobs)} log probabilities')
  if not all(type(i) is int and i >= 0 for i in (*prompt, *sampled)):
    raise ValueError('token ids must be whole numbers, not negative')
  if not all(math.isfinite(x) for x in logprobs):
    raise ValueError('a log probability is not finite')
  sampling: dict[str, Any] = dict(more.get('sampling') or {})
  if 'stop' in sampling:
    sampling = sampling | {'stop': tuple(sampling['stop'])}
  kept = more.get('kept')
  return records.Turn(
    records.Completion(
      text=str(more.get('text', '')),
      prompt_ids=tuple(prompt),
      response_ids=tuple(sampled),
      logprobs=tuple(map(float, logprobs)),
      finish_reason=str(more.get('finish_reason', 'stop')),
      params_version=int(more.get('params_version', 0)),
      kept=None if kept is None else records.KeptSets.of(*kept),
    ),
    records.SamplingSpec(**sampling),
  )


def _reward(value: Any) -> float | None:
  if value is None:
    return None
  if isinstance(value, bool) or not math.isfinite(value):
    raise ValueError(f'the reward is {json.dumps(value)}')
  return float(value)


def import_rows(
  path: epath.Path, form: Format, workdir: epath.Path
) -> list[epath.Path]:
  """Writes the rows that `read` reads as the rollouts of a run.

  Args:
    path: JSON lines.
    form: format of the rows.
    workdir: work directory without rollouts.

  Returns:
    The files.

  Raises:
    RecordError: there are rollouts already, or as `read`.
  """
  directory = workdir / 'rollouts'
  if directory.exists() and any(directory.iterdir()):
    raise rollout_files.RecordError(
      f'{directory} holds rollouts already: give another --workdir'
    )
  paths = []
  for step, groups in read(path, form).items():
    paths.append(directory / f'step_{step:06d}.p0.jsonl.zst')
    rollout_files.write(paths[-1], groups)
  return paths
