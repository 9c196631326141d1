"""How tasks of the desk are worded.

In the texts, {person} is a name, with the unit where it is needed; {model} and {site}
tell an item. A wording that is held out is for the test split only.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from agentflow_jax.data import desk_goals


@dataclasses.dataclass(frozen=True)
class Wordings:
  """Wordings of a family.

  Attributes:
    known: wordings of every split.
    held_out: wordings of the test split only.
  """

  known: tuple[str, ...]
  held_out: tuple[str, ...]


def _of(known: str, held_out: str) -> Wordings:
  return Wordings(*(tuple(t.strip().splitlines()) for t in (known, held_out)))


def _pairs(firsts: str, joints: tuple[str, ...], seconds: str) -> tuple[str, ...]:
  """Returns all texts of a first clause, a joint and a second clause."""
  first, second = (tuple(t.strip().splitlines()) for t in (firsts, seconds))
  return tuple(f'{a}{b}{c}.' for a, b, c in itertools.product(first, joints, second))


_LEND = _of(
  """
Lend the {model} at {site} to {person} for {days} days.
Please lend {person} the {model} at {site} for {days} days.
{person} needs the {model} at {site} for {days} days.
Give {person} the {model} at {site} for {days} days.
Make a loan of the {model} at {site} to {person} for {days} days.
{person} would like to borrow the {model} at {site} for {days} days.
For {days} days, lend {person} the {model} at {site}.
Hand the {model} at {site} out to {person} for {days} days.
{person} asks for the {model} at {site}, for {days} days.
Book the {model} at {site} out to {person} for {days} days.
Can {person} have the {model} at {site} for {days} days?
Let {person} take the {model} at {site} for {days} days.
""",
  """
Set {person} up with the {model} at {site} for {days} days.
{person} is here to pick up the {model} at {site} for {days} days.
Could you lend out the {model} at {site}, to {person}, for {days} days?
A loan of {days} days for {person}: the {model} at {site}.
""",
)
_EXTEND = _of(
  """
Extend the loan of the {model} to {person} by {days} days.
{person} needs the {model} for {days} more days.
Let {person} keep the {model} for {days} more days.
Please give {person} {days} more days with the {model}.
{person} wants to keep the {model} {days} days longer.
Add {days} days to the loan of the {model} to {person}.
Make the loan of the {model} to {person} {days} days longer.
Can {person} keep the {model} for {days} more days?
{person} asks to extend the {model} by {days} days.
Move the due date of the {model} that {person} has by {days} days.
{person} has the {model} and needs {days} days more.
By {days} days, extend the {model} that {person} borrowed.
""",
  """
{person} is not done with the {model}: allow {days} days more.
Grant {person} another {days} days on the {model}.
The {model} that {person} holds should be due {days} days later.
Could {person} hold on to the {model} for another {days} days?
""",
)
_RETURN = _of(
  """
{person} brings back the {model}.
Take the {model} back from {person}.
{person} returns the {model}.
Please check in the {model} that {person} has.
{person} is done with the {model}; take it back.
Book the return of the {model} by {person}.
The {model} that {person} borrowed is back.
{person} hands the {model} back.
Return the {model} that {person} has.
{person} dropped the {model} off at the desk.
Accept the {model} back from {person}.
End the loan of the {model} to {person}.
""",
  """
We have the {model} back from {person}.
{person} no longer needs the {model} and left it here.
Sign the {model} of {person} back in.
Receive the {model} that {person} is returning.
""",
)
_BROKEN = _of(
  """
{person} brings back the {model}, and it is broken.
Take the broken {model} back from {person}.
{person} returns the {model} with a fault.
Please check in the {model} that {person} has; it is faulty.
The {model} that {person} borrowed is back, but broken.
{person} hands the {model} back broken.
""",
  """
We have the {model} back from {person}, with a fault.
{person} broke the {model} and left it here.
""",
)
_SWAP = _of(
  """
Swap the {model} that {person} has for the {model2} at {site} for {days} days.
{person} swaps the {model} for the {model2} at {site} for {days} days.
Exchange the {model} of {person} for the {model2} at {site} for {days} days.
For {days} days, swap the {model} of {person} for the {model2} at {site}.
{person} wants the {model2} at {site} instead of the {model}, for {days} days.
Trade the {model} that {person} has for the {model2} at {site} for {days} days.
Let {person} swap the {model} for the {model2} at {site} for {days} days.
Replace the {model} that {person} has by the {model2} at {site} for {days} days.
{person} would rather have the {model2} at {site} than the {model}, for {days} days.
Give {person} the {model2} at {site} in exchange for the {model}, for {days} days.
Please exchange the {model} that {person} has for the {model2} at {site}, {days} days.
Change the {model} of {person} for the {model2} at {site} for {days} days.
""",
  """
Switch {person} from the {model} to the {model2} at {site} for {days} days.
{person} trades in the {model} for the {model2} at {site} for {days} days.
In place of the {model}, {person} gets the {model2} at {site} for {days} days.
""",
)
_REQUEST = _of(
  """
