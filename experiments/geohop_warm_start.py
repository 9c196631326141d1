"""The supervised warm start of the GeoHop planner, whose weights we ship.

A small transformer learns the format of plans from a scripted teacher that
picks tools and sub-goals badly (its error rates are below and in every report).
It plays the part of the paper's supervised baseline; Flow-GRPO starts from it.

  python -m agentflow_jax.train --config=experiments/geohop_warm_start.py \
      --workdir=runs/geohop_warm_start
  cp -r runs/geohop_warm_start/planner/. experiments/geohop_planner/

Cost: nine minutes on 2 CPU cores. Expected: sampled and greedy accuracy as in
experiments/geohop_planner/accuracy.json, within its interval.
"""

from agentflow_jax.config import schema as c


def get_config() -> c.Config:
  return c.Config(
    name='geohop_warm_start',
    algorithm='sft',
    planner=c.PlannerConfig(
      model=c.ModelConfig(
        vocab_size=896,  # Replaced by the tokenizer's.
        d_model=128,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        d_ff=320,
        max_positions=256,
        # Bounded attention scores amplify rounding less.
        qk_norm=True,
      ),
      vocab_size=896,
      sampling=c.SamplingSpec(temperature=1.0, max_new_tokens=16),
      max_prompt_tokens=176,
      prompt=c.PromptConfig(system='', tail='Plan:', cards='names'),
    ),
    agent=c.AgentConfig(
      executor_templates={
        'search': '{sub_goal} {context}',
        'python': 'print({context})',
      },
      verbs=('find', 'answer'),
      number_mentions=True,
      rollout=c.RolloutConfig(
        max_turns=4,
        deadline_seconds=120.0,
        entry_tokens=30,
        verdict_tokens=14,
        answer_when_out_of_turns=False,
      ),
    ),
    # With these shapes, and those of `batch`, the trainer scores a token to
    # the very bits that the sampler recorded on some CPUs, and within 8e-6
    # on an AMD EPYC (contract 1 allows 1e-5): whole multiples of 32, at
    # least 64 rows to a product, and sums over slots that are cut alike. A
    # forest would cut them otherwise, and so short prompts share little.
    engine=c.EngineConfig(
      slots=64,
      max_prompt_tokens=224,
      max_new_tokens=32,
      prefill_pieces=16,
      piece_tokens=16,
      decode_chunk=8,
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=2e-3,
      schedule='cosine',
      warmup_steps=50,
      total_steps=300,
      max_grad_norm=1.0,
    ),
    batch=c.BatchConfig(tokens_per_row=256, rows_per_micro=8, layout='rows', block=128),
    train=c.TrainConfig(steps=300, checkpoint_every=100),
    teacher=c.TeacherConfig(
      search_instead=0.5,
      python_instead=0.1,
      wrong_what=0.25,
      wrong_reference=0.25,
      early_answer=0.5,
      late_answer=0.1,
    ),
    sft=c.SftConfig(traces=12000, rows_per_step=256, loss=c.SftLossConfig(z_loss=1e-2)),
    evaluation=c.EvaluationConfig(every=100, controls=False),
  )
