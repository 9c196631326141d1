"""Tells a cancellation that is meant for a task from one that is an error."""

import asyncio


def raise_if_cancelled(error: BaseException) -> None:
  """Raises a cancellation that is meant for the current task.

  One that nothing asked for (such as of a future that a closing client gave up) is an
  error like any other.

  Args:
    error: exception that was caught.
  """
  if isinstance(error, asyncio.CancelledError):
    task = asyncio.current_task()
    if task is not None and task.cancelling():
      raise error
