"""Reads tool calls that a model wrote as Python, without executing them.

The form is `execution = tool.execute(query="...", k=3)`. The text is parsed to
a syntax tree and only literals are taken from it, so nothing that a model can
write is ever run or looked up. Models that were trained to call tools in JSON
often do so whatever they are told; that is read, too.
"""

import ast
import collections
import io
import itertools
import json
import keyword
import math
import re
import textwrap
import tokenize
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agentflow_jax.agents import lenient_json, thoughts
from agentflow_jax.agents.tools import base

# The event loop waits for this parser: a longer text is no command, and only so
# many of its pieces are tried, each at the cost of a pass over what follows.
_MAX_CHARS = 16_000
_MAX_PIECES = 8
MAX_DEPTH = 100  # of brackets; CPython's own limit is 200
_FENCE = re.compile(r'```[^\n`]*\n(.*?)(?:```|\Z)', re.DOTALL)
_INLINE = re.compile(r'`([^`\n]+)`')
_START = re.compile(r'\b[A-Za-z_]\w*\s*\.\s*execute\s*\(')


def parse_command(
  text: str, card: base.Card | None = None, thinking: bool = False
) -> tuple[str | None, dict[str, Any]]:
  """Finds the first `X.execute(...)` in a command and reads its arguments.

  Where there is none, {"name": "X", "arguments": {...}} is read (or the
  arguments alone, by the card's names, or a "command" of the first form).

  Fences, back-ticks, text around the call, several lines, several statements
  and comments are fine. An argument is a literal, or a name that an earlier
  statement gives a literal; true, false and null are read as JSON has them.
  Arguments whose names are no Python names stand in **{"the name": ...}.
  Thoughts are not read (agents.thoughts).

  Args:
    text: text that the model wrote.
    card: card whose order of arguments names positional ones; without it they are
      errors.
    thinking: whether the prompt ended inside an open thought.

  Returns:
    X, or None where it is the word `tool`, which names no tool; and the
    arguments by name, JSON-like.

  Raises:
    base.BadArguments: there is no such call, or it cannot be read; says why.
  """
  text = thoughts.said(text, thinking)
  if len(text) > _MAX_CHARS:
    raise base.BadArguments(
      f'the command has {len(text)} characters; {_MAX_CHARS} at most'
    )
  problem = 'no call of the form tool.execute(...) in the command'
  for source in _sources(text):
    try:
      tree = _parse(source)
    except SyntaxError as error:
      if _START.search(source):
        problem = (
          f'the call cannot be read: {error.msg} (line {error.lineno}){_hint(card)}'
        )
      continue
    call = _first_call(tree)
    if call is not None:
      return _read(call, _assigned(tree), card)
  found = None
  # A call that is there and cannot be read is not what else the text quotes.
  if lenient_json.is_whole(text) or not _START.search(text):
    found = _from_json(text, card)
  if found is None:
    raise base.BadArguments(problem + _unread(text))
  return found


def example(names: Iterable[str]) -> str:
  """Returns a call with these arguments, in a form that `parse_command` reads."""
  names = list(names)
  shown = [f'{name}=...' for name in names if _is_plain(name)]
  others = [
    f'{json.dumps(name, ensure_ascii=False)}: ...'
    for name in names
    if not _is_plain(name)
  ]
  if others:
    shown.append(f'**{{{", ".join(others)}}}')
  return f'execution = tool.execute({", ".join(shown)})'


def _is_plain(name: str) -> bool:
  """Says whether an argument can be written as name=value."""
  return (
    name.isidentifier()
    and not keyword.iskeyword(name)
    # Python normalises the names of a program to NFKC.
    and unicodedata.normalize('NFKC', name) == name
  )


def _hint(card: base.Card | None) -> str:
  """Says how to write the card's arguments whose names are no Python names."""
  names = [a.name for a in card.arguments] if card else []
  if all(map(_is_plain, names)):
    return ''
  return f'; write it as {example(names)}'


