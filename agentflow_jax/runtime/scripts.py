"""What the installed commands run: agentflow-train is python -m agentflow_jax.train."""

import pathlib
import runpy
import sys


def main() -> None:
  """Runs the entry point that the name of this command stands for."""
  name = pathlib.PurePath(sys.argv[0]).stem.removeprefix('agentflow-')
  runpy.run_module(
    f'agentflow_jax.{name.replace("-", "_")}', run_name='__main__', alter_sys=True
  )
