"""What a verifier writes, and a parser that only an explicit word satisfies."""

import re

from agentflow_jax.agents import lenient_json

# Nothing but punctuation follows: 'STOP would be too early' concludes nothing.
_CONCLUSION = re.compile(
    r'conclusion[*_`"\' \t]*[:=：][*_`"\'\s]*(stop|continue)'
    r'(?=[*_`"\' \t]*(?:[.,;:!]|$))',
    re.IGNORECASE | re.MULTILINE,
)
_WORDS = {'true': True, 'stop': True, 'false': False, 'continue': False}


def parse(text: str) -> tuple[bool | None, str]:
  """Reads a verifier's text: (stop, verdict); stop is None for no conclusion.

  Only the last 'Conclusion: STOP' or 'Conclusion: CONTINUE' counts, or a text
  that is the one word, or one that is a JSON object and nothing besides, with
  stop_signal, stop or conclusion. 'We should not stop yet' is no conclusion,
  and what a text quotes is none.
  """
  if lenient_json.is_whole(text):
    stop, reason = _from_json(text)
    verdict = 'stop' if stop else 'continue'
    return stop, f'{verdict}: {reason}' if reason else verdict
  found = _CONCLUSION.findall(text)
  word = (found[-1] if found else text.strip(' \n*."`\'')).lower()
  reason = ' '.join(_CONCLUSION.sub('', text).split())
  stop = {'stop': True, 'continue': False}.get(word)
  if stop is not None and reason.lower().strip('*."`\'') == word:
    reason = ''
  verdict = 'stop' if stop else 'continue'
  return stop, f'{verdict}: {reason}' if reason else verdict


def _from_json(text: str) -> tuple[bool | None, str]:
  """Reads a verdict that is JSON: whether to stop, and why."""
  found = lenient_json.find(text, {'stop_signal', 'stop', 'conclusion'}) or {}
  values = [found.get(n) for n in ('stop_signal', 'stop', 'conclusion')]
  value = next((v for v in values if v is not None), '')
  word = str(value).strip(' *."`\'').lower()
  stop = _WORDS.get(word)
  reasons = (found.get(n) for n in ('reason', 'analysis', 'explanation'))
  said = next((r for r in reasons if isinstance(r, str)), '')
  return stop, ' '.join(said.split())
