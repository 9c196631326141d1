"""Released model families as configs: what a config.json says, and its inverse.

One transformer covers Llama 3 and SmolLM2 ('llama'), Qwen2 / 2.5 ('qwen2') and
Qwen3 dense ('qwen3'). A config.json decides; what it asks for and this
transformer does not do is an error that names it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from agentflow_jax.core import model, rope


class UnsupportedModel(ValueError):
  """A config.json of an architecture, or with an option, that we lack."""


@dataclasses.dataclass(frozen=True)
class _Family:
  """What an architecture fixes that its config.json leaves unsaid."""

  architecture: str
  qkv_bias: bool
  qk_norm: bool


_FAMILIES = {
  'llama': _Family('LlamaForCausalLM', qkv_bias=False, qk_norm=False),
  'qwen2': _Family('Qwen2ForCausalLM', qkv_bias=True, qk_norm=False),
  'qwen3': _Family('Qwen3ForCausalLM', qkv_bias=False, qk_norm=True),
}
# Options of a config.json that change the network, and the values that this
# transformer computes. A name that is absent, or null, has the first value.
_FIXED = {
  'hidden_act': ('silu', 'swish'),  # Two names of one function.
  'hidden_activation': ('silu', 'swish'),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'partial_rotary_factor': (1.0,),
}
_ROPE_NAMES = {
  'factor': 'factor',
  'original_max_position_embeddings': 'original_max_positions',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'beta_fast': 'beta_fast',
  'beta_slow': 'beta_slow',
  'attention_factor': 'attention_factor',
}


def from_hugging_face(config: Mapping[str, Any]) -> model.ModelConfig:
  """Reads the network out of a config.json.

  Args:
    config: its content, as written by transformers 4 or 5.

  Returns:
    The network, in float32; the caller chooses other dtypes.

  Raises:
    UnsupportedModel: another architecture, or an option that we lack.
    KeyError, TypeError, ValueError: a field is missing or makes no sense.
  """
  model_type = _model_type(config)
  family = _FAMILIES[model_type]
  _check_options(config, model_type)
  scaling, theta = _rope(config)
  heads, width = config['num_attention_heads'], config['hidden_size']
  positions = config['max_position_embeddings']
  if scaling is not None and scaling.original_max_positions == positions:
    # It states the context before it is stretched, as Qwen2.5's does.
    positions = int(positions * scaling.factor)
  _check_windows(config, positions)
  return model.ModelConfig(
    vocab_size=config['vocab_size'],
    d_model=width,
    n_layers=config['num_hidden_layers'],
    n_heads=heads,
    n_kv_heads=config.get('num_key_value_heads') or heads,
    head_dim=config.get('head_dim') or width // heads,
    d_ff=config['intermediate_size'],
    max_positions=positions,
    rope_theta=float(theta),
    rope_scaling=scaling,
    norm_eps=config.get('rms_norm_eps', 1e-6),
    qkv_bias=family.qkv_bias,
    qk_norm=family.qk_norm,
    tie_embeddings=bool(config.get('tie_word_embeddings')),
  )


def _model_type(config) -> str:
  """Returns the family that `architectures` and `model_type` agree on."""
  names, stated = config.get('architectures') or [], config.get('model_type')
  by_name = {f.architecture: t for t, f in _FAMILIES.items()}
  found = by_name.get(names[0]) if len(names) == 1 else None
  if not names:
    found = stated if stated in _FAMILIES else None
  if found is None:
    raise UnsupportedModel(
      f'architectures {names}, model_type {stated!r}: not supported; there are'
      f' {by_name}'
    )
  if stated not in (None, found):
    # vLLM reads the architectures, and transformers the model_type.
    raise UnsupportedModel(
      f'architectures {names} and model_type {stated!r} are of different'
      f' models: {names[0]} has model_type {found!r}; correct the wrong one'
    )
  return found


def _check_options(config, model_type: str) -> None:
  """Refuses options that this transformer does not compute."""
  if config.get('quantization_config'):
    raise UnsupportedModel(
      'quantization_config: quantised checkpoints are not read; take the'
      ' unquantised one, or a GGUF file'
    )
  for name, values in _FIXED.items():
    if name == 'attention_bias' and model_type == 'qwen2':
      continue  # Its released code has no such option: q, k and v have biases.
    if config.get(name) is not None and config[name] not in values:
      raise UnsupportedModel(
        f'{name}={config[name]!r} is not supported; there is'
        f' {" or ".join(map(repr, values))}'
      )


def _check_windows(config, positions: int) -> None:
  """Refuses layers whose sliding window is shorter than the context."""
  kinds = config.get('layer_types')
  unknown = set(kinds or ()) - {'full_attention', 'sliding_attention'}
  if unknown:
    raise UnsupportedModel(f'layer_types {sorted(unknown)} are not supported')
  if 'sliding_window' in config:
    window = config['sliding_window']
    if window is None or window >= positions:
      return
  if kinds:
    slides = 'sliding_attention' in kinds
  else:
    # transformers slides from layer 28 on where a config.json says nothing.
    first = config.get('max_window_layers', 28)
    slides = bool(config.get('use_sliding_window')) and (
      first is None or first < config['num_hidden_layers']
    )
  if slides:
    raise UnsupportedModel(
      'a sliding window is not supported: use_sliding_window'
      f'={config.get("use_sliding_window")},'
      f' sliding_window={config.get("sliding_window")},'
      f' max_window_layers={config.get("max_window_layers")},'
      f' layer_types={kinds}'
    )


def _rope(config) -> tuple[model.RopeScaling | None, float]:
  """Returns the scaling of the rotary frequencies, and their base."""
  rope = dict(config.get('rope_parameters') or config.get('rope_scaling') or {})
  # transformers 5 may state them for each kind of layer.
  rope = dict(rope.get('full_attention') or rope)
  theta = rope.pop('rope_theta', None) or config.get('rope_theta') or 1e4
  rotated = rope.pop('partial_rotary_factor', None)
  if rotated not in (None, 1.0):
    raise UnsupportedModel(f'partial_rotary_factor={rotated!r} is not supported')
  scaling = _rope_scaling(
    {k: v for k, v in rope.items() if v is not None}, config['max_position_embeddings']
  )
  return scaling, float(theta)


def _rope_scaling(rope, positions: int) -> model.RopeScaling | None:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  if kind not in ('llama3', 'yarn'):
    raise UnsupportedModel(
      f"rope_scaling of type {kind!r} is not supported; there are 'llama3' and 'yarn'"
    )
  unknown = set(rope) - set(_ROPE_NAMES) - {'rope_type', 'type'}
  if unknown:
    raise UnsupportedModel(
      f'rope_scaling: {sorted(unknown)} of type {kind!r} is not supported'
    )
  fields = {_ROPE_NAMES[k]: v for k, v in rope.items() if k in _ROPE_NAMES}
  fields.setdefault('original_max_positions', positions)
  return model.RopeScaling(kind=kind, **fields)


def with_rope_divisors(
  config: model.ModelConfig, divisors: tuple[float, ...]
) -> model.ModelConfig:
  """Returns the network with its rotary frequencies divided, one by one.

  Divisors that are Llama 3's for some factor are named as such, so that the
  network can be written as a config.json again.

  Args:
    config: a network without rope_scaling.
    divisors: E/2 numbers.
  """
  scaling = model.RopeScaling(kind='divisors', divisors=divisors)
  plain, _ = rope.scaled_frequencies(
    config.rope_theta,
    config.head_dim,
    model.RopeScaling('divisors', divisors=(1.0,) * len(divisors)),
  )
  # Llama 3.x: the lowest frequency is divided by the whole factor, and all of
  # them were pretrained on 8192 tokens.
  llama3 = model.RopeScaling(
    'llama3', factor=max(divisors), original_max_positions=8192
  )
  scaled, _ = rope.scaled_frequencies(config.rope_theta, config.head_dim, llama3)
  if np.allclose(plain / scaled, divisors, rtol=1e-5):
    scaling = llama3
  return dataclasses.replace(config, rope_scaling=scaling)


def to_hugging_face(config: model.ModelConfig, dtype: str) -> dict[str, Any]:
  """Returns the config.json that describes a network.

  Args:
    config: the network.
    dtype: dtype of the tensors beside it, 'float32' or 'bfloat16'.

  Raises:
    UnsupportedModel: no released family has this combination of options.
  """
  for model_type, family in _FAMILIES.items():  # noqa: B007 (read after the loop)
    if (family.qkv_bias, family.qk_norm) == (config.qkv_bias, config.qk_norm):
      break
  else:
    raise UnsupportedModel(
      'no released family has both qkv_bias and qk_norm: such a model cannot'
      ' be written in the Hugging Face layout'
    )
  return {
    'architectures': [family.architecture],
    'model_type': model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.d_model,
    'intermediate_size': config.d_ff,
    'num_hidden_layers': config.n_layers,
    'num_attention_heads': config.n_heads,
    'num_key_value_heads': config.n_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': config.max_positions,
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'rope_scaling': _rope_dict(config.rope_scaling),
    'tie_word_embeddings': config.tie_embeddings,
    'torch_dtype': dtype,
  }


def _rope_dict(scaling: model.RopeScaling | None) -> dict[str, Any] | None:
  if scaling is None:
    return None
  if scaling.kind == 'divisors':
    raise UnsupportedModel(
      'rope_scaling by divisors (from a GGUF file) has no config.json'
    )
  names = ['factor', 'original_max_position_embeddings']
  if scaling.kind == 'llama3':
    names += ['low_freq_factor', 'high_freq_factor']
  else:
    names += ['beta_fast', 'beta_slow', 'attention_factor']
  fields = {k: getattr(scaling, _ROPE_NAMES[k]) for k in names}
  fields = {k: v for k, v in fields.items() if v is not None}
  return {'rope_type': scaling.kind, **fields}


def tensor_names(config: model.ModelConfig) -> dict[str, tuple[str, str]]:
  """Maps each of our parameters to the released name and its layout.

  Returns:
    Our name ('layers.mlp.up.kernel') -> (released name, with '{}' for the
    layer where there is one; layout). A layout is an einsum-like pair of axes,
    theirs -> ours, where an axis in brackets is a merged one: a released
    q_proj.weight is [(heads head_dim), embed], ours [embed, heads, head_dim].
  """
  names = {
    'embedding': ('model.embed_tokens.weight', 'vd->vd'),
    'final_norm.scale': ('model.norm.weight', 'd->d'),
    'layers.attention_norm.scale': ('input_layernorm.weight', 'd->d'),
    'layers.mlp_norm.scale': ('post_attention_layernorm.weight', 'd->d'),
    'layers.attention.o.kernel': ('self_attn.o_proj.weight', 'd(he)->hed'),
    'layers.mlp.gate.kernel': ('mlp.gate_proj.weight', 'fd->df'),
    'layers.mlp.up.kernel': ('mlp.up_proj.weight', 'fd->df'),
    'layers.mlp.down.kernel': ('mlp.down_proj.weight', 'df->fd'),
  }
  for p in 'qkv':
    names[f'layers.attention.{p}.kernel'] = (f'self_attn.{p}_proj.weight', '(he)d->dhe')
    if config.qkv_bias:
      names[f'layers.attention.{p}.bias'] = (f'self_attn.{p}_proj.bias', '(he)->he')
  if config.qk_norm:
    for p in 'qk':
      names[f'layers.attention.{p}_norm.scale'] = (f'self_attn.{p}_norm.weight', 'e->e')
  if not config.tie_embeddings:
    names['head'] = ('lm_head.weight', 'vd->dv')
  return {
    ours: (
      f'model.layers.{{}}.{theirs}' if ours.startswith('layers.') else theirs,
      layout,
    )
    for ours, (theirs, layout) in names.items()
  }
