"""An agent that a run starts for each rollout: it asks twice and prints its answer.

`openai.OpenAI()` reads OPENAI_BASE_URL and OPENAI_API_KEY, too: any framework that
speaks to OpenAI's API works without a change.
"""

import os

import httpx

model = httpx.Client(base_url=os.environ['OPENAI_BASE_URL'], timeout=600)


def ask(messages):
  asked = {'model': os.environ['AGENTFLOW_MODEL'], 'messages': messages}
  got = model.post('/chat/completions', json=asked).raise_for_status()
  return got.json()['choices'][0]['message']


messages = [{'role': 'user', 'content': os.environ['AGENTFLOW_QUERY']}]
messages.append(ask(messages))
messages.append({'role': 'user', 'content': 'Say the answer again, in a few words.'})
print(ask(messages)['content'])
