"""Finds the JSON object that a model meant to write."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import json_repair

# A longer text would block the event loop for too long. The repair of broken
# JSON takes quadratic time at worst, so its limit is lower.
MAX_CHARACTERS = 20_000
_MAX_REPAIRED = 2_000
_MAX_STARTS = 8
_WHOLE = re.compile(r'(?:```\w*\s*)?\{\s*["\'].*\}\s*(?:```)?', re.DOTALL)
_DECODER = json.JSONDecoder()


def find(
  text: str, names: Collection[str], last: bool = False
) -> dict[str, Any] | None:
  """Returns the first object in a text that has a field of one of `names`.

  Text and fences around it, and in it missing or doubled commas and quotes,
  Python's literals, comments and a missing end are fine. What is found is data,
  and nothing is executed.

  Args:
    text: text that a model wrote.
    names: names of fields, in lower case with underscores.
    last: whether the last such object is returned instead.

  Returns:
    The object, its own fields named like `names` are ('Stop Signal' is
    stop_signal); None where there is none.

  Raises:
    ValueError: the text has more than `MAX_CHARACTERS` characters. It is not
      cut: a part of it could hold another object than the intended one.
  """
  if len(text) > MAX_CHARACTERS:
    raise ValueError(f'a text of {len(text):,} characters; {MAX_CHARACTERS:,} at most')
  found = None
  for value in _objects(text):
    if found is not None and not last:
      break
    found = _with_names(value, names) or found
  return found


def is_whole(text: str) -> bool:
  """Returns whether a text is one object, fenced or not, and nothing besides."""
  return bool(_WHOLE.fullmatch(text.strip()))


def name_of(field: str) -> str:
  """Returns a field's name as `find` spells it."""
  return re.sub(r'[\s-]+', '_', field.strip().lower())


def _with_names(value, names, depth=0) -> dict[str, Any] | None:
  """Returns the object if it has one of the names, or one inside it that has."""
  fields = {name_of(k): v for k, v in value.items()}
  if not fields.keys().isdisjoint(names):
    return fields
  if depth < 3:
    for inner in fields.values():
      if isinstance(inner, dict):
        if found := _with_names(inner, names, depth + 1):
          return found
  return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
  """Yields the objects side by side in a text; what is broken comes last."""
  start, broken = text.find('{'), None
  for _ in range(_MAX_STARTS):
    if start < 0:
      break
    try:
      value, end = _DECODER.raw_decode(text, start)
      yield value
    except (ValueError, RecursionError):
      broken = start if broken is None else broken
      end = start + 1
    start = text.find('{', end)
  # Half of it would be another object than the one that was meant.
  if broken is None or len(text) - broken > _MAX_REPAIRED:
    return
  try:
    value = json_repair.loads(text[broken:])
  except (ValueError, RecursionError):
    return
  for item in value if isinstance(value, list) else [value]:
    if isinstance(item, dict) and all(isinstance(k, str) for k in item):
      yield item
