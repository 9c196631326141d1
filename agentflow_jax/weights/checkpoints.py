"""Train state on disk: one Orbax commit holds all that a resume needs."""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from agentflow_jax.core import masters
from agentflow_jax.files import paths
from agentflow_jax.weights import model_directory


class Checkpoints:
  """Commits of a run, each whole or absent.

  A commit is one Orbax composite: 'state' (parameters, optimizer state with the
  float32 master of bfloat16 parameters, step) and 'run' (JSON: steps done,
  digests of the inputs, metrics so far).
  Randomness needs no state: keys are folded from the seed and the step.
  """

  def __init__(self, directory: epath.Path, keep: int):
    """Opens or creates a run's commits.

    Args:
      directory: directory of the commits, below the workdir.
      keep: number of commits that are kept.
    """
    # Orbax wants it absolute; a gs:// path is.
    if paths.is_local(directory):
      directory = directory.absolute()
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
      ),
    )

  @property
  def latest(self) -> int | None:
    """The newest committed step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
    """Commits after `step` steps are done; blocks until it is whole.

    Args:
      step: steps done.
      state: a pytree of arrays.
      run: JSON values.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        run=ocp.args.JsonSave(json.loads(json.dumps(run))),
      ),
      force=True,
    )
    self._manager.wait_until_finished()

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Reads a commit.

    Args:
      step: step of the commit.
      like: a state of the run; its shapes, dtypes and shardings are restored.

    Returns:
      The state and the run's JSON.

    Raises:
      CheckpointError: broken, or of another model or optimizer.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore()
        ),
      )
    except (ValueError, KeyError, TypeError, OSError) as e:
      raise model_directory.CheckpointError(
        f'the commit of step {step} below {self._directory} is broken or of'
        f' another model: {e}; delete {self._directory / str(step)} to go on'
        f' from the one before{_hint(like)}'
      ) from e
    for path, (new, old) in _pairs(restored['state'], like):
      if new.shape != old.shape:
        raise model_directory.CheckpointError(
          f'the commit of step {step}: {path} has shape {new.shape}, the'
          f' config wants {old.shape}'
        )
    return restored['state'], dict(restored['run'])

  def close(self) -> None:
    self._manager.close()


def _hint(like: Any) -> str:
  """Returns what else may be wrong with a commit that is not like `like`."""
  if not isinstance(getattr(like, 'opt_state', None), masters.MasterState):
    return ''
  return (
    '. If an older version wrote it: that kept no float32 master of bfloat16'
    ' parameters, so that most of its updates were rounded away, and its runs'
    ' cannot go on; start again in another --workdir'
  )


def _pairs(a, b):
  return [
    (jax.tree_util.keystr(path), (x, y))
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    )
  ]
