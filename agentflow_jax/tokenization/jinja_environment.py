"""The jinja environment of chat templates, with the additions of transformers.

These are `{% generation %}`, `{% break %}`, `{% continue %}`,
raise_exception, and a tojson that escapes no HTML. Through `~`, join, macros
and blocks, each character keeps its author, the template or a message (see
message_text). What one operation may ask for is bounded (see template_bounds).
"""

import datetime
import functools
import json
import re
from collections.abc import Callable
from typing import Any

from absl import logging

from agentflow_jax.tokenization import message_text, template_bounds

# With a clock, the same seed would give another run tomorrow.
_TODAY = datetime.datetime(2025, 1, 1)
# Filters whose arguments and results `template_bounds.bounded` checks.
_SIZED = (
  'batch',
  'center',
  'e',
  'escape',
  'forceescape',
  'indent',
  'slice',
  'string',
  'tojson',
  'urlencode',
  'wordwrap',
)
# All but ASCII and the characters that may mark the text of messages.
_ESCAPED = re.compile('[^\0-\x7f\ufdd0-\ufdef\U000f0000-\U000fffff]')


def compile_template(source: str):
  """Returns a chat template, with a method `render`.

  A template that writes today's date (strftime_now), and does not test whether
  that function is defined, is given a fixed date, and a warning says so.

  Raises:
    ModuleNotFoundError: the package jinja2 is not installed.
    jinja2.TemplateError: the template is broken.
  """
  environment = _environment()
  from jinja2 import meta, nodes

  tree = environment.parse(source)
  dated = 'strftime_now' in meta.find_undeclared_variables(tree) and not any(
    test.name == 'defined' and getattr(test.node, 'name', '') == 'strftime_now'
    for test in tree.find_all(nodes.Test)
  )
  if dated:
    logging.warning(
      "the chat template writes today's date; so that the same seed gives the"
      ' same run, every prompt says %s',
      _TODAY.date(),
    )
  clock = {'strftime_now': _TODAY.strftime} if dated else {}
  return environment.from_string(source, globals=clock)


def variables_of(source: str) -> set[str]:
  """Returns the names of the variables that a template reads."""
  environment = _environment()
  from jinja2 import meta

  return meta.find_undeclared_variables(environment.parse(source))


def check_installed() -> None:
  """Raises ModuleNotFoundError, with the remedy, where jinja2 is missing."""
  _environment()


@functools.cache
def _environment():
  """Returns a sandbox in which each character of a text keeps its author.

  Raises:
    ModuleNotFoundError: jinja2 is not installed.
  """
  try:
    import jinja2
    from jinja2 import ext
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      'chat templates need jinja2:'
      ' pip install gguf jinja2 tokenizers (the extra `models`)'
    ) from e

  def fail(message):
    raise jinja2.TemplateError(message)

  environment = _environment_class()(
    finalize=template_bounds.check_written,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[ext.loopcontrols, _generation()],
  )
  environment.globals['raise_exception'] = fail
  environment.filters |= _filters()
  for name in _SIZED:
    environment.filters[name] = template_bounds.bounded(environment.filters[name])
  # Chat templates do not need these, and each can be made slow or long.
  del environment.globals['lipsum']
  for name in ('pprint', 'urlize', 'xmlattr'):
    del environment.filters[name]
  return environment


def _generation():
  """Returns the extension for the tag around the text that is trained on."""
  from jinja2 import ext, nodes

  class Generation(ext.Extension):
    """The tag around the text that is trained on; it renders its body."""

    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return nodes.Scope(body, lineno=line)

  return Generation


def _environment_class():
  """Returns the class of `_environment`: a sandbox with limits on what is made."""
  from jinja2 import compiler, nodes, sandbox

  class CodeGenerator(compiler.CodeGenerator):
    """Compiles `a ~ b` so that the text of messages keeps its author."""

    def visit_Concat(self, node, frame):
      self.write('concat(map(environment.written, (')
      for part in node.nodes:
        self.visit(part, frame)
        self.write(', ')
      self.write(')))')

  class Environment(sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = CodeGenerator
    intercepted_binops = frozenset({'+', '*', '**', '%'})
    tick = staticmethod(template_bounds.tick)

    @staticmethod
    def written(value):
      return str(template_bounds.check_written(value))

    @staticmethod
    def concat(parts):
      parts = list(parts)
      template_bounds.check_parts(parts)
      return message_text.concat(parts)

    def _parse(self, source, name, filename):
      tree = super()._parse(source, name, filename)
      for loop in tree.find_all(nodes.For):
        tick = nodes.Call(nodes.EnvironmentAttribute('tick'), [], [], None, None)
        loop.body.insert(0, nodes.ExprStmt(tick).set_lineno(loop.lineno))
      return tree

    def call_binop(self, context, operator, left, right):
      template_bounds.check_operation(operator, left, right)
      return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value):
      wrapped = super().wrap_str_format(value)
      if wrapped is None:
        return None

      @functools.wraps(wrapped)
      def checked(*args, **kwargs):
        template_bounds.check_braces(str(value.__self__), [*args, *kwargs.values()])
        return wrapped(*args, **kwargs)

      return checked

    def call(self, context, callee, /, *args, **kwargs):
      text = getattr(callee, '__self__', None)
      if isinstance(text, str):
        template_bounds.check_method(text, callee.__name__, args, kwargs)
        if callee.__name__ == 'join':
          return self.joined(text, *map(list, args))
      return super().call(context, callee, *args, **kwargs)

    @staticmethod
    def joined(separator, parts):
      template_bounds.check_parts([*parts, *[separator] * len(parts)])
      return message_text.join(separator, parts)

  return Environment


def _filters() -> dict[str, Callable[..., Any]]:
  """Returns the filters that differ from jinja's own, by name."""
  import jinja2
  from jinja2 import filters

  @jinja2.pass_environment
  def join(environment, value, d='', attribute=None):
    if attribute is not None:
      value = map(filters.make_attrgetter(environment, attribute), value)
    return environment.joined(str(d), [str(part) for part in value])

  def form(value, *args, **kwargs):
    template_bounds.check_percent(str(value), [*args, *kwargs.values()])
    return filters.do_format(value, *args, **kwargs)

  @jinja2.pass_eval_context
  def replace(eval_context, s, old, new, count=None):
    template_bounds.check_replacement(str(s), old, new)
    return filters.do_replace(eval_context, s, old, new, count)

  @jinja2.pass_environment
  def add(environment, iterable, attribute=None, start=0):
    values = list(iterable)
    template_bounds.check_added([start, *values])
    return filters.do_sum(environment, values, attribute, start)

  def indent(s, width=4, first=False, blank=False):
    columns = len(width) if isinstance(width, str) else width
    template_bounds.check_parts([s, range(columns * (s.count('\n') + 1))])
    return filters.do_indent(s, width, first, blank)

  return {
    'tojson': _tojson,
    'join': join,
    'format': form,
    'replace': replace,
    'sum': add,
    'indent': indent,
  }


def _tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  marker = message_text.marker_in(value)
  text = json.dumps(
    message_text.plain_json(value),
    ensure_ascii=False,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )
  if ensure_ascii:
    text = _ESCAPED.sub(lambda m: json.dumps(m.group())[1:-1], text)
  if marker is None:
    return text
  # A message decides what the escapes are, so all of it counts as a message's.
  return message_text.MessageText(text, bytes(len(text)), marker)
