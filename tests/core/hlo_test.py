"""Collectives of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import hlo

_SPEC = jax.sharding.PartitionSpec


def _text(f, n=4, length=8):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:n]), ('x',))
  x = jax.device_put(
    jnp.ones((length, 16)), jax.sharding.NamedSharding(mesh, _SPEC('x'))
  )
  mapped = jax.shard_map(
    f, mesh=mesh, in_specs=_SPEC('x'), out_specs=_SPEC('x'), check_vma=False
  )
  return jax.jit(mapped).lower(x).compile().as_text()


def test_one_of_each_kind():
  def f(x):  # float32[2, 16] a device: 128 bytes.
    y = jax.lax.all_gather(x, 'x', tiled=True)  # [8, 16]: 512 bytes.
    y = jax.lax.psum_scatter(y * 2, 'x', tiled=True)
    y = jax.lax.ppermute(y, 'x', [(i, (i + 1) % 4) for i in range(4)])
    return y + jax.lax.psum(y.sum(axis=0) * y[0], 'x')  # [16]: 64 bytes.

  assert hlo.collectives(_text(f)) == {
    'all-gather': hlo.Sent(1, 512),
    'all-reduce': hlo.Sent(1, 64),
    'reduce-scatter': hlo.Sent(1, 128),
    'collective-permute': hlo.Sent(1, 128),
  }


def test_a_loops_collectives_run_as_often_as_it_does():
  def f(x):
    def body(x, _):
      def inner(x, _):
        return jnp.sin(jax.lax.psum(x, 'x')), None

      x, _ = jax.lax.scan(inner, x, length=3)
      return jnp.cos(jax.lax.ppermute(x, 'x', [(0, 1), (1, 0)])), None

    return jax.lax.scan(body, x, length=5)[0]

  assert hlo.collectives(_text(f)) == {
    'all-reduce': hlo.Sent(15, 15 * 128),
    'collective-permute': hlo.Sent(5, 5 * 128),
  }


def test_of_a_started_one_the_result_counts():
  text = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %g = (f32[8]{0:T(256)}, f32[32]{0:T(256)}) all-gather-start(%p), dimensions={0}
  %d = f32[32]{0} all-gather-done(%g)
  %a = f32[32]{0} all-reduce-start(%d), to_apply=%add
  ROOT %e = f32[32]{0} all-reduce-done(%a)
}
"""
  assert hlo.collectives(text) == {
    'all-gather': hlo.Sent(1, 128),
    'all-reduce': hlo.Sent(1, 128),
  }


@pytest.mark.parametrize(
  'groups, sends',
  [
    ('{{0},{1},{2},{3}}', False),
    ('{{0,1},{2,3}}', True),
    ('{}', True),  # All devices.
    ('[4,1]<=[4]', False),
    ('[2,2]<=[4]', True),
    ('[1,4]<=[4]', True),
    ("mesh['data'=4,'fsdp'=1,'tensor'=1] {'tensor'}", False),
    ("mesh['data'=4,'fsdp'=1,'tensor'=1] {'fsdp','tensor'}", False),
    ("mesh['data'=4,'fsdp'=1,'tensor'=1] {'data'}", True),
    ("mesh['data'=4,'fsdp'=1,'tensor'=1] {'tensor','data'}", True),
  ],
)
def test_groups_of_one_device_send_nothing(groups, sends):
  line = (
    f'  %psum.1 = f32[2,16]{{1,0}} all-reduce(%x), replica_groups={groups},'
    ' use_global_device_ids=true, to_apply=%add'
  )
  assert hlo.sent_by(line) == ('all-reduce' if sends else None)
  text = f'ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n'
  assert bool(hlo.collectives(text)) == sends


def test_a_loop_that_only_its_condition_counts():
  text = """
HloModule m

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %one = s32[] constant(1)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} all-reduce(%x), to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%one, %r)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %n = s32[]{:T(128)} constant(LIMIT)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  ROOT %w = (s32[], f32[8]) while(%p), condition=%condition, body=%body
}
"""
  counted = hlo.collectives(text.replace('LIMIT', '28'))
  assert counted == {'all-reduce': hlo.Sent(28, 28 * 32)}
  # A limit that is data is not known: once.
  text = text.replace('constant(LIMIT)', 'get-tuple-element(%p), index=0')
  assert hlo.collectives(text) == {'all-reduce': hlo.Sent(1, 32)}


def test_what_is_no_program_is_an_error():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.collectives('no program')
