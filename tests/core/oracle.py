"""NumPy float64 oracles, written from the equations and not from the code."""

import numpy as np


def transformer(config, params, token_ids, positions, segment_ids):
  """Returns float64 logits [B, T, V] of the whole network, head by head."""
  p = _float64(params)
  layers = p['layers']
  x = p['embedding'][token_ids]
  batch, length = token_ids.shape
  group = config.n_heads // config.n_kv_heads
  for n in range(config.n_layers):
    layer = _take(layers, n)
    attention = layer['attention']
    y = _rms_norm(x, layer['attention_norm']['scale'], config.norm_eps)
    projected = {}
    for name in 'qkv':
      z = np.einsum('btd,dhe->bthe', y, attention[name]['kernel'])
      if config.qkv_bias:
        z = z + attention[name]['bias']
      if config.qk_norm and name != 'v':
        z = _rms_norm(z, attention[name + '_norm']['scale'], config.norm_eps)
      if name != 'v':
        z = _rotate(z, positions, config)
      projected[name] = z
    out = np.zeros((batch, length, config.n_heads, config.head_dim))
    for b in range(batch):
      for h in range(config.n_heads):
        q = projected['q'][b, :, h]
        k = projected['k'][b, :, h // group]
        v = projected['v'][b, :, h // group]
        for i in range(length):
          seen = [
            j for j in range(i + 1) if segment_ids[b, j] == segment_ids[b, i] != 0
          ]
          if not seen:
            continue
          s = k[seen] @ q[i] / np.sqrt(config.head_dim)
          w = np.exp(s - s.max())
          out[b, i, h] = (w / w.sum()) @ v[seen]
    x = x + np.einsum('bthe,hed->btd', out, attention['o']['kernel'])
    y = _rms_norm(x, layer['mlp_norm']['scale'], config.norm_eps)
    mlp = layer['mlp']
    gate = y @ mlp['gate']['kernel']
    x = (
      x
      + (gate / (1 + np.exp(-gate)) * (y @ mlp['up']['kernel']))
      @ (mlp['down']['kernel'])
    )
  x = _rms_norm(x, p['final_norm']['scale'], config.norm_eps)
  return x @ (p['embedding'].T if config.tie_embeddings else p['head'])


def ends(segment_ids):
  """Returns subtree_end of segments side by side: one past each one's last."""
  segment_ids = np.asarray(segment_ids)
  result = np.zeros_like(segment_ids, dtype=np.int32)
  for row, segments in zip(result, segment_ids, strict=True):
    for segment in set(segments) - {0}:
      at = np.flatnonzero(segments == segment)
      row[at] = at[-1] + 1
  return result


def log_prob_of(logits, targets, temperature, keep=None):
  """Returns float64 log softmax(logits / temperature) over the kept set."""
  z = np.asarray(logits, np.float64) / np.asarray(temperature)[..., None]
  if keep is not None:
    z = np.where(keep, z, -np.inf)
  top = z.max(axis=-1, keepdims=True)
  z = z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
  return np.take_along_axis(z, targets[..., None], axis=-1)[..., 0]


def _rms_norm(x, scale, eps):
  return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale


def _rotate(x, positions, config):
  """Rotates (x_i, x_{i + E/2}) by position * theta^(-2i/E), as complex."""
  half = config.head_dim // 2
  frequency = config.rope_theta ** (-2.0 * np.arange(half) / config.head_dim)
  turn = np.exp(1j * positions[:, :, None, None] * frequency)
  z = (x[..., :half] + 1j * x[..., half:]) * turn
  return np.concatenate([z.real, z.imag], axis=-1)


def _float64(tree):
  if isinstance(tree, dict):
    return {name: _float64(leaf) for name, leaf in tree.items()}
  return np.asarray(tree, np.float64)


def _take(tree, index):
  if isinstance(tree, dict):
    return {name: _take(leaf, index) for name, leaf in tree.items()}
  return tree[index]


def entropy_of(logits, temperature):
  """The entropy, in nats, of softmax(logits / temperature)."""
  z = np.asarray(logits, np.float64) / np.asarray(temperature)[..., None]
  z = z - z.max(axis=-1, keepdims=True)
  p = np.exp(z)
  p /= p.sum(axis=-1, keepdims=True)
  return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)