def _unread(text: str) -> str:
  """Says what else is wrong with a text: broken JSON, or too many calls."""
  if lenient_json.is_whole(text):
    try:
      json.loads(_FENCE.sub(r'\1', text))
    except (ValueError, RecursionError) as error:
      return f'; as JSON it cannot be read either: {error}'
  pieces = max(
    len(_FENCE.findall(text)), len(_INLINE.findall(text)), len(_START.findall(text))
  )
  if pieces > _MAX_PIECES:
    return (
      f'; of the {pieces} pieces that might be one, the first {_MAX_PIECES}'
      ' were tried: write the call alone'
    )
  return ''


def _from_json(
  text: str, card: base.Card | None
) -> tuple[str | None, dict[str, Any]] | None:
  """Reads a call that is JSON; None where there is none."""
  own = {lenient_json.name_of(a.name): a.name for a in card.arguments} if (card) else {}
  found = lenient_json.find(text, {*own, 'arguments', 'parameters', 'command'})
  if found is None:
    return None
  if found.keys() <= own.keys():
    return None, json_arguments({own[k]: v for k, v in found.items()})
  command = found.get('command')
  if isinstance(command, str) and _START.search(command):
    return parse_command(command, card)
  arguments = found.get('arguments', found.get('parameters'))
  if isinstance(arguments, str):  # As OpenAI's interface writes them.
    try:
      arguments = json.loads(arguments)
    except (ValueError, RecursionError):
      pass
  if not isinstance(arguments, dict):
    return None
  tool = next(
    (v for k in ('name', 'tool', 'tool_name') if isinstance(v := found.get(k), str)),
    None,
  )
  return (None if tool == 'tool' else tool), json_arguments(arguments)


def json_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arguments that were read as JSON, if they are values that we record.

  Raises:
    base.BadArguments: a value is no JSON, such as NaN or half of a character, or is
      nested in more than `MAX_DEPTH` others.
  """
  try:
    _check_depth(arguments)
    return _json_like(dict(arguments))
  except (ValueError, RecursionError) as error:
    raise base.BadArguments(f'the arguments must be plain values: {error}') from error


def _check_depth(value: Any) -> None:
  """Raises ValueError where a value of JSON is nested too deep."""
  level = [value]
  for _ in range(MAX_DEPTH):
    level = [
      part
      for one in level
      if isinstance(one, (dict, list))
      for part in (one.values() if isinstance(one, dict) else one)
    ]
    if not level:
      return
  raise ValueError(f'more than {MAX_DEPTH} values inside each other')


def _sources(text: str) -> Iterator[str]:
  """What may be a program, most likely first."""
  fenced = _FENCE.findall(text)[:_MAX_PIECES]
  yield from fenced
  yield text
  yield from _INLINE.findall(text)[:_MAX_PIECES]
  starts = (
    piece[start.start() :]
    for piece in (*fenced, text)
    for start in _START.finditer(piece)
  )
  for rest in itertools.islice(starts, _MAX_PIECES):
    yield _balanced(rest)


def _balanced(text: str) -> str:
  """The shortest beginning of `text` whose brackets close; all if none does."""
  depth = 0
  try:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      if token.type == tokenize.OP and token.string in '([{':
        depth += 1
        if depth > MAX_DEPTH:
          return text
      elif token.type == tokenize.OP and token.string in ')]}':
        depth -= 1
        if depth <= 0:
          # The tokenizer's lines end in "\n" alone, and not in U+2028.
          lines = io.StringIO(text).readlines()[: token.end[0]]
          lines[-1] = lines[-1][: token.end[1]]
          return ''.join(lines)
  except (tokenize.TokenError, SyntaxError):
    pass  # an open bracket or string: the parser will say which
  return text


def _parse(source: str) -> ast.Module:
  """Parses; every way in which CPython's parser gives up is a SyntaxError."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # such as of a model's '\d'
      return ast.parse(_dedented(source).strip())
  except SyntaxError:
    raise
  except (ValueError, RecursionError, MemoryError, OverflowError) as error:
    reason = str(error) or type(error).__name__
    raise SyntaxError(reason, ('<command>', 1, 1, '')) from error


def _dedented(source: str) -> str:
  """Removes a common indent; a program without one keeps its blank lines."""
  first = source.lstrip('\r\n')
  return textwrap.dedent(source) if first[:1] in (' ', '\t') else source


