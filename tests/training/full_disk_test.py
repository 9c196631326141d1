"""A run that meets a full disk loses nothing: real file systems, filled up."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.config import mini

_CONFIG = """
import dataclasses, pathlib
from agentflow_jax.config import schema as c
from tests.config import mini

def get_config():
  base = mini.config(
      pathlib.Path(__file__).parent / 'in', steps=6, checkpoint_every=1,
      keep_checkpoints=1,
  )
  network = c.ModelConfig(
      vocab_size=400, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1,
      head_dim=8, d_ff=32, max_positions=256, qk_norm=True,
  )
  return dataclasses.replace(
      base,
      planner=dataclasses.replace(
          base.planner, directory='', vocab_size=400, model=network
      ),
      agent=dataclasses.replace(
          base.agent,
          rollout=dataclasses.replace(base.agent.rollout, max_turns=2),
      ),
      mesh=c.MeshConfig(),
      evaluation=c.EvaluationConfig(
          every=0, start_and_final=False, controls=False
      ),
  )
"""

# Runs in a mount namespace of its own, where a small file system is mounted.
_INSIDE = """
import json, os, pathlib, subprocess, sys, time
place, size, config = sys.argv[1:]
subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True
)
workdir = pathlib.Path(place) / 'run'
command = [
    sys.executable, '-m', 'agentflow_jax.train', f'--config={config}',
    f'--workdir={workdir}', '--quiet',
]
run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
# The next commit meets a full disk.
while not (workdir / 'checkpoints' / '2').exists() and run.poll() is None:
  time.sleep(0.01)
filler = pathlib.Path(place) / 'filler'
try:
  with filler.open('wb') as file:
    while True:
      file.write(bytes(4096))
      file.flush()
except OSError:
  pass
_, said = run.communicate()
filler.unlink()
again = subprocess.run(command, stderr=subprocess.PIPE, text=True)
summary = json.loads((workdir / 'summary.json').read_text())
print(json.dumps({
    'code': run.returncode, 'said': said, 'again': again.returncode,
    'digest': summary['params_digest'], 'steps': summary['steps'],
}))
"""


def _own_mounts() -> list[str]:
  """Returns what begins a command that may mount, or skips."""
  command = ['unshare', '--mount', '--map-root-user', '--user']
  if (
    shutil.which('unshare') is None
    or subprocess.run(
      [*command, 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'],
      capture_output=True,
      check=False,
    ).returncode
  ):
    pytest.skip('no namespace in which a file system can be mounted')
  return command


@pytest.mark.slow
@pytest.mark.parametrize('size', ['4m', '20m'])
def test_a_full_disk_in_a_commit_and_room_again(tmp_path, size):
  inside = _own_mounts()
  config, place = tmp_path / 'config.py', tmp_path / 'small'
  config.write_text(_CONFIG)
  place.mkdir()
  environment = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=str(mini.ROOT))
  whole = tmp_path / 'whole'
  subprocess.run(
    [
      sys.executable,
      '-m',
      'agentflow_jax.train',
      f'--config={config}',
      f'--workdir={whole}',
      '--quiet',
    ],
    env=environment,
    cwd=mini.ROOT,
    check=True,
    capture_output=True,
  )
  done = subprocess.run(
    [*inside, sys.executable, '-c', _INSIDE, str(place), size, str(config)],
    env=environment,
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['code'] == 75, found['said']
  # One line, beside warnings that are none of it; and no traceback.
  (line,) = [l for l in found['said'].splitlines() if l.startswith('the run stopped')]
  assert 'no space is left' in line and 'make room' in line
  assert 'Traceback' not in found['said']
  assert (found['again'], found['steps']) == (0, 6)
  expected = json.loads((whole / 'summary.json').read_text())['params_digest']
  assert found['digest'] == expected