Serve the oldest request for the {model} at {site}.
Grant the oldest request for the {model} at {site}.
Who waits longest for the {model} at {site} gets it now.
Handle the oldest open request for the {model} at {site}.
Lend the {model} at {site} to the person who asked first.
The {model} at {site} goes to the oldest request.
Please fill the oldest request for the {model} at {site}.
Take the oldest request for the {model} at {site} and grant it.
Of the requests for the {model} at {site}, grant the oldest.
Give the {model} at {site} to the longest waiting person.
Work off the oldest request for the {model} at {site}.
The first request for the {model} at {site} is to be granted.
""",
  """
Fulfil the request for the {model} at {site} that has waited longest.
Whoever asked first for the {model} at {site} should have it.
Clear the oldest item in the queue for the {model} at {site}.
""",
)
_TRANSFER = _of(
  """
Move the {model} from {site} to {to}.
Transfer the {model} at {site} to {to}.
Bring the {model} at {site} to {to}.
Please move the {model} at {site} over to {to}.
The {model} at {site} belongs at {to} from now on.
Send the {model} at {site} to {to}.
Take the {model} from {site} over to {to}.
{to} gets the {model} from {site}.
We need the {model} of {site} at {to}.
Relocate the {model} from {site} to {to}.
Can you move the {model} at {site} to {to}?
From {site}, bring the {model} to {to}.
""",
  """
Ship the {model} at {site} off to {to}.
The new place of the {model} at {site} is {to}.
Let {to} have the {model} that is at {site}.
""",
)
_REPAIR = _of(
  """
Close the repair of the {model} at {site} as {result}.
The {model} at {site} is {result}: close its repair.
Release the {model} at {site} from repair as {result}.
Please close the repair of the {model} at {site}; it is {result}.
Book the repair of the {model} at {site} as {result}.
The repair of the {model} at {site} is over, result {result}.
End the repair of the {model} at {site}, it is {result}.
Take the {model} at {site} out of repair as {result}.
The workshop says the {model} at {site} is {result}; release it.
Finish the repair of the {model} at {site} with the result {result}.
Set the {model} at {site} free from repair as {result}.
As {result}, close the repair of the {model} at {site}.
""",
  """
The {model} at {site} came out of the workshop {result}.
Wrap up the repair of the {model} at {site}: {result}.
Mark the repair of the {model} at {site} done, {result}.
""",
)

_BACK = """
Take the {model} back from {person}
{person} returns the {model}
{person} brings back the {model}
Check in the {model} that {person} has
"""
_KEEP = """
Extend the {model} of {person} by {days} days
{person} needs the {model} for {days} more days
Let {person} keep the {model} {days} days longer
"""
_CLOSED = """
Close the repair of the {model} at {site} as {result}
The {model} at {site} is {result}, so close its repair
Release the {model} at {site} from repair as {result}
"""
_JOINTS = ('; then ', '. Then ', '; next, ')
_HELD_OUT_JOINTS = ('; also, ', '. After that, ')


def _joined(firsts: str, seconds: str) -> Wordings:
  return Wordings(
    _pairs(firsts, _JOINTS, seconds), _pairs(firsts, _HELD_OUT_JOINTS, seconds)
  )


_LEND_THEM = """
lend them the {model2} at {site2} for {days2} days
give them the {model2} at {site2} for {days2} days
"""
_LEND_IT = """
lend it to {person2} for {days2} days
give it to {person2} for {days2} days
"""
_MOVE_IT = """
move it to {to2}
bring it to {to2}
"""
_EXTEND_THEIR = """
extend their {model2} by {days2} days
let them keep the {model2} for {days2} more days
"""

# Wordings by composition; a family with one composition has its name.
WORDINGS: Mapping[str, Wordings] = {
  'lend': _LEND,
  'extend': _EXTEND,
  'return': _RETURN,
  'return broken': _BROKEN,
  'swap': _SWAP,
  'request': _REQUEST,
  'transfer': _TRANSFER,
  'repair': _REPAIR,
  'return+lend': _joined(_BACK, _LEND_THEM),
  'extend+lend': _joined(_KEEP, _LEND_THEM),
  'return+extend': _joined(_BACK, _EXTEND_THEIR),
  'repair+lend': _joined(_CLOSED, _LEND_IT),
  'return+transfer': _joined(_BACK, _MOVE_IT),
  'repair+transfer': _joined(_CLOSED, _MOVE_IT),
}
# Compositions that only the test split has.
HELD_OUT = ('extend+lend', 'repair+transfer')


def fill(text: str, saids: Sequence[desk_goals.Said]) -> str:
  """Returns a wording with the names of goals.

  Args:
    text: wording; {model2} and the like stand for the second goal.
    saids: goals. A wording whose first goal has a field but no second one of that
      name reads it in the first goal that has it.
  """
  values = {}
  for said, ending in zip(saids, ('', '2')):
    fields = {
      'person': f'{said.person} of {said.unit}' if said.unit else said.person,
      'model': said.model,
      'site': said.site,
      'to': said.to,
      'days': str(said.days or ''),
      'result': said.result,
    }
    for name, value in fields.items():
      values[name + ending] = value
      if not values[name]:
        values[name] = value
  return text.format(**values)
