"""Agents of other frameworks, unmodified, each drive a run that is trained.

They are the dependency group `agents`, in this environment or in that of the Python
which AGENTFLOW_AGENTS_PYTHON names.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.training import run
from tests.assembly import released as released_lib
from tests.config import mini
from tests.tokenization import byte_tokenizer
from tests.training import served_run_test

_PYTHON = os.environ.get('AGENTFLOW_AGENTS_PYTHON', sys.executable)
_AGENTS = {
  'openai': """
    import openai
    messages = [{'role': 'user', 'content': query}]
    with openai.OpenAI() as client:
      done = client.chat.completions.create(model='policy', messages=messages)
      messages += [done.choices[0].message, {'role': 'user', 'content': 'Sure?'}]
      stream = client.chat.completions.create(
        model='policy', messages=messages, stream=True, temperature=0.3)
      text = ''.join(e.choices[0].delta.content or '' for e in stream if e.choices)
      try:
        client.responses.create(model='policy', input=query)
      except openai.NotFoundError as e:
        assert 'chat/completions' in str(e)
    print(len(text))
  """,
  'tools': """
    import openai
    tool = {'type': 'function', 'function': {'name': 'look', 'description': 'Looks.',
            'parameters': {'type': 'object', 'properties': {'q': {'type': 'string'}}}}}
    with openai.OpenAI() as client:
      messages = [{'role': 'user', 'content': query}]
      done = client.chat.completions.create(
        model='policy', messages=messages, tools=[tool])
      call = {'id': 'c', 'type': 'function',
              'function': {'name': 'look', 'arguments': '{"q": "x"}'}}
      messages += [{'role': 'assistant', 'content': None, 'tool_calls': [call]},
                   {'role': 'tool', 'tool_call_id': 'c', 'content': 'Lisbon'}]
      stream = client.chat.completions.create(
        model='policy', messages=messages, tools=[tool], stream=True)
      text = ''.join(e.choices[0].delta.content or '' for e in stream)
    print(len(text))
  """,
  'smolagents': """
    import os, smolagents
    empty = smolagents.agents.EMPTY_PROMPT_TEMPLATES
    model = smolagents.OpenAIServerModel(
      'policy', api_base=os.environ['OPENAI_BASE_URL'],
      api_key=os.environ['OPENAI_API_KEY'])
    final = {'pre_messages': 'Answer.', 'post_messages': '{{task}}'}
    agent = smolagents.CodeAgent(
      tools=[], model=model, max_steps=1, verbosity_level=0,
      prompt_templates=empty | {'system_prompt': 'Code.', 'final_answer': final})
    print(len(str(agent.run(query))))
  """,
  'langchain': """
    from langchain_core import tools
    from langchain_openai import ChatOpenAI

    @tools.tool
    def look(q: str) -> str:
      'Looks it up.'
      return q

    model = ChatOpenAI(model='policy', temperature=0.2)
    first = model.bind_tools([look]).invoke(query)
    text = ''.join(str(piece.content) for piece in model.stream(str(first.content)))
    print(len(text))
  """,
}


def _has(module):
  found = subprocess.run([_PYTHON, '-c', f'import {module}'], capture_output=True)
  return found.returncode == 0


def _config(tmp_path, command):
  directory = released_lib.write(tmp_path / 'released')
  byte_tokenizer.write(directory, byte_tokenizer.TOOLS_TEMPLATE)
  base = mini.config(tmp_path / 'in', steps=1, queries_per_step=2, group_size=2)
  return dataclasses.replace(
    base,
    agent=schema.AgentConfig(
      kind='served',
      served=schema.ServedConfig(command=command),
      rollout=schema.RolloutConfig(max_turns=4, deadline_seconds=300.0),
    ),
    planner=dataclasses.replace(
      base.planner,
      directory=str(directory),
      max_prompt_tokens=704,
      model=None,
      sampling=schema.SamplingSpec(max_new_tokens=16),
      prompt=schema.PromptConfig(),
    ),
    engine=dataclasses.replace(
      base.engine, max_prompt_tokens=704, max_new_tokens=16, slots=4
    ),
    batch=schema.BatchConfig(tokens_per_row=768, rows_per_micro=8),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', _AGENTS)
def test_an_unmodified_agent_is_trained(tmp_path, name):
  modules = {'tools': 'openai', 'langchain': 'langchain_openai'}
  if not _has(modules.get(name, name)):
    pytest.skip(f'{_PYTHON} has no {name}')
  path = tmp_path / 'agent.py'
  lines = _AGENTS[name].split('\n')
  start = ['import os', "query = os.environ['AGENTFLOW_QUERY']"]
  path.write_text('\n'.join(start + [line[4:] for line in lines]))
  config = _config(tmp_path, f'{_PYTHON} {path}')
  run.train(config, str(tmp_path / 'out'), quiet=True)
  (line,) = (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line)['update/logprob_gap/max'] <= 1e-5
  rollouts = [
    rollout
    for group in served_run_test.groups(tmp_path / 'out')
    for rollout in group.trajectories
  ]
  assert len(rollouts) == 4
  for rollout in rollouts:
    assert rollout.status is records.Status.ANSWERED, rollout.detail
    assert rollout.answer.isdigit() and not rollout.undelivered
    assert len(rollout.turns) == 2
    for turn in rollout.turns:
      done = turn.completion
      assert turn.sampling == dataclasses.replace(
        config.planner.sampling, stop=turn.sampling.stop
      )
      assert len(done.logprobs) == len(done.response_ids) > 0
