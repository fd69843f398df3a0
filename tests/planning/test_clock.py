"""The compiler's estimate of a program: from a transcript whose times are known, and from products compiled here."""

from __future__ import annotations

import json

import pytest
from tpu_plans import NEEDS_LIBTPU, compile_in_python

from lacy_jax.errors import LacyError
from lacy_jax.planning.clock import PHASES, WORK, read_clock
from lacy_jax.planning.slices import TPUS

# In the form of what libtpu 0.0.50 writes for a v5e: a loop of 24 layers, with a product of 1.5 million cycles, a kernel and a
# copy that runs beside them; after it a reduction, and a collective. An xprof line cuts the attributes of a kernel in two.
PROGRAM = """
HloModule jit_train_step, is_scheduled=true

%product (p: bf16[8,128], w: bf16[128,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  %w = bf16[128,128]{1,0} parameter(1)
  ROOT %dot = bf16[8,128]{1,0} convolution(%p, %w), dim_labels=bf_io->bf
}

%sums (p: bf16[8,128]) -> f32[8] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %sum = f32[8]{0} reduce(%p), dimensions={1}
}

%layers (c: (bf16[8,128], s32[])) -> (bf16[8,128], s32[]) {
  %c = (bf16[8,128]{1,0}, s32[]) parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%c#1, %one)
  %copy-start.1 = (f32[819000]{0}, f32[819000]{0}, u32[]) copy-start(%c#0)
  %splash_mha_fwd_segmented_residuals.1 = (bf16[2,16,1024,64]{3,2,1,0}, f32[2,16,1024,128]{3,2,1,0}) custom-call(%c#0), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": BLOCK, \\"block_kv\\": BLOCK}"
}}, metadata={op_name="jit(train_step)/jvp()/while/body/attention/pallas_call"}
  %ragged.1 = bf16[8,128]{1,0} custom-call(%c#0), custom_call_target="tpu_custom_call"
  %fusion.1 = bf16[8,128]{1,0} fusion(%c#0, %c#0), kind=kOutput, calls=%product, metadata={op_name="jit(train_step)/jvp()/while/body/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1500000"}}
  ROOT %out = (bf16[8,128]{1,0}, s32[]) tuple(%fusion.1, %next)
}

%more (c: (bf16[8,128], s32[])) -> pred[] {
  %c = (bf16[8,128]{1,0}, s32[]) parameter(0)
  %bound = s32[] BOUND
  ROOT %less = pred[] compare(%c#1, %bound), direction=LT
}

ENTRY %main (x: bf16[8,128]) -> f32[8] {
  %x = bf16[8,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (bf16[8,128]{1,0}, s32[]) tuple(%x, %zero)
  %while.1 = (bf16[8,128]{1,0}, s32[]) while(%start), condition=%more, body=%layers
  %all-reduce.1 = bf16[8,128]{1,0} all-reduce(%while.1#0), replica_groups={{0,1}}, to_apply=%sums, backend_config={"estimated_cycles":"999"}
  ROOT %fusion.2 = f32[8]{0} fusion(%all-reduce.1), kind=kLoop, calls=%sums, metadata={op_name="jit(train_step)/jvp(loss)/reduce_sum"}, backend_config={"window_config":{"estimated_cycles":"3000"}}
}
"""


def program(block: int = 512, bound: str = "constant(24)") -> str:
    return PROGRAM.replace("BLOCK", str(block)).replace("BOUND", bound)


def test_a_loop_counts_as_often_as_it_runs_and_each_kind_of_work_apart():
    chip = TPUS["v5e"]
    assert chip.clock_hz == pytest.approx(1.5e9, rel=0.01)
    found = read_clock(program(), chip, collectives_s=0.001)
    assert list(found.by("work")) == ["matmul", "attention kernel", "reduction"]
    assert found.by("work")["matmul"] == pytest.approx(24 * 1.5e6 / chip.clock_hz)
    assert found.by("work")["reduction"] == pytest.approx(3000 / chip.clock_hz)
    assert list(found.by("phase")) == ["attention", "mlp", "loss"]
    assert sum(found.by("phase").values()) == pytest.approx(sum(found.by("work").values()))
    assert found.step_s == pytest.approx(sum(found.by("work").values()) + 0.001)
    # To be read and written again: 24 x 2 x 3.276 MB at 819 GB/s.
    assert found.hidden_s == pytest.approx(24 * 2 * 4e-6)
    assert set(found.unknown) == {"ragged.1"}
    # By its bytes the reduction takes less: 2,048 in bfloat16, 32 out in float32. Products and kernels are as estimated.
    exact = sum(found.by("work")[work] for work in ("matmul", "attention kernel"))
    assert found.least_s == pytest.approx(exact + 2080 / 819e9 + 0.001)
    assert found.least_s < found.step_s
    assert found.parts[0].executions == 24
    assert set(found.by("work")) <= set(WORK)
    assert set(found.by("phase")) <= set(PHASES)
    json.dumps(found.to_dict())


