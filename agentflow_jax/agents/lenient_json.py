"""Finds the JSON object that a model meant to write."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import json_repair

# The event loop waits. What repairs is quadratic at worst, so it gets less.
_MAX_CHARACTERS = 16_000
_MAX_REPAIRED = 3_000
_MAX_STARTS = 8
_DECODER = json.JSONDecoder()


def find(text: str, names: Collection[str]) -> dict[str, Any] | None:
  """Returns the first object in a text that has a field of one of `names`.

  Text and fences around it, and in it missing or doubled commas and quotes,
  Python's literals, comments and a missing end are fine. What is found is data,
  and nothing is executed.

  Args:
    text: what a model wrote.
    names: of fields, in lower case with underscores.

  Returns:
    The object, its own fields named like `names` are ('Stop Signal' is
    stop_signal); None where there is none.
  """
  for value in _objects(text[:_MAX_CHARACTERS]):
    fields = {
        re.sub(r'[\s-]+', '_', k.strip().lower()): v for k, v in value.items()
    }
    if not fields.keys().isdisjoint(names):
      return fields
  return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
  """What may be meant, most likely first."""
  starts = [m.start() for m in re.finditer(r'\{', text)][:_MAX_STARTS]
  for start in starts:
    try:
      value, _ = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
      continue
    if isinstance(value, dict):
      yield value
  for start in starts[:1]:
    try:
      value = json_repair.loads(text[start : start + _MAX_REPAIRED])
    except (ValueError, RecursionError):
      continue
    for item in value if isinstance(value, list) else [value]:
      if isinstance(item, dict) and all(isinstance(k, str) for k in item):
        yield item
