"""Reading collectives off compiled programs: of the CPU compiler (run here) and of the TPU's (a transcript)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

from lacy_jax.planning.collectives import Module, collectives, shape_bytes

# Cut from what libtpu 0.0.52 makes of a step on v5e:4x4: a scan of 24 layers whose body holds a loop that passes
# slices of a weight around two at a time, an all-gather spread over three fusions, and an all-reduce after the scan.
TPU = """
HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%start_fusion (p: bf16[1,64,4096]) -> (bf16[1,64,4096], bf16[1,1024,4096]) {
  %p = bf16[1,64,4096]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.57 = bf16[1,1024,4096]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=148, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.74 = (bf16[1,64,4096]{2,1,0}, bf16[1,1024,4096]{2,1,0}) custom-call(%all-gather.57), custom_call_target="AsyncCollectiveStart"
}

%done_fusion (p: bf16[1,64,4096]) -> bf16[1,1024,4096] {
  %p = bf16[1,64,4096]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.59 = bf16[1,1024,4096]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=148, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={1}, use_global_device_ids=true
}

%windowed_cond (w: (bf16[1,64,4096], u32[])) -> pred[] {
  %w = (bf16[1,64,4096]{2,1,0}, u32[]{:T(128)}) parameter(0)
  %constant.8 = u32[]{:T(128)} constant(8)
  %i = u32[]{:T(128)} get-tuple-element(%w), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.8), direction=LT
}

%windowed_body (w: (bf16[1,64,4096], u32[])) -> (bf16[1,64,4096], u32[]) {
  %w = (bf16[1,64,4096]{2,1,0}, u32[]{:T(128)}) parameter(0)
  %piece = bf16[1,64,4096]{2,1,0} get-tuple-element(%w), index=0
  %i = u32[]{:T(128)} get-tuple-element(%w), index=1
  %constant.2 = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %constant.2)
  %collective-permute-start = (bf16[1,64,4096]{2,1,0}, bf16[1,64,4096]{2,1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%piece), channel_id=4, source_target_pairs={{0,15},{1,0},{2,1}}
  %moved = bf16[1,64,4096]{2,1,0} collective-permute-done(%collective-permute-start)
  ROOT %out = (bf16[1,64,4096]{2,1,0}, u32[]{:T(128)}) tuple(%moved, %next)
}

%layer_cond (c: (s32[], bf16[1,64,4096])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[1,64,4096]{2,1,0}) parameter(0)
  %layer = s32[]{:T(128)} get-tuple-element(%c), index=0
  %constant.24 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%layer, %constant.24), direction=LT
}

%layer_body (c: (s32[], bf16[1,64,4096])) -> (s32[], bf16[1,64,4096]) {
  %c = (s32[]{:T(128)}, bf16[1,64,4096]{2,1,0}) parameter(0)
  %layer = s32[]{:T(128)} get-tuple-element(%c), index=0
  %piece = bf16[1,64,4096]{2,1,0} get-tuple-element(%c), index=1
  %constant.1 = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%layer, %constant.1)
  %constant.0 = u32[]{:T(128)} constant(0)
  %carried = (bf16[1,64,4096]{2,1,0}, u32[]{:T(128)}) tuple(%piece, %constant.0)
  %while.2 = (bf16[1,64,4096]{2,1,0}, u32[]{:T(128)}) while(%carried), condition=%windowed_cond, body=%windowed_body
  %begun = (bf16[1,64,4096]{2,1,0}, bf16[1,1024,4096]{2,1,0}) fusion(%piece), kind=kCustom, calls=%start_fusion
  %ended = bf16[1,1024,4096]{2,1,0} fusion(%piece), kind=kCustom, calls=%done_fusion
  ROOT %out = (s32[]{:T(128)}, bf16[1,64,4096]{2,1,0}) tuple(%next, %piece)
}

