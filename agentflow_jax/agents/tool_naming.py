"""Reads which one tool a line of a plan names; it never guesses.

Models write the name alone, with words around it ('I would use the search
tool') or with a reason behind it ('search - because python cannot browse'). A
line that names several tools, or says which tool not to use, is an error.
"""

import re
from collections.abc import Collection, Sequence, Set

_WORD = re.compile(r'\w(?:[\w.-]*\w)?')
_DECORATION = ' \t\r\n*_`"\''
_ITEM = re.compile(
  r'\s*(?:[-*•+]|\(?\d{1,2}[.):])?\s*'
  r'(?:\(?(?:or|and|then|also|plus)\b[:\s]*(?:use\b\s*)?)*(.*)',
  re.IGNORECASE,
)
_SHOWN = 60
# Number of characters before a name that are searched for words like "not".
_WINDOW = 40
_NEGATION = re.compile(
  r'\b(?:not|never|no|none|neither|nor|cannot|avoid|skip|without|except|'
  r"instead of|(?:rather|other) than)\b|n['’]t\b",
  re.IGNORECASE,
)
_DENIAL = re.compile(r'\W*(?:(?:not|never)\b|no\W*\Z)', re.IGNORECASE)
# Words behind a name that deny it without a negation.
_UNFIT = re.compile(
  r'\b(?:forbidden|prohibited|unnecessary|useless|unsuitable|unhelpful'
  r'|inappropriate|irrelevant|unavailable|insufficient|wrong|fails?|failed)\b',
  re.IGNORECASE,
)
_BUT = re.compile(r'\bbut\b', re.IGNORECASE)
# Words that open a sentence and name nothing.
_OPENING = re.compile(
  r'\W*(?:first|next|now|ok(?:ay)?|well|so|sure|yes|then|therefore)\b[\W]*',
  re.IGNORECASE,
)
# Something else stands before the name.
_ANOTHER_BEFORE = re.compile(r'\w\W*(?:[/|&+,;(]|\b(?:or|and|then)\b)', re.IGNORECASE)
# Something else follows the name, or is the one word behind a comma.
_ANOTHER_BEHIND = re.compile(
  r'[^\w.!?]*(?:\b(?:or|and|then)\b|[/|&+→]|->)'
  r'|[^\w.!?(,;]*[,;][^\w.!?(]*+[\w.-]+\W*\Z',
  re.IGNORECASE,
)
# The end of the naming, and the beginning of a reason for it.
_REASON = re.compile(
  r'[,;:(]|[.!?](?=\s|$)|\s[-–—]+\s'
  r'|\b(?:because|since|to|for|as|so)\b',
  re.IGNORECASE,
)
# What joins a further name to the first one, even in a reason.
_JOINS = re.compile(
  r'(?:[/|&+→,;:(>]|[-–—]\s|[.!?]\s|\b(?:or|and|then|also|plus|perhaps|maybe'
  r'|possibly|later|next|either|both|as'
  r'|instead|alternatively|otherwise|else|to|for|so|with|via|use|using|try|but'
  r'|by)\b)'
  r'(?:\W|\b(?:the|a|use|using)\b)*\Z',
  re.IGNORECASE,
)
_REJECTS = re.compile(
  r"(?:\b(?:not|never|without|over|(?:rather|other) than|instead of)|n['’]t)\b"
  r'(?:\W|\b(?:the|a|use|using|with)\b)*\Z',
  re.IGNORECASE,
)


def read(text: str, tools: Sequence[str]) -> str:
  """Returns the one tool that a text names, spelled as in `tools`.

  Args:
    text: text of a plan's field; its first line that is not blank counts.
    tools: names of the tools that there are.

  Raises:
    ValueError: no tool is named, several are, or the named one is rejected; the
      message says which of these.
  """
  folded = {name.lower(): name for name in tools}
  lines = [l for l in text.splitlines() if l.strip(_DECORATION)] or ['']
  line = lines[0]
  shown = repr(line.strip()[:_SHOWN])
  found = [
    (folded[word], match.start(), match.end())
    for match in _WORD.finditer(line)
    if (word := match.group().lower()) in folded
  ]
  if not found:
    raise ValueError(f'unknown tool {shown}; the tools are {sorted(tools)}')
  tool, start, end = found[0]
  before, behind = line[:start], line[end:]
  if opening := _OPENING.match(before):
    before = before[opening.end() :]
  # Places of other tools' names in the words behind the first name.
  others = {at - end for name, at, _ in found if name != tool}
  rejected = {at for at in others if _REJECTS.search(_window(behind, at))}
  if _NEGATION.search(before) or _BUT.search(before) or _denies(behind, rejected):
    raise ValueError(f'the plan rejects the tool that it names: {shown}')
  if (
    _ANOTHER_BEFORE.search(before)
    or (_ANOTHER_BEHIND.match(behind) and not rejected)
    or (line.strip(_DECORATION).startswith('[') and ',' in line)
    or _names_more(behind, others - rejected)
    or any(_item(l) in folded.keys() - {tool.lower()} for l in lines[1:])
  ):
    raise ValueError(
      f'the plan names several tools, or more than a tool: {shown}; a plan'
      f' names exactly one of {sorted(tools)}'
    )
  return tool


def _window(text: str, at: int) -> str:
  """Returns the last `_WINDOW` characters before a place."""
  return text[max(0, at - _WINDOW) : at]


def _names_more(behind: str, others: Collection[int]) -> bool:
  """Returns whether a further name is a choice, not part of a reason."""
  reason = _REASON.search(behind)
  return any(
    reason is None or at <= reason.start() or bool(_JOINS.search(_window(behind, at)))
    for at in others
  )


def _denies(behind: str, rejected: Set[int]) -> bool:
  """Returns whether the words behind a name say that it is not wanted.

  Words that reject another tool do not count. Of a reason only its first word
  counts: it may explain why no other tool fits.
  """
  reason = _REASON.search(behind)
  named = behind[: reason.start()] if reason else behind
  denials = [*_NEGATION.finditer(named), *_UNFIT.finditer(named)]
  if reason and (first := _DENIAL.match(behind, reason.end())):
    denials.append(first)
  return any(rejected.isdisjoint(range(d.end(), d.end() + _WINDOW)) for d in denials)


def _item(line: str) -> str:
  """Returns a line's text without the marks of a list, in lower case."""
  item = _ITEM.fullmatch(line)
  return (item[1] if item else line).strip(_DECORATION + ',.[]()').lower()
