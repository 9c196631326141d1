"""What the entry points share: flags to a config, errors to one clear line."""

import contextlib
import difflib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import app, flags, logging
from etils import epath

from agentflow_jax.config import fields, loading
from agentflow_jax.config import overrides as overrides_lib, schema, unread, written
from agentflow_jax.files import old_names
from agentflow_jax.runtime import help_text

_CONFIG = flags.DEFINE_string(
  'config',
  None,
  'The name of a config that comes with the package, such as quickstart (an unknown'
  ' name lists them), or the path of a Python file with get_config() or of the'
  ' config.json of a run. Default: that of the run in --workdir, where there is one.',
)
_PRINT_CONFIG = flags.DEFINE_bool(
  'print_config',
  False,
  'Prints the config with all flags applied, and ends; what it prints is a'
  ' config.json that --config takes.',
)
_RECORDING = flags.DEFINE_enum(
  'recording',
  None,
  ['record', 'replay', 'off'],
  "'record' stores every answer of tools and endpoints; 'replay' takes all answers"
  ' from the recording and contacts no host. Sets --config.agent.recording.',
)
_RECORDING_DIRECTORY = flags.DEFINE_string(
  'recording_directory',
  None,
  'Directory of the recording. Default: WORKDIR/recording. Sets'
  ' --config.agent.recording_directory.',
)
_overrides: list[tuple[str, str]] = []


def config_from_flags(
  argv: Sequence[str], serves: str | None = None, environment: str = ''
) -> schema.Config:
  """Returns the config of --config and its --config.a.b=v overrides.

  Args:
    argv: the command line without flags.
    serves: path of the model for a command that only needs a model, which may then
      need no --config, or '' for the config's own model; None for a command that runs
      the config.
    environment: kind of the environment for a command that only needs an environment,
      which may need no --config; '' for any other command.

  Raises:
    ConfigError: a stray argument, what `loading.load` raises, or a flag that
      nothing would read.
  """
  no_arguments(argv)
  overrides = [*_overrides]
  for flag in (_RECORDING, _RECORDING_DIRECTORY):
    if flag.value is not None:
      overrides.append((f'agent.{flag.name}', flag.value))
  names = [name for name, _ in overrides]
  if environment and _CONFIG.value is None and config_of_run() is None:
    config = loading.of_environment(environment, overrides)
  elif serves and _CONFIG.value is None and config_of_run() is None:
    config = loading.of_model(serves, overrides)
  else:
    config = loading.load(_source(), overrides)
  unread.check_flags(config, names)
  if _PRINT_CONFIG.value:
    with quiet_pipe():
      print(written.text(config))
    sys.exit(0)
  if serves is not None:
    unread.check_serves(names, serves)
  if environment:
    unread.check_serves_worlds(names)
  return config


def fields_given() -> tuple[str, ...]:
  """Returns the dotted names of the config's fields that flags set."""
  return tuple(name for name, _ in _overrides)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
  """Ends the process without an error if the reader of its output closes the pipe.

  `head`, for example, closes it as soon as it has read enough lines.
  """
  try:
    yield
    sys.stdout.flush()
  except BrokenPipeError:
    # Python flushes its buffer again when it ends, which must not fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def config_of_run() -> epath.Path | None:
  """Returns the config.json of the run in --workdir, if there is one."""
  flag = flags.FLAGS.flag_values_dict().get('workdir')
  path = epath.Path(flag) / written.FILE if flag and '\0' not in flag else None
  return path if path is not None and path.is_file() else None


def planner_of_run() -> str:
  """Returns the planner of the run whose config is used; '' where another is.

  Raises:
    ConfigError: that run has no planner yet.
  """
  path = config_of_run()
  chosen = any(name == 'planner.directory' for name, _ in _overrides)
  if path is None or chosen or _CONFIG.value is not None:
    return ''
  planner = path.parent / 'planner'
  if not planner.is_dir():
    raise schema.ConfigError(
      f'the run in {path.parent} has no planner yet: it writes one when all steps are'
      ' done; go on with it, or give --planner or --config'
    )
  return str(planner)


def say_differences(config: schema.Config) -> None:
  """Prints to stderr how a config differs from that of the run in --workdir."""
  path = config_of_run()
  if path is None:
    return
  for name, (before, now) in written.differences(
    config, written.read_flat(path)
  ).items():
    sys.stderr.write(
      f'{name} is {json.dumps(now)} here; in the run of --workdir it was'
      f' {json.dumps(before)}\n'
    )


def _source() -> str:
  """Returns the name or path of the config to load."""
  if _CONFIG.value is not None:
    return _CONFIG.value
  found = config_of_run()
  if found is None:
    missing, also = '--config is missing', ''
    if 'workdir' in flags.FLAGS:
      also = ', or the --workdir of a run'
      if workdir := flags.FLAGS.flag_values_dict()['workdir']:
        missing += f', and there is no run in {workdir}'
    raise schema.ConfigError(
      f'{missing}: give the name of a config that comes with the package,'
      f' such as quickstart, a Python file with get_config(){also}'
    )
  return str(found)


def given(flag: flags.FlagHolder[str | None]) -> str:
  """Returns the value of a flag that `run` requires."""
  assert flag.value is not None
  return flag.value


def no_arguments(argv: Sequence[str]) -> None:
  """Raises ConfigError where the command line holds more than flags."""
  if len(argv) > 1:
    raise schema.ConfigError(f'not a flag: {argv[1]!r}')


