"""Tools by name, and what cannot be made."""

import asyncio
import shlex
import sys

import pytest

from agentflow_jax.agents import recording
from agentflow_jax.agents.tools import base
from agentflow_jax.assembly import task_sets, toolbox
from agentflow_jax.config import schema
from tests.agents.tools.mcp import mcp_demo

_DEMO = f'demo={shlex.join([sys.executable, mcp_demo.__file__])}'


def _make(recorded=None, **settings):
  box = toolbox.Toolbox(
    schema.ToolsConfig(**settings), task_sets.TaskSet((), (), ()), recording=recorded
  )
  return box.make()


def test_tools_stand_in_the_order_of_the_config():
  made = _make(enabled=('web_page', 'wikipedia', 'python'))
  assert list(made) == ['web_page', 'wikipedia', 'python']


def test_tools_of_mcp_servers_come_after_them():
  made = _make(
    enabled=('wikipedia',),
    mcp=(_DEMO,),
    mcp_tools=('demo_add', 'demo_pid'),
    mcp_seconds=7.0,
  )
  assert list(made) == ['wikipedia', 'demo_add', 'demo_pid']
  assert made['demo_add'].timeout == 7.0


@pytest.mark.parametrize(
  ('settings', 'match'),
  [
    ({'enabled': ('serach',)}, 'unknown tool .serach.; there are search, '),
    ({'enabled': ()}, 'enabled is empty'),
    ({'enabled': ('search',)}, 'search needs agent.tools.corpus'),
    ({'mcp': (_DEMO,), 'mcp_tools': ('demo_ad',)}, 'it has add, join, '),
    ({'mcp': (_DEMO, _DEMO)}, 'one whose name there is'),
  ],
)
def test_what_cannot_be_made_is_said(settings, match):
  with pytest.raises(schema.ConfigError, match=match):
    _make(**({'enabled': ('python',)} | settings))


def test_a_search_engine_needs_its_key_unless_nobody_is_asked(tmp_path, monkeypatch):
  monkeypatch.delenv('BRAVE_API_KEY', raising=False)
  settings = {'enabled': ('web_search',), 'web_search_engine': 'brave'}
  with pytest.raises(base.ToolUnavailable, match='BRAVE_API_KEY'):
    _make(**settings)
  recording.Recording(str(tmp_path), replays=False).close()
  replayed = recording.Recording(str(tmp_path), replays=True)
  assert list(_make(replayed, **settings)) == ['web_search']


def _corpus(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  path.write_text('{"title": "Oslo", "text": "Oslo lies in Norway."}\n')
  return {'enabled': ('search',), 'corpus': str(path)}


@pytest.mark.parametrize(
  ('where', 'settings', 'match'),
  [
    ({'base_url': 'ftp://a'}, {}, 'search_embeddings: base_url must be http'),
    ({'api_key_variable': 'AGENTFLOW_NO_KEY'}, {}, 'AGENTFLOW_NO_KEY'),
    ({}, {'search_candidates': 2, 'search_results': 3}, 'candidates must be'),
  ],
)
def test_embeddings_that_cannot_be_asked_for(tmp_path, where, settings, match):
  at = {'base_url': 'http://127.0.0.1:1/v1', 'model': 'm'}
  with pytest.raises(schema.ConfigError, match=match):
    _make(
      **_corpus(tmp_path),
      **settings,
      search_embeddings=schema.EndpointConfig(**(at | where)),
    )


def test_embeddings_are_part_of_the_version_and_replayed_without_a_key(tmp_path):
  recording.Recording(str(tmp_path / 'r'), replays=False).close()
  replayed = recording.Recording(str(tmp_path / 'r'), replays=True)
  where = schema.EndpointConfig(
    base_url='http://127.0.0.1:1/v1', model='m', api_key_variable='AGENTFLOW_NO_KEY'
  )
  plain = _make(**_corpus(tmp_path))['search']
  dense = _make(replayed, **_corpus(tmp_path), search_embeddings=where)['search']
  prefixed = _make(
    replayed,
    **_corpus(tmp_path),
    search_embeddings=where,
    search_passage_prefix='passage: ',
  )['search']
  assert len({plain.version, dense.version, prefixed.version}) == 3
  assert 'meaning come first' in dense.card.limits
  assert 'not meaning' in plain.card.limits


def test_a_replay_knows_the_tools_of_servers_that_are_gone(tmp_path, monkeypatch):
  settings = {'enabled': ('wikipedia',), 'mcp': (_DEMO,)}
  kept = recording.Recording(str(tmp_path), replays=False)
  made = _make(kept, **settings)
  kept.close()

  def gone(server):
    raise AssertionError(server)

  monkeypatch.setattr(toolbox.servers, 'describe', gone)
  replayed = recording.Recording(str(tmp_path), replays=True)
  again = _make(replayed, **settings)
  assert [t.card for t in again.values()] == [t.card for t in made.values()]
  other = settings | {'mcp': (_DEMO.replace('demo=', 'other=', 1),)}
  with pytest.raises(recording.Miss, match='tools of other='):
    _make(replayed, **other)


def test_a_directory_may_be_cut_into_paragraphs(tmp_path):
  (tmp_path / 'a.txt').write_text('One fact.\n\nAnother\nfact.\n\n\n')
  made = _make(enabled=('search',), corpus=str(tmp_path), search_passage_chars=0)
  result = asyncio.run(made['search'].call({'query': 'another'}))
  assert 'Another fact.' in result and 'One' not in result


@pytest.mark.parametrize('chars', [-1, 500])
def test_nothing_else_is_cut(tmp_path, chars):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"title": "a", "text": "b"}\n')
  with pytest.raises(schema.ConfigError, match='search_passage_chars'):
    _make(enabled=('search',), corpus=str(path), search_passage_chars=chars)
