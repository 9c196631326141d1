"""An installed command runs the entry point of its name."""

import runpy
import subprocess
import sys

import pytest

from agentflow_jax.runtime import scripts
from tests.config import mini


@pytest.mark.parametrize(
  ('command', 'module'),
  [
    ('/venv/bin/agentflow-train', 'train'),
    ('agentflow-openenv-tasks', 'openenv_tasks'),
    ('agentflow-serve.exe', 'serve'),
  ],
)
def test_the_name_says_which(monkeypatch, command, module):
  asked = []
  monkeypatch.setattr(runpy, 'run_module', lambda *a, **k: asked.append((a, k)))
  monkeypatch.setattr(sys, 'argv', [command, '--help'])
  scripts.main()
  assert asked == [
    ((f'agentflow_jax.{module}',), {'run_name': '__main__', 'alter_sys': True})
  ]


def test_it_is_the_same_program():
  program = (
    "import sys; sys.argv[0] = 'agentflow-trajectories'\n"
    'from agentflow_jax.runtime import scripts; scripts.main()'
  )
  outputs = [
    subprocess.run(
      [sys.executable, *how, '--help'],
      cwd=mini.ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for how in (['-c', program], ['-m', 'agentflow_jax.trajectories'])
  ]
  assert outputs[0] == outputs[1]
  assert '\n  --jsonl' in outputs[0] or '\n  --[no]jsonl' in outputs[0]