def refuse(idle: Iterable[flags.FlagHolder], how: str, flag: flags.FlagHolder) -> None:
  """Raises ConfigError where a flag is given that nothing reads.

  Args:
    idle: flags that are not read.
    how: 'with' or 'without'.
    flag: flag because of which they are not.
  """
  for one in idle:
    if one.present:
      raise schema.ConfigError(
        f'--{one.name}: nothing reads it {how} --{flag.name}: leave it out'
      )


def _parse(argv: Sequence[str], takes_config: bool) -> list[str]:
  """Takes the config's overrides out before absl sees the flags."""
  others, overrides = overrides_lib.split_overrides(argv)
  if overrides and not takes_config:
    raise schema.ConfigError(
      f'--config.{overrides[0][0]}: this command reads no config'
    )
  _overrides[:] = overrides
  for argument in others[1:]:
    name = argument.lstrip('-').partition('=')[0]
    field = old_names.FIELDS.get(f'agent.{name}')
    if argument.startswith('-') and field is not None:
      raise schema.ConfigError(
        f'--{name} was renamed to --{field.removeprefix("agent.")}'
      )
  if any(
    a.startswith('-') and a.lstrip('-') in help_text.HELP_FLAGS for a in others[1:]
  ):
    with quiet_pipe():
      print(_help(others, overrides, takes_config), end='')
    sys.exit(0)
  try:
    rest = flags.FLAGS(others)
  except flags.UnrecognizedFlagError as e:
    own, near = list(flags.FLAGS), fields.nearest(e.flagname)
    if not takes_config:
      shared = flags.FLAGS.find_module_defining_flag('config')
      own, near = (
        [name for name in own if flags.FLAGS.find_module_defining_flag(name) != shared],
        [],
      )
    known = difflib.get_close_matches(e.flagname, own, n=1)
    hint = ' or '.join([f'--{n}' for n in known] + [f'--config.{n}' for n in near])
    raise schema.ConfigError(
      f'--{e.flagname}: there is no such flag; '
      + (f'did you mean {hint}?' if hint else '--help lists all flags')
    ) from e
  except flags.Error as e:
    raise schema.ConfigError(' '.join(str(e).split())) from e
  for flag in (_CONFIG, _PRINT_CONFIG, _RECORDING, _RECORDING_DIRECTORY):
    if flag.present and not takes_config:
      raise schema.ConfigError(f'--{flag.name}: this command reads no config')
  return rest


def _help(
  argv: Sequence[str], overrides: Sequence[tuple[str, str]], takes_config: bool
) -> str:
  """Returns the help of this command, and of a config that is named."""
  modules = [sys.argv[0]]  # Which is how absl names the main module.
  if takes_config:
    modules.append(str(flags.FLAGS.find_module_defining_flag('config')))
  text = help_text.of_command(
    sys.modules['__main__'].__doc__ or '', modules, takes_config
  )
  if not takes_config:
    return text
  given = {}
  for argument, after in zip(argv, [*argv[1:], '']):
    name, equals, value = argument.lstrip('-').partition('=')
    if argument.startswith('-'):
      given[name] = value if equals else after
  path = given.get('config')
  if path is None and given.get('workdir'):
    found = epath.Path(given['workdir']) / written.FILE
    path = str(found) if found.is_file() else None
  if path is not None:
    text += '\n' + help_text.of_config(loading.load(path, overrides), path)
  return text


def run(
  main: Callable[[Sequence[str]], None], takes_config: bool = True, requires: str = ''
) -> None:
  """Runs an entry point: a user's mistake is one line and exit code 2.

  Args:
    main: function that is called with the command line without flags.
    takes_config: whether it reads a config; flags for one are errors otherwise.
    requires: name of a flag that has to be given, except with --print_config; ''
      for none.
  """
  parse = functools.partial(
    _parse_or_exit, takes_config=takes_config, requires=requires
  )
  try:
    app.run(_guarded(main), flags_parser=parse)
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on from the last commit')


def _asks_for_verbosity(argv: Sequence[str]) -> bool:
  names = {a.lstrip('-').partition('=')[0] for a in argv if a.startswith('-')}
  return bool(names & {'v', 'verbosity'})


def _parse_or_exit(argv, takes_config, requires):
  try:
    rest = _parse(argv, takes_config)
    if requires and not _PRINT_CONFIG.value:
      flag = flags.FLAGS[requires]
      if flag.value is None:
        raise schema.ConfigError(f'--{requires} is missing: {flag.help}')
    return rest
  except schema.ConfigError as e:
    sys.stderr.write(f'error: {e}\n')
    sys.exit(2)


def _guarded(main):
  def call(argv):
    import jax

    from agentflow_jax.runtime import exits

    if not _asks_for_verbosity(sys.argv):
      # Libraries tell each step of a commit; absl would show all of it.
      logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except Exception as e:
      e = exits.cause(e)
      code = exits.code_of(e)
      if code == 1:  # Nobody's mistake but ours.
        if not jax.distributed.is_initialized():
          raise
        traceback.print_exc()
      else:
        if logging.get_verbosity() >= logging.DEBUG:
          traceback.print_exc()  # --verbosity=1 asks for more than one line.
        what = 'error' if code == 2 else 'the run stopped'
        sys.stderr.write(f'{what}: {e}\n')
      exits.leave(code, 0.0 if isinstance(e, exits.ProcessGone) else 10.0)

  return call
