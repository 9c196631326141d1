"""Words for people in place of names that programs read."""

# Status of a rollout -> what it says where the name alone would not.
_STATUSES = {
  'refused': 'declined the task',
  'unparseable_plan': 'unreadable plan',
  'truncated_response': 'response cut off',
  'deadline': 'past its deadline',
  'deadline_infrastructure': 'past its deadline (slow host)',
  'aborted_late': 'not needed any more',
}


def status(name: str) -> str:
  """Returns how a rollout ended, in words."""
  return _STATUSES.get(name, name.replace('_', ' '))


def gap(value: float) -> str:
  """Returns a largest difference between log probabilities [nats]."""
  return f'{value:.1e}' if value else '0: equal bits'


def evaluation(name: str) -> str:
  """Returns the name of an evaluation, in words."""
  return name.removeprefix('control_').replace('_', ' ')
