"""What a verifier writes, and a parser that only an explicit word satisfies."""

import re

from agentflow_jax.agents import lenient_json, thoughts

# 'Conclusion:' anywhere, or a heading that has its line for itself.
_HEADER = (
  r'(?:conclusion[*_`"\' \t]*[:=：]'
  r'|^[ \t>#*_`"\'•-]*(?:\d{1,2}[.)][ \t]*)?(?:final[ \t]+)?'
  r'conclusion[#*_`"\' \t]*(?:[-–—](?=[ \t])|$))'
)
# Marks around the word: emphasis, brackets, a list's dash, TeX boxes, and signs
# that agree with it.
_LEFT = (
  r'(?:<(?:b|strong)>|[\s*_`"\'(\[<$#>✅✔☑🛑\ufe0f]'
  r'|(?P<boxed>\\(?:boxed|text\w*)\{)|[-•]\s)*+'
)
_RIGHT = r'(?(boxed)\}*)(?:[*_`"\' \t\])>$✅✔☑🛑\ufe0f]|</(?:b|strong)>)*+'
# The word, and behind it nothing but punctuation or a reason: 'STOP would be too
# early' concludes nothing.
_WORD = (
  rf'{_LEFT}(?P<word>stop|continue)(?![^\W_]|_+[^\W_]){_RIGHT}'
  rf'(?:[.!]+{_RIGHT}|(?=[,;:(–—]|-\s|$))'
)
_CONCLUSION = re.compile(_HEADER, re.IGNORECASE | re.MULTILINE)
_CONCLUDED = re.compile(_WORD, re.IGNORECASE | re.MULTILINE)
_WHOLE = re.compile(_HEADER + _WORD, re.IGNORECASE | re.MULTILINE)
# A text that is the word alone, and perhaps a reason in brackets.
_ALONE = re.compile(
  rf'{_LEFT}(?P<word>stop|continue)(?![^\W_]|_+[^\W_]){_RIGHT}'
  rf'(?:[\s.!]{_RIGHT})*+'
  r'(?P<rest>\([^()]*\)[\s*_`"\'.!]*)?',
  re.IGNORECASE,
)
# Words that take STOP back in its own sentence: 'STOP, but not yet'.
_DOUBT = re.compile(
  r'\W*(?:no\b\W*(?:$|\n)|(?:not|never)\b(?!\W+continue))'
  r'|[^.!\n]*?\b(?:not\s+(?:yet|now|until|sure|certain|verified|confirmed)'
  r'|unless|if|but|or|maybe|perhaps|would|premature|early)\b',
  re.IGNORECASE,
)
_WORDS = {'true': True, 'stop': True, 'false': False, 'continue': False}


def parse(text: str, thinking: bool = False) -> tuple[bool | None, str]:
  """Reads a verifier's text: (stop, verdict); stop is None for no conclusion.

  Only the last 'Conclusion: STOP' or 'Conclusion: CONTINUE' counts, or a text
  that is the one word, or one that is a JSON object and nothing besides, with
  stop_signal, stop or conclusion. A reason may follow the word: 'STOP
  (verified)'. 'We should not stop yet' and 'STOP, but not yet' are no
  conclusions, and quotations are none. Thoughts are not read (agents.thoughts).

  Args:
    text: the verifier's text; anything at all.
    thinking: whether the prompt ended inside an open thought.
  """
  text = thoughts.said(text, thinking)
  if lenient_json.is_whole(text):
    stop, reason = _from_json(text)
  elif headers := list(_CONCLUSION.finditer(text)):
    stop = _read(text, _CONCLUDED.match(text, headers[-1].end()))
    reason = text if stop is None else _WHOLE.sub(' ', text)
  else:
    alone = _ALONE.fullmatch(text)
    stop = _read(text, alone)
    reason = text if stop is None or alone is None else alone['rest'] or ''
  verdict = 'stop' if stop else 'continue'
  reason = ' '.join(reason.split())
  if not reason.strip('#*_`"\' '):
    reason = ''
  return stop, f'{verdict}: {reason}' if reason else verdict


def _read(text: str, match: re.Match[str] | None) -> bool | None:
  """Returns whether a word says stop; None if it is missing or taken back."""
  if match is None:
    return None
  stop = _WORDS[match['word'].lower()]
  end = match.end('word')
  return None if stop and _DOUBT.match(text, end) else stop


def _from_json(text: str) -> tuple[bool | None, str]:
  """Reads a verdict that is JSON: whether to stop, and why."""
  try:
    found = lenient_json.find(text, {'stop_signal', 'stop', 'conclusion'}) or {}
  except ValueError as e:
    return None, f'the verdict cannot be read: {e}'
  values = [found.get(n) for n in ('stop_signal', 'stop', 'conclusion')]
  value = str(next((v for v in values if v is not None), ''))
  word = value.strip(' *."`\'!').lower()
  if word in ('true', 'false'):
    stop = _WORDS[word]
  else:
    stop = _read(value, _ALONE.fullmatch(value))
  reasons = (found.get(n) for n in ('reason', 'analysis', 'explanation'))
  said = next((r for r in reasons if isinstance(r, str)), '')
  return stop, ' '.join(said.split())
