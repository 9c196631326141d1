"""Flow-GRPO of Qwen2.5-7B-Instruct with the paper's values (arXiv 2510.05592).

  python -m agentflow_jax.train --config=experiments/flow_grpo_qwen2p5_7b.py \
      --workdir=gs://BUCKET/RUN --distributed=on \
      --config.planner.directory=DIR --config.task_set.train=FILE \
      --config.task_set.evaluation=FILE --config.agent.tools.corpus=DIR

Group size 8, 32 queries a step, at most 3 turns and 2048 new tokens, learning rate
1e-6, KL 1e-3, clipping 0.2 / 0.3; prompts up to 18432 tokens. The other three
modules are the model as it was before training; tools are search over a local
corpus, python, and the model itself. DIR holds the released weights; tasks are
JSONL of {"query", "answer"}. Not run by us: no such machine was at hand.

Preflight (python -m agentflow_jax.preflight --config=... --model=qwen2.5-7b):
v5p:2x2x4 needs 49.1 GiB a chip of 95.7; v6e:4x4 29.8 of 31.25 with mesh.fsdp=4,
mesh.tensor=4, batch.rows_per_micro=4 and engine.kv_tokens=131072.

Its sweep is two of the paper's ablations at their size, over models and over turns
at most; ablations.py has the others, small.
"""

from agentflow_jax.config import schema as c


def get_config() -> c.Config:
  frozen = c.ModuleConfig(
    'frozen', c.SamplingSpec(temperature=0.0, max_new_tokens=1024)
  )
  return c.Config(
    name='flow_grpo_qwen2p5_7b',
    task_set=c.TaskSetConfig(
      kind='jsonl', train='data/train.jsonl', evaluation='data/aime24.jsonl'
    ),
    planner=c.PlannerConfig(
      directory='weights/Qwen2.5-7B-Instruct',
      dtype='bfloat16',
      param_dtype='float32',
      remat='full',
      attention='pallas',
      # The released configuration's; the paper's text says 0.5.
      sampling=c.SamplingSpec(temperature=0.7, max_new_tokens=2048),
      max_prompt_tokens=18_432,
    ),
    agent=c.AgentConfig(
      executor=frozen,
      verifier=frozen,
      generator=frozen,
      analyst=frozen,
      rollout=c.RolloutConfig(max_turns=3),
      tools=c.ToolsConfig(
        enabled=('search', 'python', 'generalist'), search_results=5, generalist=frozen
      ),
    ),
    engine=c.EngineConfig(
      slots=64,
      max_prompt_tokens=18_432,
      max_new_tokens=2048,
      kv_tokens=524_288,
      prefill_pieces=16,
      piece_tokens=128,
    ),
    flow_grpo=c.FlowGrpoConfig(clip_low=0.2, clip_high=0.3, kl_coef=1e-3),
    optimizer=c.OptimizerConfig(1e-6),
    mesh=c.MeshConfig(data=1, fsdp=-1, tensor=1, sampler_devices=-1),
    batch=c.BatchConfig(tokens_per_row=20_480, rows_per_micro=16),
    train=c.TrainConfig(
      steps=200,
      queries_per_step=32,
      group_size=8,
      checkpoint_every=10,
      # bfloat16: measured 0.22 for a model of 135M; to be bounded by the
      # first step of a run.
      max_logprob_gap=1.0,
    ),
    evaluation=c.EvaluationConfig(every=10, controls=False, trials=3),
  )


def get_sweep() -> list[dict[str, str]]:
  return c.sweep.chain(
    c.sweep.grid(
      {
        'planner.directory': [
          f'weights/Qwen2.5-{size}-Instruct' for size in ('7B', '3B', '1.5B')
        ]
      }
    ),
    c.sweep.grid({'agent.rollout.max_turns': [3, 5, 7, 10]}),
  )
