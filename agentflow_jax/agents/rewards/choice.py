"""Multiple choice: which of the options in the query does a response name?"""

import dataclasses
import re
import unicodedata

from agentflow_jax import records
from agentflow_jax.agents.rewards import text

_OPTION = re.compile(r'^\s*[*(]*([A-Z])[*]*[.):][*]*\s+(\S.*?)\s*$', re.MULTILINE)
# A letter with a mark that makes it a label: "(C)", "C.", "**C**: content".
_LEADING = re.compile(
  r'[*`"\s]*(?:\(\s*([A-Z])\s*\)|([A-Z])\s*[*`"]*[.):,])[*`"\s]*(.*)', re.DOTALL
)
_BARE = re.compile(r'\(?\s*([A-Za-z])\s*[.):!]?')
# Brackets of other kinds around one letter: "[C]", "{C}", "<C>", LaTeX's too.
_BRACKETED = re.compile(
  r'\\?\[\s*([A-Za-z])\s*\\?\]|\\?\{\s*([A-Za-z])\s*\\?\}'
  r'|<\s*([A-Za-z])\s*>|[【〈]\s*([A-Za-z])\s*[】〉]'
)
_QUOTED = re.compile(r'(?<!\w)[\'"“‘]([A-Za-z])[\'"”’](?!\w)')
# Another letter behind one: "C, D", "C and D", but not "C, a patient".
_ANOTHER = re.compile(
  r'[)*`"]*\s*(?:[,/&]|and\b|or\b|,\s*(?:and|or)\b)\s*\(?([A-Z])'
  r'(?=[)*`"]*\s*(?:[.,;:!?/&]|$|and\b|or\b))'
)
# "the answer is C", "option (c)"; a capital before prose can be an article.
_NAMED = re.compile(
  r'\b(?:(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice)'
  r'(?:\s+(?:is|would\s+be|must\s+be|should\s+be))?'
  r"|[Ii]t(?:[’']s|\s+is|\s+must\s+be|\s+should\s+be|\s+has\s+to\s+be)"
  r'|(?:choose|chose|pick|select|go\s+with))[\s:*`"]*'
  r'(?:\(\s*([A-Za-z])\s*\)|([A-Za-z])'
  r'(?=[*`"]*(?:[.,;:)\n]|\s*$|\s+(?:because|since)\b)))'
)
# "C is the correct answer".
_CALLED_RIGHT = re.compile(
  r'(?<![\w-])\(?([A-Z])[)*`"]*\s+is\s+(?:the\s+)?'
  r'(?:correct|right|best|most\s+likely)\b'
)
# "A, B or C": naming several is naming none.
_SEVERAL = re.compile(r'(?:[\s,/&().:;*]|and|or|\b[A-Z]\b)+')
_DENIALS = frozenset({'not', 'isnt', 'cannot', 'rather than', 'instead of'})


@dataclasses.dataclass(frozen=True)
class Option:
  """One option: its letter, its normalised content and what is written."""

  label: str
  content: str
  written: str


def options(query: str) -> tuple[Option, ...]:
  """Reads the lettered options of a query, each on a line of its own.

  Args:
    query: the task's query with lines such as "B. Oral ulcers".

  Returns:
    The last run of lines labelled A, B, C, ... without a gap; empty if there
    are fewer than two.
  """
  run: list[Option] = []
  best: list[Option] = []
  for match in _OPTION.finditer(query):
    option = Option(match[1], text.normalise(match[2]), match[2])
    if match[1] == 'A':
      run = [option]
    elif run and ord(match[1]) == ord(run[-1].label) + 1:
      run.append(option)
    else:
      run = []
    if len(run) >= 2:
      best = run
  return tuple(best)


def gold_label(task: records.Task) -> str:
  """Returns the right option's letter.

  Args:
    task: its first answer is an option's content or its letter; content wins.

  Raises:
    ValueError: the query has no options, or the answer is none of them.
  """
  found = options(task.query)
  if not found:
    raise ValueError(
      f'task {task.id!r}: its query has no options (lines "A. ...", "B. ...")'
    )
  labels = set()
  for answer in task.answers:
    labels.add(_by_content(found, answer) or _by_bare_letter(found, answer))
  if len(labels) != 1 or None in labels:
    raise ValueError(
      f'task {task.id!r}: answers {task.answers!r} do not name one of its '
      f'options {[f"{o.label}. {o.content}" for o in found]}'
    )
  return labels.pop()


