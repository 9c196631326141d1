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
    while (got := run.post('/tasks')).status_code != 410:  # The run has ended.
      if got.status_code == 200:  # Otherwise there is no task at the moment.
        pool.submit(solve, run, got.json())


if __name__ == '__main__':
  main(sys.argv[1])
