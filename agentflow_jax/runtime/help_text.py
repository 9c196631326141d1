"""What --help prints: a command's flags, and the fields of a config."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from agentflow_jax.config import fields, schema, written

_WIDTH = 88
HELP_FLAGS = frozenset({'h', 'help', 'helpshort', 'helpfull', '?'})


def of_command(about: str, modules: Sequence[str], takes_config: bool) -> str:
  """Returns what a command is for, and its flags.

  Args:
    about: docstring of the command's module.
    modules: names of the modules whose flags the command reads.
    takes_config: whether it reads a config.
  """
  lines = [about.strip(), '', 'Flags:']
  by_module = flags.FLAGS.flags_by_module_dict()
  for module in modules:
    for flag in sorted(by_module.get(module, ()), key=lambda f: f.name):
      name = f'--[no]{flag.name}' if flag.boolean else f'--{flag.name}=VALUE'
      meaning = flag.help
      values = getattr(flag.parser, 'enum_values', None)
      if values:
        # absl puts the values before the text.
        meaning = meaning.removeprefix(f'<{"|".join(values)}>: ')
        meaning += f' One of {", ".join(values)}.'
      if flag.default not in (None, '', [], False):
        meaning += f' Default: {flag.default}.'
      lines += [f'  {name}', *_wrapped(meaning)]
  if takes_config:
    lines += [
      '  --config.NAME=VALUE',
      *_wrapped('Sets a field of the config. --config=FILE --help lists them.'),
    ]
  lines += ['  --verbosity=1', *_wrapped('Shows tracebacks with errors.')]
  return '\n'.join(lines) + '\n'


def of_config(config: schema.Config, where: str) -> str:
  """Returns every field of a config: its name, type, default, value and meaning.

  Args:
    config: config whose values are shown.
    where: name of the config, for the headline.
  """
  values, lines = written.flat(config), []
  for name, field in fields.every().items():
    if name not in values:  # Of a part that is none here.
      continue
    default = '(none)' if field.default is None else _shown(field.default)
    lines.append(f'  --config.{name}={_shown(values[name])}')
    lines += _wrapped(f'{field.type}; default {default}; {field.meaning}.')
  return f'Fields of {where}, with their values there:\n' + '\n'.join(lines) + '\n'


def _shown(value: Any) -> str:
  if value is None:
    return 'none'
  if isinstance(value, (list, tuple)):
    return ','.join(map(str, value)) or "''"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, Mapping):
    return json.dumps(value)
  return str(value) or "''"


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(
    text, _WIDTH, initial_indent='      ', subsequent_indent='      '
  )
