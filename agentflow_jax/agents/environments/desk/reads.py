"""Tools of the desk that read."""

from typing import Literal

from agentflow_jax.agents.environments.desk import displays, facts
from agentflow_jax.agents.environments.sqlite import database
from agentflow_jax.agents.tools import base


class Reads:
  """Tools that read, whose texts a display makes.

  Args:
    display: display of the tier.
  """

  def __init__(self, display: displays.Display):
    self._display = display

  def find_person(self, db: database.Database, name: str, unit: str = '') -> str:
    """Finds the people of a name.

    Shows at most 5 people. Capital letters count.

    Args:
      name: whole name of the person.
      unit: name of the person's unit; empty for all units.
    """
    where, values = 'name = ?', [name]
    if unit:
      where += ' and unit = ?'
      values.append(facts.unit_named(db, unit)['id'])
    found = self._keys(db, 'person', where, values)
    if not found:
      return f'no person is called {name}' + (f' in {unit}' if unit else '')
    if len(found) == 1 and self._display.whole:
      return self._display.person(db, found[0])
    return displays.listed(db, found, displays.person_in_list)

  def get_person(self, db: database.Database, person: str) -> str:
    """Shows the role, the unit and the loans of a person.

    Args:
      person: id of the person, such as P3.
    """
    return self._display.person(db, facts.row(db, 'person', person)['id'])

  def find_item(self, db: database.Database, model: str, site: str = '') -> str:
    """Finds the items of a model.

    Shows at most 5 items. Capital letters count.

    Args:
      model: name of the model.
      site: name of the site where the items belong; empty for all sites.
    """
    where, values = 'model = ?', [facts.model_named(db, model)['id']]
    if site:
      where += ' and site = ?'
      values.append(facts.site_named(db, site)['id'])
    found = self._keys(db, 'item', where, values)
    if not found:
      return f'there is no {model}' + (f' at {site}' if site else '')
    if len(found) == 1 and self._display.whole:
      return self._display.item(db, found[0])
    return displays.listed(db, found, displays.item_in_list)

  def get_item(self, db: database.Database, item: str) -> str:
    """Shows the model, the site, the state, the service and the approvals of an item.

    Args:
      item: id of the item, such as I3.
    """
    return self._display.item(db, facts.row(db, 'item', item)['id'])

  def list_loans(self, db: database.Database, of: str) -> str:
    """Lists the open loans of a person or of an item.

    Shows at most 5 loans.

    Args:
      of: id of the person or of the item.
    """
    column = {'P': 'person', 'I': 'item'}.get(of[:1])
    if column is None:
      raise base.BadArguments(
        f'{of!r} is neither a person nor an item: give an id such as P3 or I3'
      )
    facts.row(db, column, of)
    found = self._keys(db, 'loan', f'{column} = ? and returned is null', [of])
    if not found:
      return f'{of} has no open loan'
    return displays.listed(db, found, self._display.loan)

  def get_request(self, db: database.Database, request: str) -> str:
    """Shows a request for a model.

    Args:
      request: id of the request, such as R3.
    """
    said = facts.row(db, 'request', request)
    return (
      f'{self._display.request(db, request)}, {said["state"]}, for'
      f' {facts.name_of(db, "model", said["model"])} at'
      f' {facts.name_of(db, "site", said["site"])}'
    )

  def list_requests(
    self,
    db: database.Database,
    model: str,
    site: str = '',
    state: Literal['open', 'granted', 'declined', 'hold'] = 'open',
  ) -> str:
    """Lists the requests for a model.

    Shows at most 5 requests.

    Args:
      model: name of the model.
      site: name of the site where the item is wanted; empty for all sites.
      state: state of the requests.
    """
    where = 'model = ? and state = ?'
    values = [facts.model_named(db, model)['id'], state]
    if site:
      where += ' and site = ?'
      values.append(facts.site_named(db, site)['id'])
    found = self._keys(db, 'request', where, values, self._display.requests_by)
    if not found:
      return f'there is no {state} request for {model}'
    return displays.listed(db, found, self._display.request)

  def get_training(
    self,
    db: database.Database,
    person: str,
    category: Literal['laser', 'drone', 'camera', 'meter', 'pump'],
  ) -> str:
    """Shows whether a person is trained in a category.

    Args:
      person: id of the person, such as P3.
      category: category of equipment.
    """
    facts.row(db, 'person', person)
    return self._display.training(db, person, category)

  def get_unit(self, db: database.Database, unit: str) -> str:
    """Shows the head, the steward and the sites of a unit.

    Args:
      unit: name of the unit.
    """
    return displays.unit(db, facts.unit_named(db, unit)['id'])

  def get_repair(self, db: database.Database, repair: str) -> str:
    """Shows a repair: its item, its state and whether it is tested.

    Args:
      repair: id of the repair, such as W3.
    """
    return self._display.repair(db, facts.row(db, 'repair', repair)['id'])

  def _keys(self, db, table, where, values, order=facts.NUMBER.format('id')):
    """Returns the keys of the rows that meet a condition, in order."""
    found = db.rows(f'select id from {table} where {where} order by {order}', *values)
    return [key for (key,) in found]
