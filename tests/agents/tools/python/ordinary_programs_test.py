"""Ordinary programs give the right output in each sandbox.

A program that monty's card does not cover (numpy, generators, ...) is marked.
"""

import asyncio

import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import python_tool

# (program, what it prints, whether monty's card covers it)
_PROGRAMS = [
    ('print(1 + 2)', '3', True),
    ('print(17 * 23, 7 // 2, 7 % 2, -7 // 2)', '391 3 1 -4', True),
    ('print(1234567.891 / 7)', '176366.84157142858', True),
    ('print(round(2.5), round(3.14159, 2), abs(-3))', '2 3.14 3', True),
    ('print(f"{1e6:,.1f}|{7:>3}|{0.125:.0%}")', '1,000,000.0|  7|12%', True),
    ('a = 1\nb = 2\nprint(a)\nprint(a + b)', '1\n3', True),
    ('def f(n):\n  return 1 if n < 2 else n * f(n - 1)\nprint(f(20))',
     '2432902008176640000', True),
    ('def even(n):\n  return True if n == 0 else odd(n - 1)\n'
     'def odd(n):\n  return False if n == 0 else even(n - 1)\nprint(even(10))',
     'True', True),
    ('import math\nprint(math.sqrt(2), math.comb(10, 3))',
     '1.4142135623730951 120', True),
    ('def area(r):\n  import math\n  return math.pi * r * r\nprint(area(1))',
     '3.141592653589793', True),
    ('print(sum(i * i for i in range(5)))', '30', True),
    ('print([i for i in range(20) if all(i % d for d in range(2, i))][2:])',
     '[2, 3, 5, 7, 11, 13, 17, 19]', True),
    ('print(sorted({"b": 2, "a": 1}.items(), key=lambda p: p[1]))',
     "[('a', 1), ('b', 2)]", True),
    ('words = "to be or not to be".split()\nfrom collections import Counter\n'
     'print(Counter(words).most_common(1))', "[('to', 2)]", True),
    ('import re\nprint(re.findall(r"[0-9]+", "a1b22"))', "['1', '22']", True),
    ('import json\nprint(json.dumps(json.loads("{\\"a\\": [1, 2]}")))',
     '{"a": [1, 2]}', True),
    ('import datetime\nprint(datetime.date(2024, 3, 1)'
     ' - datetime.date(2024, 2, 1))', '29 days, 0:00:00', True),
    ('import itertools\nprint(list(itertools.permutations([1, 2, 3]))[-1])',
     '(3, 2, 1)', True),
    ('import functools\nprint(functools.reduce(lambda a, b: a * b, [1, 2, 3]))',
     '6', True),
    ('from decimal import Decimal\nprint(Decimal("0.1") + Decimal("0.2"))',
     '0.3', True),
    ('try:\n  1 / 0\nexcept ZeroDivisionError as e:\n  print("no:", e)',
     'no: division by zero', True),
    ('class P:\n  def __init__(self, x):\n    self.x = x\n'
     '  def twice(self):\n    return 2 * self.x\nprint(P(4).twice())', '8',
     True),
    ('x = 10\nwhile x > 1:\n  x = x // 2 if x % 2 == 0 else 3 * x + 1\n'
     '  print(x, end=" ")', '5 16 8 4 2 1 ', True),
    ('a, *b = [1, 2, 3]\nprint(b, a)\nprint("x" * 3, "a,b".split(","))',
     "[2, 3] 1\nxxx ['a', 'b']", True),
    ('print(max([3, 9, 2]), min("hello"), sum([0.5, 0.25]))', '9 e 0.75', True),
    ('print(2 ** 200)',
     '1606938044258990275541962092341162602522202993782792835301376', True),
    ('print("é".upper(), len("日本"), "ß".encode())', "É 2 b'\\xc3\\x9f'",
     True),
    ('grid = [[0] * 3 for _ in range(3)]\ngrid[1][2] = 5\nprint(grid)',
     '[[0, 0, 0], [0, 0, 5], [0, 0, 0]]', True),
    ('def fib(n, memo={}):\n  if n not in memo:\n'
     '    memo[n] = n if n < 2 else fib(n - 1) + fib(n - 2)\n'
     '  return memo[n]\nprint(fib(80))', '23416728348467685', True),
    ('print(bin(10), hex(255), int("ff", 16), ord("a"), chr(98))',
     '0b1010 0xff 255 97 b', True),
    ('n = 0\ndef bump():\n  global n\n  n += 1\nbump()\nbump()\nprint(n)', '2',
     True),
    ('print(all([1, 2]), any([0, 0]), list(zip("ab", [1, 2])))',
     "True False [('a', 1), ('b', 2)]", True),
    ('print(list(enumerate(reversed([1, 2]))), divmod(17, 5))',
     '[(0, 2), (1, 1)] (3, 2)', True),
    ('s = {3, 1}\ns |= {2}\nprint(sorted(s), s & {1, 9})', '[1, 2, 3] {1}',
     True),
    ('import bisect\nprint(bisect.bisect([1, 3, 5], 4))', '2', True),
    ('total = 0\nfor i in range(200000):\n  total += i\nprint(total)',
     '19999900000', True),
    ('from fractions import Fraction\nprint(Fraction(1, 3) + Fraction(1, 6))',
     '1/2', False),
    ('import statistics\nprint(statistics.mean([1, 2, 6]))', '3', False),
    ('def squares():\n  for i in range(3):\n    yield i * i\n'
     'print(list(squares()))', '[0, 1, 4]', False),
    ('import heapq\nh = [5, 1, 4]\nheapq.heapify(h)\nprint(heapq.heappop(h))',
     '1', False),
    ('from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\n'
     '  y: "P | None" = None\nprint(P(1, P(2)))', 'P(x=1, y=P(x=2, y=None))',
     False),
    ('import numpy as np\nprint(np.arange(6).reshape(2, 3).sum(axis=0))',
     '[3 5 7]', False),
    ('import numpy as np\nprint(np.linalg.solve([[2, 0], [0, 4]], [2, 2]))',
     '[1.  0.5]', False),
    ('from sympy import *\nx = symbols("x")\nprint(solve(x**2 - 2, x))',
     '[-sqrt(2), sqrt(2)]', False),
    ('import sympy\nx = sympy.Symbol("x")\n'
     'print(sympy.integrate(x**2, (x, 0, 3)))', '9', False),
    ('import mpmath\nmpmath.mp.dps = 30\nprint(mpmath.sqrt(2))',
     '1.41421356237309504880168872421', False),
    ('import hashlib\nprint(hashlib.md5(b"a").hexdigest()[:8])', '0cc175b9',
     False),
    ('import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return 5\n'
     'print(asyncio.run(f()))', '5', False),
    ('with open("/tmp/n.txt", "w") as f:\n  f.write("42")\n'
     'print(open("/tmp/n.txt").read())', '42', False),
    ('import sys\nprint("out")\nprint("err", file=sys.stderr)\nsys.exit(0)',
     'out', False),
    ('print("before")\nexit()\nprint("after")', 'before', False),
    ('if __name__ == "__main__":\n  import sys\n  sys.setrecursionlimit(5000)\n'
     '  def depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n'
     '  print(depth(3000))', '3000', False),
    ('import random\nrandom.seed(1)\nprint(random.randint(1, 6))', '2', False),
    ('print({"b", "a", "c"} == set("abc"), input.__name__)', 'True input',
     False),
]  # fmt: skip


@pytest.fixture(scope='module', params=['bubblewrap', 'monty'])
def tool(request):
  try:
    made = python_tool.make(request.param)
  except base.ToolUnavailable as error:
    pytest.skip(str(error))
  return request.param, made


@pytest.mark.parametrize(
  'program, printed, monty', _PROGRAMS, ids=range(len(_PROGRAMS))
)
def test_program_prints(tool, program, printed, monty):
  backend, made = tool
  if backend == 'monty' and not monty:
    pytest.skip("monty's card does not cover it")
  assert asyncio.run(made.call({'code': program})) == printed


def test_there_are_enough_programs():
  assert len(_PROGRAMS) >= 50
  assert sum(monty for _, _, monty in _PROGRAMS) >= 30
