"""Records what tools and endpoints answered, and replays it without them.

An answer is named by all that it depends on: what was asked, of which version of
the tool, the request key (contract 4), the occasion (which evaluation), and how
often that was asked before. A run that records asks nothing twice under one name,
so one that is killed and goes on sees the same answers, too.

Answers lie as JSON lines in one file a process and start; a torn last line is
dropped.
"""

import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents.endpoints import client
from agentflow_jax.files import reading

# Part of every name: raise it when the meaning of a request or answer changes.
_SCHEMA = 1
_ERRORS: Mapping[str, type[Exception]] = {
  'PromptTooLong': language_model.PromptTooLong,
  'Refused': client.Refused,
  'Unreachable': language_model.Unreachable,
}
_SHOWN = 300
# Of a call whose caller was cancelled before it was answered.
_CANCELLED = {'cancelled': True}

_occasion: contextvars.ContextVar[str] = contextvars.ContextVar('occasion', default='')


class Miss(Exception):
  """A replayed run asks what was not recorded; names the call."""


class RecordingError(ValueError):
  """A directory that holds no recording, or cannot; names it."""


@contextlib.contextmanager
def during(occasion: str) -> Iterator[None]:
  """Names what is asked inside: evaluations have their request keys in common."""
  outer = _occasion.get()
  token = _occasion.set(f'{outer}: {occasion}' if outer else occasion)
  try:
    yield
  finally:
    _occasion.reset(token)


class Recording:
  """Answers in a directory, recorded or replayed.

  Use it from one event loop.

  Args:
    directory: directory of the files, which is made when recording where it is absent.
    replays: whether answers come from there only.
    process: index of this process in a run of several; each writes a file of its own.

  Raises:
    RecordingError: the directory cannot be written, or holds nothing to replay.
  """

  def __init__(self, directory: str, *, replays: bool, process: int = 0):
    self.replays = replays
    self._directory = pathlib.Path(directory)
    self._asked: collections.Counter[str] = collections.Counter()
    self._file = None
    # Name -> (path, offset, length): answers themselves stay on disk.
    self._index: dict[str, tuple[pathlib.Path, int, int]] = {}
    try:
      if not replays:
        self._directory.mkdir(parents=True, exist_ok=True)
      paths = sorted(self._directory.glob('*.jsonl'))
      for path in paths:
        self._index.update(_read(path))
      if replays and not paths:
        raise RecordingError(
          f'nothing to replay in {directory}: record a run with'
          ' --recording=record first, and name its directory'
        )
      if not replays:
        self._path = self._directory / f'{len(paths):04d}.{process}.jsonl'
        self._file = self._path.open('xb')
    except OSError as e:
      raise RecordingError(
        f'{directory} cannot hold a recording: {e}; it has to be a local directory'
      ) from e

  def __len__(self) -> int:
    return len(self._index)

  async def tool_result(
    self,
    key: records.RequestKey,
    call: records.ToolCall,
    version: str,
    make: Callable[[], Awaitable[records.ToolResult]],
  ) -> records.ToolResult:
    """Returns a call's recorded result, or makes it, where that is allowed.

    Args:
      key: request key of the call.
      call: the tool and its arguments.
      version: version of the tool.
      make: function that makes the call.

    Raises:
      Miss: it is not recorded, and this is a replay.
    """
    asked = {'tool': call.tool, 'arguments': dict(call.arguments), 'version': version}
    name, found = await self._find(asked, key)
    if found is not None:
      error = found['error'] and records.ToolErrorKind(found['error'])
      # Who records tries again what failed for a reason of the host's.
      if self.replays or error is not records.ToolErrorKind.UNREACHABLE:
        fields: dict[str, Any] = found | {'error': error}
        return records.ToolResult(**fields)
    with self._noting_cancellation(name, asked, key):
      result = await make()
    value = dataclasses.asdict(result)
    del value['inner']  # A tool without state runs no program of calls.
    value['error'] = result.error and result.error.value
    self._write(name, asked, key, value)
    return result

  def fact(self, what: str, make: Callable[[], Any]) -> Any:
    """Returns something that a run finds out at its start, recorded by its name.

    Args:
      what: its name.
      make: finds it out; JSON. Called by whoever records, each time.

    Raises:
      Miss: it is not recorded, and this is a replay.
    """
    asked = {'fact': what}
    name = _digest([_SCHEMA, asked])
    if not self.replays:
      value = make()
      self._write(name, asked, None, value)
      return value
    if name not in self._index:
      raise Miss(
        f'not in the recording {self._directory}: {what}; replay the same'
        ' command that was recorded'
      )
    return self._value(name)

  def model(self, model: language_model.LanguageModel, version: str) -> 'RecordedModel':
    """Returns a language model whose answers are recorded, or replayed.

    Args:
      model: language model that is asked where an answer is not recorded; in replay it
        only counts tokens.
      version: everything that its answers depend on besides the request, as text.
    """
    return RecordedModel(self, model, version)

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()
      self._file = None

  @contextlib.contextmanager
  def _noting_cancellation(self, name, asked, key) -> Iterator[None]:
    try:
      yield
    except asyncio.CancelledError:
      if self._file is not None:
        self._write(name, asked, key, _CANCELLED)
      raise

  async def _find(
    self, asked: Mapping[str, Any], key: records.RequestKey
  ) -> tuple[str, dict[str, Any] | None]:
    """Returns a request's name, and its answer if there is one.

    One that was cancelled is asked again by who records, and in a replay waits for
    what cancelled it then: it never returns.
    """
    what = [_SCHEMA, asked, _plain(key), _occasion.get()]
    base = _digest(what)
    times = self._asked[base]
    self._asked[base] += 1
    name = _digest([base, times])
    if name in self._index:
      value = self._value(name)
      if value != _CANCELLED:
        return name, value
      if self.replays:
        await asyncio.Event().wait()
    if self.replays:
      shown = json.dumps(asked, ensure_ascii=False, default=str)
      raise Miss(
        f'not in the recording {self._directory}: {shown[:_SHOWN]}, asked'
        f' {times + 1} time(s) by {key.module} in turn {key.turn} of rollout'
        f' {key.rollout} of {key.query!r} ({key.purpose.value}, step'
        f' {key.step}{", " + _occasion.get() if _occasion.get() else ""});'
        ' replay the same command that was recorded, or record it anew with'
        ' --recording=record'
      )
    return name, None

  def _value(self, name: str) -> Any:
    path, offset, length = self._index[name]
    with path.open('rb') as file:
      return json.loads(os.pread(file.fileno(), length, offset))['value']

  def _write(self, name, asked, key, value) -> None:
    line = {
      'name': name,
      'asked': asked,
      'key': key and _plain(key),
      'occasion': _occasion.get(),
      'value': value,
    }
    data = json.dumps(line).encode() + b'\n'
    assert self._file is not None
    offset = self._file.tell()
    self._file.write(data)
    self._file.flush()
    self._index[name] = self._path, offset, len(data)