def chosen(found: tuple[Option, ...], answer: str) -> str | None:
  """Says which option a response names, or None unless it is exactly one.

  In this order: the content of an option and nothing else; a letter and
  nothing else; a number n and nothing else (the n-th option); a leading label
  ("C. ..."), which the content behind it must not contradict; phrases such as
  "the answer is C" that all name the same letter; the content of exactly one
  option among other words, where content right behind "not" is not counted.

  Args:
    found: the options of the query.
    answer: the response; `text.extract` says which part of it counts.
  """
  # Full-width letters and digits are those that an option is labelled with.
  said = unicodedata.normalize('NFKC', text.unwrap(text.extract(answer)))
  said = _BRACKETED.sub(lambda m: f'({m[m.lastindex or 0]})', said)
  said = _QUOTED.sub(r'\1', said)
  known = {o.label for o in found}
  alone = (
    _by_content(found, said)
    or _by_bare_letter(found, said)
    or _by_position(found, said)
  )
  if alone:
    return alone
  leading = _LEADING.match(said)
  label = (leading[1] or leading[2]) if leading else None
  if leading and label in known:
    behind = leading[3]
    mentioned = _mentioned(found, behind)
    several = behind.strip() and _SEVERAL.fullmatch(behind)
    return None if several or (mentioned and label not in mentioned) else label
  named = set()
  for match in _NAMED.finditer(said):
    behind = said[match.end() :]
    named |= {(match[1] or match[2]).upper()} & known
    if another := _ANOTHER.match(behind):
      named.add(another[1])
    named |= _opening(found, behind)
  named |= set(_CALLED_RIGHT.findall(said)) & known
  if not named:
    named = _mentioned(found, said)
  return named.pop() if len(named) == 1 else None


def _by_content(found: tuple[Option, ...], said: str) -> str | None:
  normal = text.normalise(said)
  label = _LEADING.match(said)
  if label and label[1] in ('A', None) and label[2] in ('A', None) and label[3]:
    # The label of "A. Oral ulcers" is no article that normalising may drop;
    # that of "A. baumannii" can be written in an option itself.
    same = said.strip().casefold()
    return next((o.label for o in found if o.written.casefold() == same), None)
  return next((o.label for o in found if o.content == normal), None)


def _by_bare_letter(found: tuple[Option, ...], said: str) -> str | None:
  match = _BARE.fullmatch(said.strip().strip('*`"$'))
  label = match[1].upper() if match else None
  return label if label in {o.label for o in found} else None


def _by_position(found: tuple[Option, ...], said: str) -> str | None:
  digits = said.strip().strip('().')
  if not digits.isdecimal() or len(digits) > 2:
    return None
  return found[int(digits) - 1].label if 0 < int(digits) <= len(found) else None


def _opening(found: tuple[Option, ...], behind: str) -> set[str]:
  """The option whose content stands right behind a letter: "C. Cancer"."""
  words = f'{text.normalise(behind)} '
  fitting = [o for o in found if words.startswith(f'{o.content} ')]
  longest = sorted(fitting, key=lambda o: len(o.content))[-1:]
  return {o.label for o in longest}


def _mentioned(found: tuple[Option, ...], said: str) -> set[str]:
  """Options whose content occurs; not where denied or in a longer one's."""
  rest = f' {text.normalise(said)} '
  labels = set()
  for option in sorted(found, key=lambda o: -len(o.content)):
    content = f' {option.content} '
    if content in rest:
      for before in rest.split(content)[:-1]:
        last = before.split()
        if not _DENIALS & {' '.join(last[-1:]), ' '.join(last[-2:])}:
          labels.add(option.label)
      rest = rest.replace(content, ' | ')
  return labels


def choice(task: records.Task, answer: str) -> float:
  """Scores 1 if a response names the right option and no other, else 0.

  Raises:
    ValueError: as `gold_label` does.
  """
  return float(chosen(options(task.query), answer) == gold_label(task))
