"""Directories of weights: whole or not there."""

import os
import pathlib
import re

import pytest

from agentflow_jax.external import versions


def test_a_version_appears_whole_and_synced(tmp_path, monkeypatch):
  synced, seen = [], []
  monkeypatch.setattr(
    os, 'fsync', lambda fd: synced.append(os.readlink(f'/proc/self/fd/{fd}'))
  )
  made = versions.Versions(tmp_path / 'served', '/shared/served/')
  label = made.label_of(7)
  assert re.fullmatch(r'v000007-[0-9a-f]{8}', label) and label != made.label_of(7)

  def write(path):
    # What is being written has no name that a server is ever given.
    assert pathlib.Path(path).name == f'{label}.partial'
    (pathlib.Path(path) / 'model.safetensors').write_bytes(b'x')
    seen.append(path)

  assert made.write(label, write) == f'/shared/served/{label}'
  assert (tmp_path / 'served' / label / 'model.safetensors').read_bytes() == b'x'
  assert [pathlib.Path(p).name for p in synced] == [
    'model.safetensors',
    f'{label}.partial',
    'served',
  ]


def test_a_version_that_is_not_whole_is_not_there(tmp_path):
  made = versions.Versions(tmp_path)

  def write(path):
    (pathlib.Path(path) / 'model.safetensors').write_bytes(b'x')
    raise OSError('full')

  with pytest.raises(OSError, match='full'):
    made.write('v000001-00000000', write)
  assert not list(tmp_path.iterdir())


def test_only_what_this_program_left_is_removed(tmp_path):
  names = ['v000001-00000000', 'v000002-00000000.partial', 'mine', 'v1']
  for name in names:
    (tmp_path / name).mkdir()
  made = versions.Versions(tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {'mine', 'v1'}
  first, second = made.label_of(1), made.label_of(2)
  for label in (first, second):
    made.write(label, lambda path: None)
  made.forget_but(second)
  assert {p.name for p in tmp_path.iterdir()} == {'mine', 'v1', second}
