"""Tests of agents.verdict."""

import pytest

from agentflow_jax.agents import verdict


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
