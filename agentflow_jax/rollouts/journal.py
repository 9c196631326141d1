"""Stores the finished groups of an unfinished step, for a run that is killed."""

import dataclasses

from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import rollout_files


@dataclasses.dataclass(frozen=True)
class Journal:
  """Finished groups of unfinished steps, one object a process's part of a group.

  A run that is killed finds them again. A name says the step, the group's place
  in it, and the rollouts; a group of another task, or sampled from other
  parameters than those of the step, is not used.

  Attributes:
    directory: directory of the journal, below the workdir.
    keeps_unscored: whether groups are stored of which some rollouts have no reward (a
      host was unreachable). Otherwise, and where none has one, they are sampled
      again.
  """

  directory: epath.Path
  keeps_unscored: bool = True

  def load(
    self, step: int, place: int, task: records.Task, rollouts: range
  ) -> records.Group | None:
    """Returns a finished group or None; a broken file is dropped."""
    path = self._path(step, place, rollouts)
    if not path.exists():
      return None
    try:
      (group,) = rollout_files.read(path)
    except (rollout_files.RecordError, ValueError) as e:
      logging.warning('dropping a broken journal object: %s', e)
      return None
    versions = {
      turn.completion.params_version
      for trajectory in group.trajectories
      for turn in trajectory.turns
    }
    found = [t.rollout for t in group.trajectories]
    is_it = group.task == task and found == list(rollouts)
    return group if is_it and versions <= {step} else None

  def save(self, step: int, place: int, rollouts: range, group: records.Group) -> None:
    scored = [t.reward is not None for t in group.trajectories]
    if all(scored) or (self.keeps_unscored and any(scored)):
      rollout_files.write(self._path(step, place, rollouts), [group])

  def forget_before(self, step: int) -> None:
    """Removes the groups of steps that a commit now holds."""
    if not self.directory.exists():
      return
    for path in self.directory.iterdir():
      name = path.name.partition('-')[0]
      if not name.isdigit() or int(name) < step:
        path.unlink()

  def _path(self, step, place, rollouts):
    name = f'{step:08d}-{place:06d}-{rollouts.start}-{rollouts.stop}.jsonl.zst'
    return self.directory / name
