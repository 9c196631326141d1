"""What each tool is worth: one planner with all tools, and without one of them.

  export GEMINI_API_KEY=...
  python launch/sweep.py --config=experiments/tool_ablation.py --program=evaluate \
      --run -- --planner=DIR --benchmark=2wiki,gameof24 --data_dir=DATA \
      --protocol=paper
  python launch/collect.py --sweep=runs/sweeps/tool_ablation

The paper's five tools are a base generator, a Python coder, Google search, Wikipedia
search and web search (arXiv 2510.05592); here they are generalist, python,
web_search, wikipedia and web_page. Cost: six evaluations, and what the search engine
takes. Expected, by the paper: with all of them best. Not run by us: no key and no
such machine were at hand.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent
_TOOLS = ('generalist', 'python', 'web_search', 'wikipedia', 'web_page')


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'flow_grpo_qwen2p5_7b.py')).get_config()
  tools = dataclasses.replace(base.agent.tools, enabled=_TOOLS)
  return dataclasses.replace(
    base, name='tool_ablation', agent=dataclasses.replace(base.agent, tools=tools)
  )


def get_sweep() -> list[dict[str, str]]:
  sets = [_TOOLS, *(tuple(t for t in _TOOLS if t != left) for left in _TOOLS)]
  return c.sweep.grid({'agent.tools.enabled': [','.join(s) for s in sets]})
