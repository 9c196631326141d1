"""A driver: takes the tasks of a run, solves them, and rewards what it likes.

python experiments/served_agents/driver.py WORKDIR/served/p0.json
"""

import json
import sys
from concurrent import futures

import httpx


def solve(run: httpx.Client, said: dict) -> None:
  """Solves one task in its session, of which the agent knows the base URL alone."""
  asked = {'messages': [{'role': 'user', 'content': said['task']['query']}]}
  agent = httpx.Client(base_url=said['base_url'], timeout=600)
  got = agent.post('/chat/completions', json=asked | {'model': said['model']})
  answer = got.raise_for_status().json()['choices'][0]['message']['content']
  is_right = any(text.lower() in answer.lower() for text in said['task']['answers'])
  body = {'answer': answer, 'reward': float(is_right) - 0.001 * len(answer)}
  run.post(f'/sessions/{said["session"]}/reward', json=body)


def main(path: str) -> None:
  with open(path) as file:
    where = json.load(file)
  key = {'Authorization': f'Bearer {where["driver_key"]}'}
  with (
    httpx.Client(base_url=where['url'], headers=key, timeout=90) as run,
    futures.ThreadPoolExecutor(64) as pool,
  ):
    # Status 410 says that the run has ended; an empty list, that there is no task yet.
    while (got := run.post('/tasks', json={'most': 64})).status_code == 200:
      for said in got.json()['tasks']:
        pool.submit(solve, run, said)


if __name__ == '__main__':
  main(sys.argv[1])
