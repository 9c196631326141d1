"""Other names and descriptions of the desk's tools, for evaluations.

No new name shares a word with the old one, so that nothing but the description tells
what a tool is for.
"""

from collections.abc import Mapping

from agentflow_jax.agents import renaming

_New = renaming.NewName

NEW_NAMES: Mapping[str, renaming.NewName] = {
  'find_person': _New(
    'search_staff',
    'Gives the ids of everybody who is called so.',
    {'name': 'called', 'unit': 'department'},
  ),
  'get_person': _New(
    'show_profile',
    'Says what somebody does, where, and what they have borrowed.',
    {'person': 'who'},
  ),
  'find_item': _New(
    'search_stock',
    'Gives the ids of the pieces of equipment of one make.',
    {'model': 'make', 'site': 'place'},
  ),
  'get_item': _New(
    'inspect', 'Says all that is known of one piece of equipment.', {'item': 'piece'}
  ),
  'list_loans': _New(
    'show_borrowed',
    'Lists what a person has borrowed, or who has borrowed a piece.',
    {'of': 'key'},
  ),
  'get_request': _New(
    'read_application',
    'Says who applied for what, and how that stands.',
    {'request': 'application'},
  ),
  'list_requests': _New(
    'queue_for',
    'Says who applied for equipment of one make.',
    {'model': 'make', 'site': 'place', 'state': 'status'},
  ),
  'get_training': _New(
    'check_skill',
    'Says whether somebody may handle a class of equipment.',
    {'person': 'who', 'category': 'field'},
  ),
  'get_unit': _New(
    'show_department',
    'Says who runs a department, and its places.',
    {'unit': 'department'},
  ),
  'get_repair': _New(
    'workshop_status', 'Says what the workshop does with a piece.', {'repair': 'job'}
  ),
  'create_loan': _New(
    'hand_out',
    'Hands a piece that is in stock to a person, from today on.',
    {'person': 'who', 'item': 'piece', 'days': 'length'},
  ),
  'extend_loan': _New(
    'prolong',
    'Lets somebody keep what they have borrowed for longer.',
    {'loan': 'entry', 'days': 'length'},
  ),
  'return_item': _New(
    'take_back', 'Notes that a borrowed piece is here again.', {'item': 'piece'}
  ),
  'transfer_item': _New(
    'relocate',
    'Moves a piece that is in stock to another place.',
    {'item': 'piece', 'site': 'place'},
  ),
  'open_repair': _New(
    'send_to_workshop',
    'Gives a piece to the workshop.',
    {'item': 'piece', 'reason': 'cause'},
  ),
  'close_repair': _New(
    'release_from_workshop',
    'Ends a job of the workshop; the piece can be used.',
    {'repair': 'job', 'result': 'outcome'},
  ),
  'set_request_state': _New(
    'decide',
    'Notes what became of an application.',
    {'request': 'application', 'state': 'status'},
  ),
  'send_notice': _New(
    'write_to',
    'Tells somebody of a piece, an entry or a job.',
    {'person': 'who', 'about': 'regarding', 'text': 'words'},
  ),
  'finish': _New(
    'all_done',
    'Ends the work after everything wanted has happened.',
    {'summary': 'report'},
  ),
  'refuse': _New(
    'turn_down',
    'Ends the work where a rule stands against it.',
    {'rule': 'because_of', 'about': 'regarding'},
  ),
}
