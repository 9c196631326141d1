"""A small released model, and a run that starts from it, for tests."""

import dataclasses
import pathlib

from agentflow_jax.config import schema
from tests.config import mini
from tests.tokenization import byte_tokenizer
from tests.weights import recipe

CHANGES = {'vocab_size': 288, 'max_position_embeddings': 1024}


def write(path: pathlib.Path) -> pathlib.Path:
  """Writes a model directory as Hugging Face releases one."""
  recipe.write_released(
    path, 'qwen2', torch_dtype='float32', eos_token_id=259, **CHANGES
  )
  byte_tokenizer.write(path)
  return path


def config(directory: pathlib.Path, planner: pathlib.Path, **train) -> schema.Config:
  """Returns a short run with the planner of a model directory."""
  base = mini.config(directory, **train)
  return dataclasses.replace(
    base,
    planner=dataclasses.replace(
      base.planner,
      directory=str(planner),
      max_prompt_tokens=480,
      # A token is about a byte here.
      prompt=schema.PromptConfig(system='Plan.', cards='names'),
    ),
    engine=dataclasses.replace(base.engine, max_prompt_tokens=480),
    batch=schema.BatchConfig(tokens_per_row=512, rows_per_micro=8),
  )
