"""A run small enough for a test: six facts, eight questions."""

import dataclasses
import importlib.util
import json
import pathlib

from agentflow_jax.config import loading, schema

ROOT = pathlib.Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location(
  'acceptance', ROOT / 'launch' / 'acceptance.py'
)
_acceptance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_acceptance)
fingerprint = _acceptance.fingerprint

_FACTS = {
  'Lisbon': ('population', '517802'),
  'Portugal': ('capital', 'Lisbon'),
  'Spain': ('capital', 'Madrid'),
  'Madrid': ('population', '3255944'),
  'Norway': ('area', '324220'),
  'Porto': ('country', 'Portugal'),
}
_QUESTIONS = {
  'What is the capital of Portugal?': 'Lisbon',
  'What is the capital of Spain?': 'Madrid',
  'What is the area of Norway?': 324220,
  'In which country is Porto?': 'Portugal',
  'What is the population of Lisbon?': 517802,
  'What is the population of the capital of Spain?': 3255944,
  'What is 12 plus 30?': 42,
  'What is 7 times 8?': 56,
}


def config(directory: pathlib.Path, **train) -> schema.Config:
  """Writes tasks and corpus below `directory` and returns a short run."""
  directory.mkdir(parents=True, exist_ok=True)
  corpus, tasks = directory / 'corpus.jsonl', directory / 'tasks.jsonl'
  corpus.write_text(
    ''.join(
      json.dumps(
        {'id': name, 'title': name, 'text': f'The {what} of {name} is {value}.'}
      )
      + '\n'
      for name, (what, value) in _FACTS.items()
    )
  )
  tasks.write_text(
    ''.join(json.dumps({'query': q, 'answer': a}) + '\n' for q, a in _QUESTIONS.items())
  )
  base = loading.load(str(ROOT / 'experiments' / 'quickstart.py'))
  settings = dict(steps=4, queries_per_step=3, group_size=3, checkpoint_every=2)
  return dataclasses.replace(
    base,
    name='mini',
    task_set=schema.TaskSetConfig(
      kind='jsonl',
      train=str(tasks),
      evaluation=str(tasks),
      validation_items=3,
      test_items=3,
    ),
    agent=dataclasses.replace(
      base.agent, tools=dataclasses.replace(base.agent.tools, corpus=str(corpus))
    ),
    engine=dataclasses.replace(base.engine, slots=8, max_prompt_tokens=176),
    batch=schema.BatchConfig(tokens_per_row=192, rows_per_micro=8),
    mesh=schema.MeshConfig(data=1, fsdp=8, tensor=1),
    train=schema.TrainConfig(**settings | train),
    evaluation=schema.EvaluationConfig(every=2, controls=False),
  )