ENTRY %main (x: bf16[1,64,4096], g: f32[32000,1024]) -> f32[32000,1024] {
  %x = bf16[1,64,4096]{2,1,0} parameter(0)
  %g = f32[32000,1024]{1,0:T(8,128)} parameter(1)
  %constant.0 = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%constant.0)
  %start = (s32[]{:T(128)}, bf16[1,64,4096]{2,1,0}) tuple(%copied, %x)
  %while.1 = (s32[]{:T(128)}, bf16[1,64,4096]{2,1,0}) while(%start), condition=%layer_cond, body=%layer_body
  %send.1 = (f32[250,8,128]{2,1,0}, u32[], token[]) send(%g, %token), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %psum = f32[32000,1024]{1,0:T(8,128)} all-reduce(%g), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add, metadata={op_name="jit(step)/psum"}
}
"""


def test_tpu_program_counts_loops_inside_loops_and_fused_collectives_once():
    found = {c.kind: c for c in collectives(TPU, devices=16)}
    assert len(found) == len(collectives(TPU, devices=16)) == 4
    permute = found["collective-permute"]
    assert (permute.executions, permute.size) == (24 * 4, 64 * 4096 * 2)  # 0, 2, 4, 6: four rounds a layer.
    gather = found["all-gather"]
    assert (gather.executions, gather.group, gather.size) == (24, 16, 1024 * 4096 * 2)
    assert gather.sent == pytest.approx(24 * gather.size * 15 / 16)
    reduced = found["all-reduce"]
    assert (reduced.executions, reduced.op_name) == (1, "jit(step)/psum")
    assert reduced.sent == pytest.approx(2 * 15 / 16 * 32000 * 1024 * 4)
    sent = found["slice-send"]
    assert (sent.size, sent.executions, sent.crosses_slices) == (250 * 8 * 128 * 4, 1, False)


def test_what_leaves_a_slice_is_known():
    kinds = {c.kind: c.crosses_slices for c in collectives(TPU, devices=16, per_slice=8)}
    assert kinds == {
        "collective-permute": True,
        "all-gather": True,
        "all-reduce": True,
        "slice-send": True,
    }


def test_loop_that_depends_on_data_is_counted_once_and_reported():
    text = TPU.replace("%constant.24 = s32[]{:T(128)} constant(24)", "%constant.24 = s32[] get-tuple-element(%c), index=0")  # fmt: skip
    assert Module(TPU).unknown_loops() == 0
    assert Module(text).unknown_loops() == 1
    assert {c.kind: c.executions for c in collectives(text, 16)}["all-gather"] == 1


@pytest.mark.parametrize(
    ("groups", "size", "crosses"),
    [
        ("[2,8]<=[16]", 8, False),
        ("[8,2]<=[2,8]T(1,0)", 2, True),
        ("{{0,8},{1,9}}", 2, True),
        ("mesh['a'=2,'b'=8] {'b'}", 8, False),
        ("mesh['a'=2,'b'=8] {'a'}", 2, True),
    ],
)
def test_every_way_to_write_groups(groups, size, crosses):
    text = TPU.replace("{{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}", groups)
    found = next(c for c in collectives(text, 16, per_slice=8) if c.kind == "all-reduce")
    assert (found.group, found.crosses_slices) == (size, crosses)


def test_shapes_have_bytes():
    assert [shape_bytes(s) for s in ("f32[8,128]", "bf16[3]", "pred[]", "token[]")] == [4096, 6, 1, 0]


def test_program_compiled_here_agrees_with_its_own_annotation():
    """The CPU compiler says how often a loop runs; without that the loop's own condition must give the same."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharded, whole = NamedSharding(mesh, jax.P("data")), NamedSharding(mesh, jax.P())

    def layers(x, weights):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), whole), None

        return jax.lax.scan(layer, x, weights)[0]

    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=whole)
    weights = jax.ShapeDtypeStruct(
        (5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, jax.P(None, "data"))
    )
    text = jax.jit(layers, out_shardings=sharded).lower(x, weights).compile().as_text()
    found = collectives(text, devices=4)
    assert found
    assert {c.executions for c in found} == {5}
    assert {c.group for c in found} == {4}
    bare = text.replace("known_trip_count", "unknown")
    assert [c.executions for c in collectives(bare, devices=4)] == [5] * len(found)