def test_a_loop_without_a_known_end_is_an_error():
    with pytest.raises(LacyError, match=r"1 loops .*while\.1.* do not say how often they run"):
        read_clock(program(bound="parameter(1)"), TPUS["v5e"])


def test_bytes_that_no_estimate_allows_are_an_error():
    """Then they are counted wrong, as on TPU7x once: whole stacks of layers where a body only views them."""
    text = program().replace('"1500000"', '"1"').replace('"3000"', '"1"')
    with pytest.raises(
        LacyError, match=r"would take 0\.0 ms at full HBM bandwidth, the compiler estimates 0\.0 ms"
    ):
        read_clock(text, TPUS["v5e"])


def test_no_step_is_faster_than_its_bytes_and_no_lower_bound_above_the_estimate():
    """Copies beside other work, which are in no sum of the estimate, may be what takes longest."""
    slow = read_clock(program().replace("f32[819000]", "f32[819000000]"), TPUS["v5e"], 0.001)
    assert slow.hidden_s == pytest.approx(24 * 2 * 4e-3)
    assert slow.least_s == slow.step_s == slow.hbm_s > sum(part.seconds for part in slow.parts)
    usual = read_clock(program(), TPUS["v5e"], 0.001)
    for clock in (slow, usual, slow.on(TPUS["v6e"], TPUS["v5e"]), usual.on(TPUS["v5p"], TPUS["v5e"])):
        assert clock.hbm_s <= clock.least_s <= clock.step_s


def test_one_row_a_device_leaves_results_without_rows_and_heads():
    """As jax 0.10.2 and libtpu 0.0.42 write them: the kernel's running sums are of one block, [512, 128]."""
    one_row = "(bf16[16,1024,64]{2,1,0}, f32[16,1024,128]{2,1,0})"
    sums = "(f32[512,128]{1,0}, bf16[16,1024,64]{2,1,0}, f32[16,1024,128]{2,1,0})"
    batch = "(bf16[2,16,1024,64]{3,2,1,0}, f32[2,16,1024,128]{3,2,1,0})"
    seconds = [read_clock(program().replace(batch, form), TPUS["v5e"], 0.0).by("work")["attention kernel"] for form in (batch, one_row, sums)]  # fmt: skip
    assert seconds == [seconds[0], seconds[0] / 2, seconds[0] / 2]


def test_small_blocks_of_attention_take_about_four_times_as_long():
    """As the kernels compiled alone do: 1.92 ms a layer of 128 heads with blocks of 128, 0.45 with 512, 0.51 with 1,024."""
    chip = TPUS["v5e"]
    heads = 32 * 24
    for block, ms in ((128, 1.916), (512, 0.451), (1024, 0.507)):
        kernel = read_clock(program(block), chip).by("work")["attention kernel"]
        assert kernel / heads == pytest.approx(ms / 128 / 1e3, rel=0.2), block


_PRODUCTS = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from lacy_jax.planning import ahead
from lacy_jax.planning.clock import read_clock
from lacy_jax.planning.slices import parse_topology
import pathlib, tempfile
found = {}
for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    place = parse_topology(name)
    mesh = jax.sharding.Mesh(np.array(ahead.tpu_devices(place)[:1]), ("x",))
    a = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=jax.sharding.NamedSharding(mesh, jax.P()))
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = jax.jit(jnp.matmul).lower(a, a).compile(compiler_options=options)
        text = ahead.program_text(program, pathlib.Path(folder))
    clock = read_clock(text, place.chip)
    found[name] = (2 * 4096**3 / clock.by("work")["matmul"] / place.chip.peak_flops, clock.step_s)
print(json.dumps(found))
"""


@NEEDS_LIBTPU
def test_a_large_product_of_matrices_runs_near_the_peak():
    """The calibration: the compiler knows its matrix units."""
    for place, (share, _) in json.loads(compile_in_python(_PRODUCTS).splitlines()[-1]).items():
        assert 0.85 < share <= 1.02, (place, share)
