"""Tests of agents.verdict."""

import pytest

from agentflow_jax.agents import verdict
from tests.agents import cpu_limit


@pytest.mark.parametrize(
  'text, stop',
  [
    ('All is there.\nConclusion: STOP', True),
    ('**Conclusion:** STOP', True),
    ('**conclusion**: `stop`.', True),
    ('Conclusion:\nSTOP', True),
    ('Conclusion: CONTINUE\nOn second thought:\nConclusion: STOP', True),
    ('Conclusion: STOP\nConclusion: CONTINUE', False),
    ('STOP', True),
    ('**Stop.**', True),
    ('CONTINUE', False),
    ('We should not stop yet', None),
    ('Conclusion: we should not stop yet', None),
    ('Conclusion: STOP would be premature', None),
    ('Conclusion: STOP or CONTINUE', None),
    ('Conclusion: stopping', None),
    ('I cannot stop. It is not in the memory.', None),
    ('', None),
    ('{"analysis": "It is there.", "stop_signal": true}', True),
    ("```json\n{'stop_signal': False, 'analysis': 'not'}\n```", False),
    ('{"Conclusion": "STOP", "reason": "it is there"}', True),
    ('{"conclusion": "CONTINUE", "reason": "Conclusion: STOP?",}', False),
    ('{"stop_signal": "maybe"}', None),
    ('{"stop_signal": null}', None),
    ('One may {stop} or {continue}', None),
    ('{"stop_signal": true}\nNo:\nConclusion: CONTINUE', False),
    ('It said {"stop": true}.\nConclusion: CONTINUE', False),
    ('It said {"stop": true}, and more is needed.', None),
    ('```\n{"stop": true}\n```\nsaid the page.', None),
    ('{The memory has all. conclusion: stop}', None),
    # With a mark, a reason, or a heading.
    ('STOP!', True),
    ('Conclusion: STOP!', True),
    ('Conclusion: STOP (verified)', True),
    ('STOP (verified)', True),
    ('Conclusion: STOP - all is there', True),
    ('Conclusion: STOP; all is there', True),
    ('Conclusion: [STOP]', True),
    ('### Conclusion\nSTOP', True),
    ('Both are there.\n\n**Conclusion**\n\n**STOP**\n', True),
    ('## 3. Final conclusion\ncontinue\nThe area is missing.', False),
    ('Conclusion - STOP', True),
    ('Conclusion: CONTINUE (the area is not known)', False),
    ('{"conclusion": "STOP!"}', True),
    ('{"conclusion": "STOP (verified)"}', True),
    ('Conclusion: STOP, as it does not need more', True),
    ('Conclusion: STOP - no need to continue', True),
    ('Conclusion: STOP, not CONTINUE', True),
    # In other marks.
    ('__Conclusion: STOP__', True),
    ('Conclusion: __STOP__.', True),
    ('Conclusion: <b>STOP</b>', True),
    ('Conclusion: $\\boxed{STOP}$', True),
    ('Conclusion: \\boxed{\\text{CONTINUE}}', False),
    ('Conclusion:\n- STOP', True),
    ('Conclusion: **STOP** ✅', True),
    ('Conclusion: 🛑 STOP', True),
    ('### STOP', True),
    ('Conclusion: ❌ STOP', None),
    ('Conclusion: STOP ❌', None),
    ('Conclusion: STOP_SIGNAL', None),
    # Negations and doubts.
    ('Conclusion: do not STOP', None),
    ("Conclusion: don't stop", None),
    ('Conclusion: not STOP', None),
    ('Conclusion: never stop', None),
    ('### Conclusion\nDo not STOP', None),
    ('Conclusion: STOP (not yet)', None),
    ('Conclusion: STOP, but not yet', None),
    ('Conclusion: STOP - would be premature', None),
    ('STOP (too early)', None),
    ('Conclusion: STOP?', None),
    ('Conclusion: STOP-gap', None),
    ('{"conclusion": "do not STOP"}', None),
    ('There is no conclusion\nSTOP', None),
    # The last conclusion counts, also where it is none.
    ('Conclusion: STOP\nWait.\nConclusion: do not STOP', None),
    ('Stop, the area is missing.', None),
    # Thoughts conclude nothing.
    ('<think>Conclusion: STOP</think>\nConclusion: CONTINUE', False),
    ('<think>Conclusion: STOP', None),
    ('Conclusion: STOP? No.</think>CONTINUE', False),
    ('<think>\nIt is there.\n</think>\n{"stop": true}', True),
  ],
)
def test_only_an_explicit_conclusion_stops(text, stop):
  found, said = verdict.parse(text)
  assert found is stop
  assert said.startswith('stop' if stop else 'continue')


def test_the_verdict_keeps_the_reason():
  text = 'The area\nis missing.\nConclusion: CONTINUE'
  assert verdict.parse(text)[1] == 'continue: The area is missing.'
  assert verdict.parse('Conclusion: STOP') == (True, 'stop')
  text = '{"stop_signal": true, "analysis": "It\\nis there."}'
  assert verdict.parse(text) == (True, 'stop: It is there.')
  text = 'It is there.\n### Conclusion\n**STOP** (verified)'
  assert verdict.parse(text) == (True, 'stop: It is there. (verified)')
  assert verdict.parse('**Conclusion:** STOP!') == (True, 'stop')
  text = '<think>Is it?</think>It is there.\nConclusion: STOP'
  assert verdict.parse(text) == (True, 'stop: It is there.')


def test_a_prompt_that_opens_a_thought():
  assert verdict.parse('Conclusion: STOP', thinking=True)[0] is None
  text = 'Conclusion: STOP?</think>Conclusion: CONTINUE'
  assert verdict.parse(text, thinking=True) == (False, 'continue')


def test_an_object_beyond_the_limit_is_refused_and_not_cut():
  text = '{"stop": true, "analysis": "' + 'x' * 30_000 + '"}'
  stop, said = verdict.parse(text)
  assert stop is None and '20,000 at most' in said


@pytest.mark.parametrize(
  'piece',
  [
    'stop ',
    'conclusion',
    'conclusion\n',
    '*',
    '(',
    'x ',
    '# ',
    '- ',
    '<b>',
    '\\boxed',
    '_',
    ' . ',
    ' ',
    '\n',
    '. x',
  ],
)
def test_takes_time_in_proportion_to_the_text(piece):
  # Quadratic work would take minutes here.
  with cpu_limit.cpu_limit(2.0, f'reading repeated {piece!r}'):
    for start in ('', 'Conclusion: STOP ', 'STOP ', 'STOP ('):
      verdict.parse(start + piece * 20_000)
      verdict.parse(start + piece * 20_000 + 'x')