class RecordedModel:
  """A language model behind a `Recording`; see `Recording.model`."""

  def __init__(self, recording, model, version):
    self._recording, self._model = recording, model
    self._version = version

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)  # usage, aclose

  def count_tokens(
    self, prompt: tuple[records.Segment, ...], tools: Sequence[Mapping[str, Any]] = ()
  ) -> int:
    """Estimates tokens, as the model behind it does."""
    return self._model.count_tokens(prompt, *([tools] if tools else []))

  async def generate(
    self,
    prompt: tuple[records.Segment, ...],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> records.Completion:
    """Returns the recorded completion, or asks; raises what the model raises.

    Raises:
      Miss: it is not recorded, and this is a replay.
    """
    recording = self._recording
    asked = {
      'model': self._version,
      'prompt': [
        [s.role, s.text, *([c.tool, dict(c.arguments)] for c in s.calls)]
        for s in prompt
      ],
      'sampling': dataclasses.asdict(sampling),
    }
    with_tools = {'tools': list(tools)} if tools else {}
    asked |= with_tools
    name, found = await recording._find(asked, request_key)
    if found is not None:
      error = found.get('error')
      if not error:
        return records.Completion(**found)
      # Another key, or a server that was mended, may answer who records.
      if recording.replays or error == 'PromptTooLong':
        raise _ERRORS[error](found['message'])
    try:
      with recording._noting_cancellation(name, asked, request_key):
        completion = await self._model.generate(
          prompt, sampling, request_key, **with_tools
        )
    except tuple(_ERRORS.values()) as e:
      value = {'error': type(e).__name__, 'message': str(e)}
      recording._write(name, asked, request_key, value)
      raise
    value = {'text': completion.text, 'finish_reason': completion.finish_reason}
    value |= {'thoughts': completion.thoughts} if completion.thoughts else {}
    value |= {'thinking': True} if completion.thinking else {}
    recording._write(name, asked, request_key, value)
    return completion


def _read(path: pathlib.Path) -> dict[str, tuple[pathlib.Path, int, int]]:
  """Returns where a file's answers lie; what follows a torn line is dropped.

  Raises:
    RecordingError: a line in its midst is no answer.
  """
  index = {}
  try:
    for line in reading.json_lines(path, may_be_torn=True, allows_nan=True):
      if not isinstance(line.value, dict) or 'name' not in line.value:
        raise reading.FileError(f'{line.where}: no object with a name')
      index[line.value['name']] = path, line.start, line.length
  except reading.FileError as e:
    raise RecordingError(
      f'{e}; this is not a recorded answer: delete the file, or restore it'
    ) from e
  return index


def _plain(key: records.RequestKey) -> dict[str, Any]:
  return dataclasses.asdict(key) | {'purpose': key.purpose.value}


def _digest(value: Any) -> str:
  # ASCII: a lone surrogate of a model's has a digest, too.
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:32]
