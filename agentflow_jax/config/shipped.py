"""Finds the configs that come with the package, by their names."""

import os
import pathlib

from agentflow_jax.config import schema


def directory() -> pathlib.Path:
  """Returns experiments/ of the checkout, or the copy of it in an installed wheel."""
  package = pathlib.Path(__file__).resolve().parents[1]
  copied = package / '_experiments'  # See package-dir in pyproject.toml.
  return copied if copied.is_dir() else package.parent / 'experiments'


def names() -> list[str]:
  """Returns the names of all shipped configs, sorted."""
  return sorted(
    file.stem
    for file in directory().glob('*.py')
    if '\ndef get_config(' in file.read_text(encoding='utf-8')
  )


def path_of(said: str) -> str:
  """Returns the path of a config that a user names.

  Args:
    said: path of a file, which is returned as it is, or the name of a shipped config.
      A file that exists comes before a shipped config of the same name.

  Raises:
    ConfigError: no such name, or the path of no file where a shipped config has that
      file's name; says what to write instead.
  """
  if os.path.isfile(said):
    return said
  file = pathlib.PurePath(said)
  is_path = file.name != said or file.suffix in ('.py', '.json')
  name = file.stem if is_path else said
  known = names()
  if is_path:
    if file.suffix == '.py' and name in known:
      raise schema.ConfigError(
        f'--config: no file {said}; --config={name} is the config of that name that'
        ' comes with the package'
      )
    return said
  if name not in known:
    raise schema.ConfigError(
      f'--config: {said!r} is neither a file nor the name of a config that comes with'
      f' the package; those are {", ".join(known)}'
    )
  return str(directory() / f'{name}.py')
