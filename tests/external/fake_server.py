"""A server on the loopback that samples like vLLM or SGLang, or fails as it is told.

Its weights are a table of logits, one row for each token before: 'weights.npy' in the
directory that it loads.
"""

import contextlib
import http.server
import json
import pathlib
import socket
import threading

import numpy as np


class Table:
  """Logits [V, V] of the next token by the last one."""

  def __init__(self, table):
    self.table = np.asarray(table, np.float64)

  def load(self, path):
    self.table = np.load(pathlib.Path(path) / 'weights.npy')

  def logits(self, ids):
    """Returns [T, V]: of the token behind each place."""
    return self.table[np.asarray(ids)]


def log_softmax(logits):
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class FakeServer:
  """Use it as a context manager.

  Attributes:
    url: its address.
    requests: (path, body) of every request.
    faults: names of what goes wrong: 'old_weights' (says that it loaded, and did
      not), 'old_label', 'wrong_prompt', 'wrong_ids', 'missing_logprobs',
      'raw_logprobs' (not those of the temperature), 'cut_body', 'short' (ends for its
      length too early), 'no_stop', 'beyond_stop', 'outside', 'loading' (503), 'dead'
      (closes every connection), 'no_cache_reset', 'refuses' (400), 'no_sets'.
    loaded: path of the directory that was loaded last.
  """

  def __init__(self, policy, kind='vllm'):
    self.policy, self.kind = policy, kind
    self.requests, self.faults = [], set()
    self.label, self.loaded, self.adapters = 'default', '', {}
    self.paused = False
    self._rng = np.random.default_rng(0)
    self._lock = threading.Lock()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def do_GET(self):
        outer.handle(self, None)

      def do_POST(self):
        length = int(self.headers.get('Content-Length', 0))
        outer.handle(self, json.loads(self.rfile.read(length) or b'{}'))

      def log_message(self, *args):
        pass

    class Listening(http.server.ThreadingHTTPServer):
      daemon_threads = True
      request_queue_size = 128

    self._server = Listening(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'

  def handle(self, handler, body):
    with self._lock:
      self.requests.append((handler.path, body))
      if 'dead' in self.faults:
        handler.close_connection = True
        with contextlib.suppress(OSError):
          handler.connection.shutdown(socket.SHUT_RDWR)
        return
      status, answer = self._answer(handler.path, body)
    data = json.dumps(answer).encode() if answer is not None else b''
    length = len(data)
    if 'cut_body' in self.faults and 'generate' in handler.path:
      data = data[: len(data) // 2]
      handler.close_connection = True
    with contextlib.suppress(OSError):
      handler.send_response(status)
      handler.send_header('Content-Length', str(length))
      handler.end_headers()
      handler.wfile.write(data)

  def paths(self):
    return [path for path, _ in self.requests]

  def samples(self):
    """Bodies of the requests that sample, and are no proofs."""
    return [
      body
      for path, body in self.requests
      if 'generate' in path and not self._is_score(body)
    ]

  def _is_score(self, body):
    params = body['sampling_params']
    return 'prompt_logprobs' in params or body.get('logprob_start_len') == 0

  def _answer(self, path, body):
    if 'loading' in self.faults:
      return 503, {'error': 'the model is being loaded'}
    if path == '/health':
      return 200, None
    if 'refuses' in self.faults and 'generate' in path:
      return 400, {'error': 'the prompt is too long'}
    if path in ('/inference/v1/generate', '/generate'):
      score = self._is_score(body)
      model = body.get('model') or body.get('lora_path') or ''
      if self.adapters and model.startswith('v0') and model not in self.adapters:
        return 404, {'error': f'no model {model}'}
      ids = body.get('token_ids') or body.get('input_ids')
      return 200, self._scored(ids) if score else self._sampled(ids, body)
    if path in ('/pause?mode=wait', '/resume'):
      self.paused = path != '/resume'
      return 200, {'status': 'paused' if self.paused else 'resumed'}
    if path == '/collective_rpc':
      assert self.paused and body['method'] == 'reload_weights'
      return self._load(body['kwargs']['weights_path'], {'results': [None]})
    if path == '/reset_prefix_cache':
      return 200, {'success': 'no_cache_reset' not in self.faults}
    if path == '/update_weight_version':
      self._name(body['new_version'])
      return 200, {'success': True}
    if path == '/update_weights_from_disk':
      status, answer = self._load(body['model_path'], {'success': True, 'message': ''})
      self._name(body['weight_version'])
      return status, answer
    if path.endswith('load_lora_adapter'):
      name = body['lora_name']
      if 'unload' in path:
        if name not in self.adapters:
          return 404, {'error': f'no adapter {name}'}
        del self.adapters[name]
        return 200, {'success': True}
      self.adapters[name] = body['lora_path']
      return self._load(body['lora_path'], {'success': True})
    return 404, {'error': path}

  def _load(self, path, answer):
    self.loaded = path
    if 'old_weights' not in self.faults:
      self.policy.load(path)
    return 200, answer

  def _name(self, label):
    if 'old_label' not in self.faults:
      self.label = label

  def _sampled(self, prompt, body):
    params = body['sampling_params']
    most = params.get('max_tokens') or params['max_new_tokens']
    temperature, top_k = params['temperature'], max(params['top_k'], 0)
    stops = set(params['stop_token_ids'])
    ids, logprobs, whole, masks, reason = [], [], [], [], 'length'
    end = most
    if {'short', 'no_stop'} & self.faults:
      end = max(1, most - 1)
    while len(ids) < end:
      row = self.policy.logits([*prompt, *ids])[-1]
      scaled = row / (temperature or 1.0)
      all_scaled = scaled
      if top_k:
        kept = np.argsort(-scaled)[:top_k]
        hidden = np.full_like(scaled, -np.inf)
        hidden[kept] = scaled[kept]
        scaled = hidden
        masks.append([int(i) for i in kept])
      probs = np.exp(log_softmax(scaled))
      token = int(self._rng.choice(len(probs), p=probs / probs.sum()))
      ids.append(token)
      raw = 'raw_logprobs' in self.faults
      logprobs.append(float(log_softmax(row if raw else scaled)[token]))
      whole.append(float(log_softmax(row if raw else all_scaled)[token]))
      if token in stops and 'beyond_stop' not in self.faults:
        reason = 'stop'
        break
    if 'no_stop' in self.faults:
      reason = 'stop'
    if 'outside' in self.faults:
      ids[0] = 10**6
    if 'no_sets' in self.faults:
      masks = []
    return self._shaped(prompt, ids, logprobs, whole, masks, reason)

  def _shaped(self, prompt, ids, logprobs, whole, masks, reason):
    shown = list(prompt) + ([0] if 'wrong_prompt' in self.faults else [])
    scored = [i + ('wrong_ids' in self.faults) for i in ids]
    if self.kind == 'vllm':
      content = [
        {'token_id': i, 'logprob': x, 'rank': 1}
        for i, x in zip(scored, logprobs, strict=True)
      ]
      missing = 'missing_logprobs' in self.faults
      return {
        'prompt_token_ids': shown,
        'choices': [
          {
            'token_ids': ids,
            'finish_reason': reason,
            'logprobs': None if missing else {'content': content},
            'sampling_mask': masks or None,
            'weight_versions': [{'version': self.label, 'start': 0, 'end': len(ids)}],
          }
        ],
      }
    meta = {
      'prompt_tokens': len(shown),
      'finish_reason': {'type': reason},
      # Of the whole distribution, as SGLang's are.
      'output_token_logprobs': [
        [x, i, None] for i, x in zip(scored, whole, strict=True)
      ],
      'weight_version': self.label,
    }
    if masks:
      meta['output_token_sampling_mask'] = masks
      meta['output_token_sampling_logprobs'] = [[x] for x in logprobs]
    if 'missing_logprobs' in self.faults:
      del meta['output_token_logprobs']
    return {'output_ids': ids, 'meta_info': meta}

  def _scored(self, ids):
    rows = log_softmax(self.policy.logits(ids))
    found = [float(rows[i][token]) for i, token in enumerate(ids[1:])]
    if self.kind == 'vllm':
      places = [{str(i): {'logprob': x}} for i, x in zip(ids[1:], found, strict=True)]
      span = {'version': self.label, 'start': 0, 'end': 1}
      return {
        'prompt_token_ids': list(ids),
        'prompt_logprobs': [None, *places],
        'choices': [{'weight_versions': [span]}],
      }
    pairs = [[x, i, None] for i, x in zip(ids[1:], found, strict=True)]
    return {
      'output_ids': [0],
      'meta_info': {
        'prompt_tokens': len(ids),
        'finish_reason': {'type': 'length'},
        'input_token_logprobs': [[None, ids[0], None], *pairs],
        'weight_version': self.label,
      },
    }

  def __enter__(self):
    self._thread = threading.Thread(
      target=self._server.serve_forever, kwargs={'poll_interval': 0.02}
    )
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()
