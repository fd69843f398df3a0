"""Reading collectives off compiled programs: of the CPU compiler (run here) and of the TPU's (a transcript)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

from lacy_jax.errors import LacyError
from lacy_jax.planning.collectives import collectives
from lacy_jax.planning.hlo import Module, shape_bytes

pytestmark = pytest.mark.oldest

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


def test_a_loop_that_does_not_say_how_often_it_runs_is_an_error():
    text = TPU.replace("%constant.24 = s32[]{:T(128)} constant(24)", "%constant.24 = s32[] get-tuple-element(%c), index=0")  # fmt: skip
    assert Module(TPU).unknown_loops() == []
    assert Module(text).unknown_loops() == ["while.1"]
    with pytest.raises(
        LacyError, match=r"1 loops of the compiled program \(first: while.1\) do not say how often"
    ):
        collectives(text, 16)


# Cut from what libtpu 0.0.50.1 writes of a step for jax 0.12.0.1: the search for the mask's threshold. An element of a tuple is
# "%x#2", and JAX's own text of the same program has get-tuple-element in its place.
SEARCH = """
%region_14 (a: s32[], b: s32[]) -> s32[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %sum = s32[]{:T(128)} add(%a, %b)
}

%wide.region_17.21_spmd.clone (wide.param.125: (s32[], u32[], s32[])) -> pred[] {
  %constant.563.clone.2 = s32[]{:T(128)} constant(8)
  %wide.param.125 = (s32[]{:T(128)}, u32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  ROOT %lt.72 = pred[]{:T(512)} compare(%wide.param.125#0, %constant.563.clone.2), direction=LT, metadata={op_name="jit(train_step)/jvp()/while/cond/lt" stack_frame_id=161}
}

%wide.region_13.20_spmd.clone.sunk (wide.param.1: (s32[], u32[], s32[])) -> (s32[], u32[], s32[]) {
  %constant.596.clone..sunk.1 = s32[]{:T(128)} constant(1)
  %wide.param.1 = (s32[]{:T(128)}, u32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %add.1754 = s32[]{:T(128)} add(%wide.param.1#0, %constant.596.clone..sunk.1), metadata={op_name="jit(train_step)/jvp()/while/body/add" stack_frame_id=161}
  %broadcast.1 = s32[16]{0:T(128)S(1)} broadcast(%wide.param.1#2), dimensions={}
  %all-reduce.83 = s32[16]{0:T(128)S(1)} all-reduce(%broadcast.1), channel_id=14, replica_groups=mesh['data'=1,'fsdp'=4,'sequence'=1,'tensor'=1] {'fsdp'}, use_global_device_ids=true, to_apply=%region_14, metadata={op_name="jit(train_step)/jvp()/while/body"}
  ROOT %tuple.295 = (s32[]{:T(128)}, u32[]{:T(128)}, s32[]{:T(128)}) tuple(%add.1754, %wide.param.1#1, %wide.param.1#2)
}

%fused_counts (param_0.1: s32[]) -> (s32[], s32[]) {
  %param_0.1 = s32[]{:T(128)} parameter(0)
  ROOT %tuple.1 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%param_0.1, %param_0.1)
}

ENTRY %main.125_spmd (param.1: s32[], param.2: u32[]) -> s32[] {
  %param.1 = s32[]{:T(128)} parameter(0)
  %param.2 = u32[]{:T(128)} parameter(1)
  %constant.597 = s32[]{:T(128)} constant(0)
  %convert_reduce_fusion.6 = (s32[]{:T(128)}, s32[]{:T(128)}) fusion(%constant.597), kind=kLoop, calls=%fused_counts
  %tuple.293 = (s32[]{:T(128)}, u32[]{:T(128)}, s32[]{:T(128)}) tuple(%convert_reduce_fusion.6#1, %param.2, %param.1)
  %while.95 = (s32[]{:T(128)}, u32[]{:T(128)}, s32[]{:T(128)}) while(%tuple.293), condition=%wide.region_17.21_spmd.clone, body=%wide.region_13.20_spmd.clone.sunk, metadata={op_name="jit(train_step)/jvp()/while" stack_frame_id=152}
  ROOT %out = s32[]{:T(128)} copy(%while.95#2)
}
"""


def test_elements_written_with_a_number_sign_carry_trip_counts_too():
    (count,) = collectives(SEARCH, devices=4)
    assert (count.kind, count.executions, count.group, count.size) == ("all-reduce", 8, 4, 16 * 4)


# Cut from what libtpu 0.0.52 makes of a step for v5p:2x2x2 with data 2 and fsdp 4: its own reduce-scatter.
SCATTER = """
%add.2.clone (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1.clone.1 (input.16: f32[1024,8,128]) -> f32[256,8,128] {
  %input.16 = f32[1024,8,128]{2,0,1:T(8,128)} parameter(0)
  %all-reduce.91 = f32[1024,8,128]{2,0,1:T(8,128)} all-reduce(%input.16), channel_id=33, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add.2.clone, frontend_attributes={from-cross-replica-sharding="true"}
  %constant.shard_id_table.17 = u32[8]{0:T(128)} constant({0, 1, 2, 3, 0, 1, 2, 3})
  %partition-id.39 = u32[] partition-id()
  %dynamic-slice.162 = u32[1]{0:T(128)} dynamic-slice(%constant.shard_id_table.17, %partition-id.39), dynamic_slice_sizes={1}
  %bitcast.1081 = u32[]{:T(128)} bitcast(%dynamic-slice.162)
  %constant.1289 = u32[] constant(256)
  %multiply.282 = u32[]{:T(128)} multiply(%bitcast.1081, %constant.1289)
  %constant.1290 = u32[] constant(0)
  ROOT %dynamic-slice.163 = f32[256,8,128]{2,0,1:T(8,128)} dynamic-slice(%all-reduce.91, %multiply.282, %constant.1290, %constant.1290), dynamic_slice_sizes={256,8,128}
}

ENTRY %main (fusion.578: f32[1024,8,128]) -> f32[256,8,128] {
  %fusion.578 = f32[1024,8,128]{2,0,1:T(8,128)} parameter(0)
  ROOT %fusion.579 = f32[256,8,128]{2,0,1:T(8,128)} fusion(%fusion.578), kind=kCustom, calls=%all-reduce-scatter.1.clone.1, frontend_attributes={is_spmd_generated="true"}
}
"""


def test_a_reduce_scatter_of_the_tpu_is_no_all_reduce():
    (found,) = collectives(SCATTER, devices=8)
    assert (found.kind, found.size, found.members) == ("reduce-scatter", 1024 * 8 * 128 * 4, (0, 1, 2, 3))
    assert found.sent == pytest.approx(found.size * 3 / 4)


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


# As libtpu 0.0.50 writes them, shortened: the TensorCore's algorithms by name, a SparseCore's spelled out.
_PHASES = ',"ring_neighbor":"IMPLICIT","ring_type":"ICI_RING_TYPE_UNIDIR_{way}"}},{{"ring_type":"ICI_RING_TYPE_UNIDIR_{way}"}}]}}'
_SPARSE_CORE = "".join('{"phase_rings":[{"x":"0"' + _PHASES.format(way=way) for way in ("CW", "CCW"))


@pytest.mark.parametrize(
    ("operation", "written", "links"),
    [
        ("all-reduce", r'"debug":"\nUniDirectionNDRingStrategy{colors:4 phases:2 cores:{4 4},{4 4},{4 4},{4 4} x:0}"', 4),
        ("all-reduce", r'"debug":"\nStrategyND{colors:3 phases:3 cores:{4 4 4},{4 4 4},{4 4 4} x:0}"', 6),
        ("reduce-scatter", r'"debug":"\nStrategyRing{colors:1 phases:1 cores:{64}}\nStrategyRing{colors:1 phases:1 cores:{64}}"', 2),
        ("reduce-scatter", f'"reduce_scatter_offload_config":{{"color_strategies":[{_SPARSE_CORE}]}}', 2),
        ("all-gather", r'"debug":"\ngroup_size = 64 ","emitter":"3DAllGatherOnMajorDim"', 6),
        ("all-gather", r'"debug":"\ngroup_size = 16 ","emitter":"1DAllGatherNonMajorDimImbalanced"', 2),
        ("all-gather", '"flag_configs":[]', 0),
    ],
)  # fmt: skip
def test_the_links_of_an_algorithm_are_read(operation, written, links):
    text = f"""
ENTRY %main (x: f32[64,8]) -> f32[64,8] {{
  %x = f32[64,8]{{1,0}} parameter(0)
  ROOT %moved = f32[64,8]{{1,0}} {operation}(%x), channel_id=3, replica_groups={{{{0,1,2,3}}}}, backend_config={{{written}}}
}}
"""
    (found,) = collectives(text, devices=4)
    assert found.links == links


def test_the_algorithm_of_a_fused_scatter_stands_beside_the_fusion():
    text = """
%all-reduce-scatter.2 (x: f32[64,8]) -> f32[16,8] {
  %x = f32[64,8]{1,0} parameter(0)
  ROOT %all-reduce.1 = f32[64,8]{1,0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[64,8]) -> f32[16,8] {
  %x = f32[64,8]{1,0} parameter(0)
  ROOT %fusion.1 = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2, backend_config={"debug":"StrategyRing{colors:1 phases:1}"}
}
"""
    (found,) = collectives(text, devices=4)
    assert (found.kind, found.links) == ("reduce-scatter", 2)
