"""Tries chat templates in a child process with limits on time and memory.

A chat template comes with a model's files. It is a program of somebody else, which may
loop for ever or ask for all memory. So a child process compiles and renders a template
before this process compiles it.
"""

import asyncio
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from agentflow_jax.agents import child, language_model
from agentflow_jax.tokenization import chat, jinja_environment

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'template_worker.py')


def check(
  source: str,
  added: Sequence[chat.AddedToken],
  variables: Mapping[str, Any],
  thinking: chat.Thinking,
  limits: child.Limits = child.Limits(),
) -> None:
  """Compiles and renders a template in a child process.

  Args:
    source: source of the template.
    added: added tokens, as ChatTemplate takes them.
    variables: variables that the template may read beside the messages.
    thinking: value of the template's switch for thinking.
    limits: limits on the time of the child process.

  Raises:
    TemplateError: the template does not compile, cannot switch thinking, takes
      too much time or memory, or the child process does not start.
    ModuleNotFoundError: the package jinja2 is not installed.
  """
  jinja_environment.check_installed()
  request = {
    'source': source,
    'added': [dataclasses.astuple(token) for token in added],
    'variables': dict(variables),
    'thinking': thinking,
  }
  if error := _error_of(json.dumps(request), limits):
    raise chat.TemplateError(error)


@functools.lru_cache(maxsize=32)
def _error_of(request: str, limits: child.Limits) -> str:
  """Returns what is wrong with a template, as JSON of the worker; '' for nothing."""

  async def ask():
    worker = child.Child(_WORKER, limits)
    try:
      return await worker.ask(json.loads(request))
    finally:
      await worker.aclose()

  try:
    # On a thread of its own: this one may run an event loop already.
    with futures.ThreadPoolExecutor(1) as pool:
      return pool.submit(asyncio.run, ask()).result()['error']
  except child.Broken as e:
    return (
      f'the chat template takes too much time or memory to render one message ({e})'
    )
  except language_model.Unreachable as e:
    raise chat.TemplateError(f'the chat template cannot be tried: {e}') from e
