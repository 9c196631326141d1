"""A model of any supported form, or adapters, written as a directory."""

import dataclasses
import os

import jax
from etils import epath

from agentflow_jax.assembly import model_files
from agentflow_jax.config import schema
from agentflow_jax.tokenization import sentencepiece_json, tokenizers
from agentflow_jax.weights import adapter_files, model_directory

_FILES = ('config.json', 'tokenizer.json', 'tokenizer.model', 'chat_template.jinja')


def export_adapter(
  *, workdir: str, out: str, dtype: str, others: bool | str = False
) -> str:
  """Writes the adapters of a run in PEFT's format.

  Args:
    workdir: a finished run with planner.lora.rank.
    out: the directory to write.
    dtype: 'float32', 'bfloat16', or 'stored' for float32, which adapters have.
    others: whether flags were given that are for whole models.

  Returns:
    A line for people.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  if others:
    raise schema.ConfigError('--adapter goes with neither --model nor --untied')
  if not workdir:
    raise schema.ConfigError('--adapter exports what a run trained: give --workdir')
  source = epath.Path(workdir) / adapter_files.DIRECTORY
  if not source.exists():
    raise model_directory.CheckpointError(
      f'{workdir} holds no adapters: only a run with planner.lora.rank that has ended'
      ' has them (the same train command goes on with it)'
    )
  if epath.Path(out).exists() and epath.Path(out).resolve() == source.resolve():
    raise schema.ConfigError(f'--out: {out} is what is read')
  dtype = 'float32' if dtype == 'stored' else dtype
  count = adapter_files.copy(source, out, dtype)
  return f'{out}: adapters of {count:,} parameters in {dtype}'


def export(
  *,
  model: str,
  workdir: str,
  out: str,
  dtype: str,
  shard_bytes: int,
  untied: bool = False,
) -> str:
  """Loads a model and writes it.

  Args:
    model: a directory or a GGUF file; '' for the planner of `workdir`.
    workdir: a finished run; '' where `model` is given.
    out: the directory to write; it holds no model yet.
    dtype: 'float32', 'bfloat16', or 'stored' for what the tensors are.
    shard_bytes: the most that one file holds.
    untied: whether a head that is the embedding is written apart from it.

  Returns:
    A line for people.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  if bool(model) == bool(workdir):
    raise schema.ConfigError('give one of --workdir and --model')
  if workdir and not (epath.Path(workdir) / 'planner').exists():
    raise model_directory.CheckpointError(
      f'{workdir} holds no planner: the run has not ended (the same train'
      ' command goes on with it)'
    )
  source = model or os.path.join(workdir, 'planner')
  if epath.Path(out).exists() and epath.Path(out).resolve() == (
    epath.Path(source).resolve()
  ):
    raise schema.ConfigError(f'--out: {out} is what is read')
  if held := _model_in(epath.Path(out)):
    raise schema.ConfigError(
      f'--out: {out} holds a model already ({held}): name another directory, or'
      ' remove it first'
    )
  loaded = model_files.load(source)
  dtype = loaded.stored_dtype if dtype == 'stored' else dtype
  if untied:
    network, params = model_directory.untied(loaded.config, loaded.params)
    loaded = dataclasses.replace(loaded, config=network, params=params)
  loaded.save(out, dtype, shard_bytes=shard_bytes)
  if isinstance(loaded.tokenizer, tokenizers.SentencePieceTokenizer):
    sentencepiece_json.save(loaded.tokenizer, out, loaded.config.max_positions)
  count = sum(x.size for x in jax.tree.leaves(loaded.params))
  return f'{out}: {count:,} parameters in {dtype}'


def _model_in(path: epath.Path) -> str:
  """Returns the name of a file of a model in a directory; '' where there is none.

  What another model leaves there, such as shards or a chat template, would be read
  together with what is written.
  """
  if path.exists() and not path.is_dir():
    raise schema.ConfigError(f'--out: {path} is a file, not a directory')
  kinds = ('.safetensors', '.safetensors.index.json', '.gguf', '.bin', '.pth')
  names = sorted(p.name for p in path.iterdir()) if path.exists() else []
  for name in names:
    if name.endswith(kinds) or name in _FILES:
      return name
  return ''
