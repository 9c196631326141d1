"""Solutions that know new names do what they do with the tools' own."""

import asyncio
import dataclasses
import random

from agentflow_jax import records
from agentflow_jax.agents import fakes, memory, modules, numbered_memory, plan
from agentflow_jax.agents import references, renaming, rollout
from agentflow_jax.agents.environments.desk import environment, new_names
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.agents.tools import base
from agentflow_jax.assembly import desk_data, geohop_solutions, renamed_solutions
from agentflow_jax.assembly import scripted_planners
from agentflow_jax.config import schema
from agentflow_jax.data import desk, geohop_questions


@dataclasses.dataclass(frozen=True)
class _Oracle:
  """A planner that takes the steps of solutions, and needs no tokenizer."""

  solutions: dict

  async def plan(self, view):
    text = self.solutions[view.task_id].right(view)
    return records.Completion(text), records.SamplingSpec()


def test_an_oracle_that_knows_the_names_solves_the_desk_and_one_that_does_not_fails(
  tmp_path,
):
  sizes = {s: desk.Size(1, 4) for s in desk.SPLITS} | {'test': desk.Size(2, 24)}
  worlds = desk.write(tmp_path, desk_data.parts(), 'easy', sizes)
  made = environment.make(environments.seeds_below(worlds))
  tasks = desk.load(tmp_path, 'test')
  own = scripted_planners.solutions_of(tasks)
  names = renaming.Names(new_names.NEW_NAMES, all_of_them=True)
  known = {
    k: renamed_solutions.RenamedSolution(solution, names) for k, solution in own.items()
  }
  agent = fakes.make_agent(
    fakes.FakeLanguageModel({}),
    (),
    rollout.RolloutConfig(max_turns=12, answer_when_out_of_turns=False),
    executor=modules.FieldExecutor(),
    verifier=modules.WorldVerifier(),
    start_memory=numbered_memory.Numbering(references.Gazetteer(())),
    environment=made,
  )
  key = records.RequestKey(0, records.Purpose.EVALUATE, 0, 't', 0)

  async def played(agent, solutions):
    agent = dataclasses.replace(agent, planner=_Oracle(solutions))
    return [await rollout.rollout(agent, task, key) for task in tasks]

  before = asyncio.run(played(agent, own))
  after = asyncio.run(played(renaming.renamed(agent, names), known))
  assert [t.reward for t in before] == [t.reward for t in after] == [1.0] * 24
  assert [t.digest for t in before] == [t.digest for t in after]
  called = {turn.call.tool for t in after for turn in t.turns}
  assert called <= {new.name for new in new_names.NEW_NAMES.values()}
  ignorant = asyncio.run(played(renaming.renamed(agent, names), own))
  for done in ignorant:
    (turn,) = done.turns
    assert done.reward == 0.0 and turn.parse_error.startswith('unknown tool')


_STEPS = (
  geohop_questions.Step('search', 'capital', ('France',), 'Paris'),
  geohop_questions.Step('python', '*', ('2100000', '3'), '6300000'),
)


def test_steps_of_geohop():
  names = renaming.Names(renaming.BUNDLED)
  cards = tuple(
    names.card(base.Card(n, '', (base.Argument(a, ''),)))
    for n, a in (('search', 'query'), ('python', 'code'))
  )
  solution = renamed_solutions.RenamedSolution(
    geohop_solutions.GeohopSolution(_STEPS), names
  )
  known = references.Gazetteer(['France', 'Paris'])
  state = numbered_memory.Numbering(known)('Of France?')
  key = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
  tools = ('look_up', 'run_program')
  view = modules.View('t', state, cards, key)
  first = plan.parse(solution.right(view), tools)
  assert first == plan.Plan('find capital', '#1', 'look_up')
  marked, state = state.mark('Paris')
  state = state.append(memory.Entry('look_up', 'find capital', '#1', marked))
  view = modules.View('t', state, cards, key)
  assert plan.parse(solution.right(view), tools).tool == 'run_program'
  perfect = schema.TeacherConfig(0, 0, 0, 0, 0, 0)
  assert solution.noisy(view, random.Random(0), perfect) == solution.right(view)
  drawn = [solution.uniform(view, random.Random(i)) for i in range(20)]
  assert {plan.parse(text, tools).tool for text in drawn} == set(tools)
