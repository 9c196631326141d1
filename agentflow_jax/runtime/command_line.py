"""What the entry points share: flags to a config, errors to one clear line."""

import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from agentflow_jax.config import overrides as overrides_lib, schema, unread
from agentflow_jax.files import old_names

_CONFIG = flags.DEFINE_string(
    'config', None, 'A Python file with get_config(), such as experiments/X.py.'
)
_RECORDING = flags.DEFINE_enum(
    'recording', None, ['record', 'replay', 'off'],
    "'record' stores every answer of tools and endpoints; 'replay' takes all answers"
    ' from the recording and contacts no host. Sets --config.agent.recording.',
)
_RECORDING_DIRECTORY = flags.DEFINE_string(
    'recording_directory', None,
    'Directory of the recording. Default: WORKDIR/recording. Sets'
    ' --config.agent.recording_directory.',
)
_overrides: list[tuple[str, str]] = []


def config_from_flags(
    argv: Sequence[str], serves: str | None = None
) -> schema.Config:
  """Returns the config of --config and its --config.a.b=v overrides.

  Args:
    argv: the command line without flags.
    serves: where a model is all that is wanted, which one; '' for the config's.

  Raises:
    ConfigError: a stray argument, what `config.load` raises, or a flag that
      nothing would read.
  """
  no_arguments(argv)
  overrides = [*_overrides]
  for flag in (_RECORDING, _RECORDING_DIRECTORY):
    if flag.value is not None:
      overrides.append((f'agent.{flag.name}', flag.value))
  config = overrides_lib.load(_CONFIG.value, overrides)
  names = [name for name, _ in overrides]
  unread.check_flags(config, names)
  if serves is not None:
    unread.check_serves(names, serves)
  return config


def no_arguments(argv: Sequence[str]) -> None:
  """Raises ConfigError where the command line holds more than flags."""
  if len(argv) > 1:
    raise schema.ConfigError(f'not a flag: {argv[1]!r}')


def _parse(argv: Sequence[str]) -> list[str]:
  """Takes the config's overrides out before absl sees the flags."""
  others, overrides = overrides_lib.split_overrides(argv)
  _overrides[:] = overrides
  for argument in others[1:]:
    name = argument.lstrip('-').partition('=')[0]
    field = old_names.FIELDS.get(f'agent.{name}')
    if argument.startswith('-') and field is not None:
      raise schema.ConfigError(
          f'--{name} was renamed to --{field.removeprefix("agent.")}'
      )
  try:
    return flags.FLAGS(others)
  except flags.Error as e:
    raise schema.ConfigError(str(e)) from e


def run(
    main: Callable[[Sequence[str]], None], needs_config: bool = True
) -> None:
  """Runs an entry point: a user's mistake is one line and exit code 2."""
  if needs_config:
    flags.mark_flag_as_required('config')
  try:
    app.run(_guarded(main), flags_parser=_parse_or_exit)
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on from the last commit')


def _asks_for_verbosity(argv: Sequence[str]) -> bool:
  names = {a.lstrip('-').partition('=')[0] for a in argv if a.startswith('-')}
  return bool(names & {'v', 'verbosity'})


def _parse_or_exit(argv):
  try:
    return _parse(argv)
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
