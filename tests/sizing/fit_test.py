"""Preflight: what it adds up, and what it refuses."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.experimental.topologies
import pytest

from agentflow_jax.config import loading, overrides, schema
from agentflow_jax.core import model
from agentflow_jax.inference import programs
from agentflow_jax.sizing import fit, topologies
from tests.config import mini

_GIB = 1 << 30
_NETWORK = model.ModelConfig(
  vocab_size=256,
  d_model=64,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=16,
  d_ff=128,
  max_positions=256,
)


def _config(tmp_path, **mesh):
  config = mini.config(tmp_path)
  return dataclasses.replace(config, mesh=schema.MeshConfig(**mesh))


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
  """A report with parameters whole on each of eight devices, and split."""
  directory = tmp_path_factory.mktemp('preflight')
  topology = topologies.parse('cpu:8')
  return {
    name: fit.check(_config(directory, **mesh), _NETWORK, topology)
    for name, mesh in (
      ('whole', {'data': 8}),
      ('split', {'data': 1, 'fsdp': 8, 'sampler_devices': -1}),
    )
  }


def test_bytes_are_those_of_the_arrays(reports):
  shapes = model.param_shapes(_NETWORK)
  params = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  whole = reports['whole']['bytes_a_chip']
  assert whole['trained parameters'] == params
  # Two moments, and a count or two.
  assert 2 * params <= whole['optimizer state'] <= 2 * params + 64
  assert whole['where it starts from (reference, base)'] == params
  assert whole['sampler: parameters, and the next ones'] == 2 * params
  split = reports['split']['bytes_a_chip']
  norms = 4 * 64 * (2 * 2 + 1)  # Are whole everywhere.
  assert split['trained parameters'] <= (params - norms) / 8 + norms
  for report in reports.values():
    assert report['bytes_needed'] == sum(report['bytes_a_chip'].values())
    assert report['fits']


@pytest.mark.parametrize('rank, kept', [(0, True), (2, False)])
def test_a_master_of_bfloat16_parameters_is_counted(tmp_path, monkeypatch, rank, kept):
  compiled = {
    'temporary_bytes': 0,
    'argument_bytes': 0,
    'collectives': {},
    'compile_seconds': 0.0,
  }
  monkeypatch.setattr(fit, '_compiled', lambda *unused: compiled)
  config = overrides.override(
    _config(tmp_path, data=8), [('planner.lora.rank', str(rank))]
  )
  network = dataclasses.replace(_NETWORK, param_dtype='bfloat16')
  report = fit.check(config, network, topologies.parse('cpu:8'))
  shapes = model.param_shapes(_NETWORK)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  held = report['bytes_a_chip']
  assert held['where it starts from (reference, base)'] == 2 * count
  name = 'float32 master of the parameters'
  assert (name in held) == kept
  if kept:
    assert held[name] == 4 * count
    assert held['trained parameters'] == 2 * count
    assert 8 * count <= held['optimizer state'] <= 8 * count + 64
  assert report['bytes_needed'] == sum(held.values())


def test_every_program_of_the_run_is_compiled(reports):
  for report in reports.values():
    assert set(report['programs']) == {
      'update of rows of 192',
      'handover to the sampler',
      'prefill',
      'decode',
    }


def test_a_planner_that_servers_sample_needs_no_sampler(tmp_path, monkeypatch):
  monkeypatch.setattr(
    fit,
    '_compiled',
    lambda name, lower: {
      'temporary_bytes': 0,
      'argument_bytes': 0,
      'collectives': {},
      'compile_seconds': 0.0,
    },
  )
  outside = [
    ('planner.sampler', 'external'),
    ('planner.external.servers', 'http://127.0.0.1:8000'),
    ('flow_grpo.old_logprobs', 'recompute'),
    ('flow_grpo.importance_cap', '2'),
  ]
  config = overrides.override(_config(tmp_path, data=8), outside)
  report = fit.check(config, _NETWORK, topologies.parse('cpu:8'))
  assert set(report['programs']) == {
    'update of rows of 192',
    'old logprobs of rows of 192',
  }
  assert not any('sampler' in name for name in report['bytes_a_chip'])
  assert not any('decode' in name for name in report['estimate'])
  assert 'update_seconds' in report['estimate'] and fit.table(report)
  frozen = [
    ('agent.verifier.backend', 'frozen'),
    ('agent.verifier.sampling.max_new_tokens', '8'),
  ]
  report = fit.check(
    overrides.override(config, frozen), _NETWORK, topologies.parse('cpu:8')
  )
  assert 'decode' in report['programs']
  assert 'frozen modules: parameters' in report['bytes_a_chip']
  assert 'sampler: keys and values' not in report['bytes_a_chip']


@pytest.mark.slow
def test_a_planner_that_truncates_has_programs_of_its_own(tmp_path, monkeypatch):
  config = overrides.override(
    _config(tmp_path, data=8),
    [
      ('planner.sampling.top_p', '0.9'),
      ('engine.max_kept', '8'),
      ('flow_grpo.old_logprobs', 'recompute'),
    ],
  )
  asked = []
  original = programs.Programs.decode
  monkeypatch.setattr(
    programs.Programs,
    'decode',
    lambda self, truncates: asked.append(truncates) or original(self, truncates),
  )
  report = fit.check(config, _NETWORK, topologies.parse('cpu:8'))
  assert asked == [True]
  assert set(report['programs']) == {
    'update of rows of 192',
    'old logprobs of rows of 192',
    'handover to the sampler',
    'prefill',
    'decode',
  }
  config = overrides.override(config, [('engine.max_kept', '300')])
  with pytest.raises(schema.ConfigError, match='max_kept 300.*256'):
    fit.network(
      dataclasses.replace(
        config,
        planner=dataclasses.replace(
          config.planner, directory='', model=_NETWORK, vocab_size=256
        ),
      )
    )


def test_parameters_that_are_split_are_sent_around(reports):
  sent = {
    name: report['programs']['update of rows of 192']['collectives']
    for name, report in reports.items()
  }
  assert 'all-gather' in sent['split']
  assert 'all-reduce' in sent['whole']
  assert (
    'all-gather'
    in reports['split']['programs']['handover to the sampler']['collectives']
  )


def test_a_table_says_whether_it_fits(reports):
  text = fit.table(reports['split'])
  assert text.endswith('It fits.') and 'AN ESTIMATE' not in text
  report = dict(reports['split'], bytes_there=0, fits=False, is_estimate=True)
  text = fit.table(report)
  over = reports['split']['bytes_needed'] / _GIB
  assert f'{over:.2f} GiB a chip too much' in text and 'mesh.fsdp' in text
  assert 'AN ESTIMATE' in text


def test_a_mesh_that_does_not_go_with_the_chips_is_refused(tmp_path):
  with pytest.raises(schema.ConfigError, match='does not fit 8 devices'):
    fit.check(_config(tmp_path, data=3), _NETWORK, topologies.parse('cpu:8'))
  with pytest.raises(schema.ConfigError, match='do not divide over data'):
    config = dataclasses.replace(
      _config(tmp_path, data=8),
      batch=schema.BatchConfig(tokens_per_row=192, rows_per_micro=3),
    )
    fit.check(config, _NETWORK, topologies.parse('cpu:8'))


@pytest.mark.parametrize(
  'text, expected',
  [
    ('v5p:4x4x4', ('tpu', 'v5p', '4x4x4', 0)),
    ('v5e:8x8', ('tpu', 'v5e', '8x8', 0)),
    ('gpu:h100:8', ('gpu', 'h100', '', 8)),
    ('cpu:8', ('cpu', 'cpu', '', 8)),
  ],
)
def test_topologies_are_parsed(text, expected):
  topology = topologies.parse(text)
  assert dataclasses.astuple(topology) == expected
  assert topology.is_estimate == (expected[0] == 'gpu')


@pytest.mark.parametrize(
  'text', ['', 'v5p', 'v5p:', 'v5p:4xx4', 'v9:2x2', 'gpu:8', 'gpu:h100:16', 'cpu:x']
)
def test_what_is_no_topology_is_an_error_with_examples(text):
  with pytest.raises(schema.ConfigError, match='v5p:4x4x4'):
    topologies.parse(text)


def test_a_host_is_a_topology_of_its_own():
  shape = lambda text, chips: topologies.host_of(topologies.parse(text), chips).shape
  assert shape('v5p:4x4x4', 4) == '2x2x1'
  assert shape('v5e:8x8', 8) == '2x4' and shape('v6e:4x4', 4) == '2x2'
  with pytest.raises(schema.ConfigError, match='a host of 3 chips'):
    shape('v5e:8x8', 3)


def test_the_network_is_named_where_its_directory_is_not_here(tmp_path):
  config = loading.load(str(mini.ROOT / 'experiments' / 'flow_grpo_qwen2p5_7b.py'))
  with pytest.raises(schema.ConfigError, match='qwen2.5-7b'):
    fit.network(config)
  with pytest.raises(schema.ConfigError, match='--model=llama'):
    fit.network(config, 'llama')
  found = fit.network(config, 'qwen2.5-7b')
  assert (found.n_layers, found.dtype, found.remat) == (28, 'bfloat16', 'full')
  # And read where it is.
  assert fit.network(mini.config(tmp_path)).d_model == 128


def _preflight(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'agentflow_jax.preflight', *flags],
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command_prints_and_writes(tmp_path):
  out = tmp_path / 'preflight.json'
  done = _preflight(
    '--config=experiments/quickstart.py', '--topology=gpu:h100:2', f'--out={out}'
  )
  assert done.returncode == 0, done.stderr
  assert 'AN ESTIMATE' in done.stdout and 'It fits.' in done.stdout
  assert json.loads(out.read_text())['chips'] == 2


@pytest.mark.slow
@pytest.mark.parametrize('topology, code', [('v5p:2x2x4', 0), ('v5e:2x2', 1)])
def test_the_7b_config_fits_where_the_readme_says(topology, code):
  done = _preflight(
    '--config=experiments/flow_grpo_qwen2p5_7b.py',
    '--model=qwen2.5-7b',
    f'--topology={topology}',
    *(['--config.batch.rows_per_micro=4'] if topology == 'v5e:2x2' else []),
  )
  if 'the extra `preflight`' in done.stderr:
    pytest.skip('the TPU compiler is not installed: the extra `preflight`')
  assert done.returncode == code, done.stderr + done.stdout


def test_two_processes_compile_for_a_tpu_at_the_same_time():
  pytest.importorskip('libtpu')
  program = (
    'from agentflow_jax.sizing import topologies\n'
    "topology = topologies.parse('v5p:2x2x4')\n"
    'topologies.prepare(topology)\n'
    'print(len(topologies.devices(topology)), flush=True)\n'
    'input()\n'  # Holds the compiler.
  )
  both = [
    subprocess.Popen(
      [sys.executable, '-c', program],
      cwd=mini.ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  assert [process.stdout.readline() for process in both] == ['16\n', '16\n']
  for process in both:
    _, said = process.communicate('\n', timeout=60)
    assert process.returncode == 0 and not said, said


def test_the_extra_is_named_where_the_compiler_is_not_installed(monkeypatch):
  def fails(message):
    def get(**unused):
      raise RuntimeError(message)

    monkeypatch.setattr(jax.experimental.topologies, 'get_topology_desc', get)
    with pytest.raises(schema.ConfigError) as error:
      topologies.devices(topologies.parse('v5p:2x2x4'))
    return str(error.value)

  assert 'the extra `preflight`' in fails('JAX TPU support not installed')
  assert fails('no such layout') == '--topology=v5p:2x2x4: no such layout'