def _first_call(tree: ast.Module) -> ast.Call | None:
  calls = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'execute'
    and isinstance(node.func.value, ast.Name)
  ]
  return min(calls, key=lambda c: (c.lineno, c.col_offset), default=None)


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
  """Names that a statement of the module's own level binds, and to what."""
  values = {}
  for statement in tree.body:
    if isinstance(statement, ast.Assign):
      for target in statement.targets:
        if isinstance(target, ast.Name):
          values.setdefault(target.id, statement.value)
  return values


def _read(
  call: ast.Call, assigned: Mapping[str, ast.expr], card: base.Card | None
) -> tuple[str | None, dict[str, Any]]:
  names = [a.name for a in card.arguments] if card else []
  if len(call.args) > len(names):
    raise base.BadArguments(
      'name every argument, as in tool.execute(query="...")'
      if card is None
      else f'{card.name} takes at most {len(names)} arguments: {names}'
    )
  # Python normalises the names of a program to NFKC.
  spelled = {unicodedata.normalize('NFKC', name): name for name in names}
  arguments = {}
  pairs = list(zip(names, call.args))
  for word in call.keywords:
    if word.arg is None:
      pairs += _pairs(word.value, assigned)
    else:
      pairs.append((spelled.get(word.arg, word.arg), word.value))
  for name, node in pairs:
    if name in arguments:
      raise base.BadArguments(f'the argument {name!r} is given twice')
    arguments[name] = _literal(name, node, assigned)
  tool = getattr(getattr(call.func, 'value', None), 'id', None)
  return (None if tool == 'tool' else tool), arguments


def _pairs(
  node: ast.expr, assigned: Mapping[str, ast.expr]
) -> list[tuple[str, ast.expr]]:
  """Returns the names and values of a dictionary that follows **."""
  if isinstance(node, ast.Name):
    node = assigned.get(node.id, node)
  keys = [
    key.value
    for key in getattr(node, 'keys', ())
    if isinstance(key, ast.Constant) and isinstance(key.value, str)
  ]
  if not isinstance(node, ast.Dict) or len(keys) < len(node.keys):
    raise base.BadArguments(
      'what follows ** must be a dictionary with strings as its keys, such as'
      ' tool.execute(**{"from": "x"})'
    )
  return list(zip(keys, node.values, strict=True))


# Cards show defaults and choices as JSON, and models copy them.
_JSON_NAMES = {'true': True, 'false': False, 'null': None}


class _JsonNames(ast.NodeTransformer):
  """Reads JSON's names as values, and refuses a key that stands twice."""

  def visit_Name(self, node: ast.Name) -> ast.expr:
    if node.id not in _JSON_NAMES:
      return node
    return ast.copy_location(ast.Constant(_JSON_NAMES[node.id]), node)

  def visit_Dict(self, node: ast.Dict) -> ast.AST:
    keys = collections.Counter(
      key.value for key in node.keys if isinstance(key, ast.Constant)
    )
    for key, times in keys.items():
      if times > 1:
        raise base.BadArguments(f'the key {key!r} is given twice')
    return self.generic_visit(node)


def _literal(name: str, node: ast.expr, assigned: Mapping[str, ast.expr]) -> Any:
  if isinstance(node, ast.Name):
    node = assigned.get(node.id, node)
  try:
    _json_like(name)
    return _json_like(ast.literal_eval(_JsonNames().visit(node)))
  except (ValueError, TypeError, RecursionError, MemoryError) as error:
    raise base.BadArguments(
      f'{name.encode("ascii", "replace").decode()} must be a plain value such'
      ' as "text", 3 or [1, 2]; no expression is evaluated'
    ) from error


def _json_like(value: Any) -> Any:
  """Returns `value`, tuples as lists; raises ValueError if it is not JSON."""
  if isinstance(value, str):
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError
    return value
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, int) and value.bit_length() <= 1024:
    return value  # longer ones cannot always be printed
  if isinstance(value, float) and math.isfinite(value):
    return value
  if isinstance(value, (list, tuple)):
    return [_json_like(item) for item in value]
  if isinstance(value, dict) and all(isinstance(key, str) for key in value):
    return {_json_like(k): _json_like(v) for k, v in value.items()}
  raise ValueError(f'no JSON value: {type(value).__name__}')
