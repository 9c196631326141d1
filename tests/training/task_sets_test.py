import pytest

from agentflow_jax.training import config as config_lib
from agentflow_jax.training import task_sets


def _write(tmp_path, text):
  path = tmp_path / 'mine.jsonl'
  path.write_text(text)
  return str(path)


def test_a_user_s_tasks_need_no_code(tmp_path):
  path = _write(
      tmp_path,
      '{"query": "1+1?", "answer": 2}\n\n'
      '{"id": "b", "query": "Who?", "answer": ["Ann", "Ann B."]}\n',
  )
  one, two = task_sets.read_jsonl(path, 'f1')
  assert one.answers == ('2',) and one.id == 'mine/000001'
  assert two.answers == ('Ann', 'Ann B.') and two.id == 'b'
  assert one.reward == 'f1' and one.tags == {}


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"query": "a", "answer": "b"}\n{"query"', 'mine.jsonl:2: not JSON'),
        ('{"answer": "b"}\n', 'mine.jsonl:1: needs a text field "query"'),
        ('[1]\n', 'mine.jsonl:1: needs a text field "query"'),
        ('{"query": "a"}\n', 'mine.jsonl:1: "answer" must be'),
        ('{"query": "a", "answer": []}\n', '"answer" must be'),
        ('{"query": "a", "answer": true}\n', '"answer" must be'),
        ('{"query": "a", "answer": {"x": 1}}\n', '"answer" must be'),
        (
            '{"id": "x", "query": "a", "answer": "b"}\n' * 2,
            "mine.jsonl:2: the id 'x' came before",
        ),
        ('\n', 'holds no task'),
    ],
)
def test_a_malformed_row_names_its_file_and_line(tmp_path, text, message):
  with pytest.raises(config_lib.ConfigError) as error:
    task_sets.read_jsonl(_write(tmp_path, text), 'f1')
  assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(config_lib.ConfigError, match='no task file .*gone'):
    task_sets.read_jsonl(str(tmp_path / 'gone.jsonl'), 'f1')
