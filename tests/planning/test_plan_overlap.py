"""What of the exchange runs beside other work: from programs in the form in which libtpu writes them."""

from __future__ import annotations

import pytest

from lacy_jax.planning.clock import read_clock
from lacy_jax.planning.collectives import collectives
from lacy_jax.planning.hlo import Module
from lacy_jax.planning.overlap import hidden_seconds
from lacy_jax.planning.slices import TPUS

# Of a SparseCore: prepared early, given its operand later, awaited in the end. In steps: parts of one gather inside fusions.
_HEAD = """
%sparse (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %sum.1 = f32[64]{0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
}

%sparse.2 (p: f32[64]) -> f32[64] {
  %p.2 = f32[64]{0} parameter(0)
  ROOT %sum.2 = f32[64]{0} all-reduce(%p.2), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
}

%step (p: f32[16]) -> f32[64] {
  %p.3 = f32[16]{0} parameter(0)
  ROOT %gather = f32[64]{0} all-gather(%p.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%other (p: f32[64]) -> f32[64] {
  %p.4 = f32[64]{0} parameter(0)
  ROOT %twice = f32[64]{0} add(%p.4, %p.4)
}
"""
_ONE = """
  %begun = ((), (), (s32[1])) async-start(), async_execution_thread="sparsecore", calls=%sparse
  %first = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
  %given = ((f32[64]), f32[64], (s32[1])) async-update(%begun, %x)
  %second = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
  %had = f32[64]{0} async-done(%given)
"""
_TWO_AT_ONCE = """
  %begun = ((f32[64]), f32[64], s32[1]) async-start(%x), calls=%sparse
  %begun.2 = ((f32[64]), f32[64], s32[1]) async-start(%x), calls=%sparse.2
  %first = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
  %had = f32[64]{0} async-done(%begun)
  %had.2 = f32[64]{0} async-done(%begun.2)
"""
_IN_STEPS = """
  %first = f32[64]{0} fusion(%x), kind=kCustom, calls=%step
  %second = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
  %third = f32[64]{0} fusion(%x), kind=kCustom, calls=%step
"""
_AWAITED_AT_ONCE = """
  %first = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
  %sum.3 = f32[64]{0} all-reduce(%x), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  %second = f32[64]{0} fusion(%x), kind=kLoop, calls=%other
"""
_WORK = {"first": 2.0, "second": 3.0, "third": 1.0}


def hidden(text: str, seconds: float) -> float:
    each = {one.where: seconds for one in collectives(text, devices=4)}
    assert each
    return hidden_seconds(Module(text), _WORK, each)


def entry(body: str) -> str:
    return f"{_HEAD}\nENTRY %main (x: f32[64]) -> f32[64] {{\n  %x = f32[64]{{0}} parameter(0)\n{body}}}\n"


@pytest.mark.parametrize(
    ("body", "seconds", "expected"),
    [
        (
            _ONE,
            2.0,
            2.0,
        ),  # All of it, beside the second of the fusions; the first runs before it has its operand.
        (_ONE, 4.0, 3.0),  # What takes longer than this is waited for.
        (_TWO_AT_ONCE, 1.5, 2.0),  # The second follows the first on the links.
        (_IN_STEPS, 3.0, 3.0),
        (_IN_STEPS, 9.0, 6.0),
        (_AWAITED_AT_ONCE, 3.0, 0.0),
    ],
)
def test_what_is_started_early_and_awaited_late_hides_behind_the_work_between(body, seconds, expected):
    assert hidden(entry(body), seconds) == pytest.approx(expected)


def test_the_clock_says_it_beside_the_sums():
    cycles = ', backend_config={"estimated_cycles":"3000000"}'
    text = entry(_IN_STEPS.replace("calls=%other", f"calls=%other{cycles}"))
    each = {one.where: 1.0 for one in collectives(text, devices=4)}
    found = read_clock(text, TPUS["v5e"], 1.0, each)
    second = 3e6 / TPUS["v5e"].clock_hz
    assert found.overlapped_s == pytest.approx(second)
    assert found.to_dict()["collectives_beside_work"] == found.overlapped_s
    assert found.step_s == pytest.approx(1.0 + second), "taken off no sum"
    assert read_clock(text, TPUS["v5e"], 1.0).overlapped_s == 0.0
    assert found.on(TPUS["v6e"], TPUS["v5e"]).overlapped_s == 0.0


def test_in_a_loop_it_hides_in_each_round_and_a_loop_is_work_too():
    text = f"""{_HEAD}
%body (c: (f32[64], s32[])) -> (f32[64], s32[]) {{
  %c = (f32[64]{{0}}, s32[]) parameter(0)
  %x = f32[64]{{0}} get-tuple-element(%c), index=0
  %i = s32[] get-tuple-element(%c), index=1
{_ONE}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (f32[64]{{0}}, s32[]) tuple(%had, %next)
}}

%more (c: (f32[64], s32[])) -> pred[] {{
  %c.1 = (f32[64]{{0}}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=1
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}}

ENTRY %main (x: f32[64]) -> f32[64] {{
  %x.1 = f32[64]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (f32[64]{{0}}, s32[]) tuple(%x.1, %zero)
  %begun.2 = ((f32[64]), f32[64], s32[1]) async-start(%x.1), calls=%sparse.2
  %loop = (f32[64]{{0}}, s32[]) while(%start), condition=%more, body=%body
  %had.2 = f32[64]{{0}} async-done(%begun.2)
}}
"""
    # Five rounds of 2 + 3 seconds of work, 4 of exchange: 3 hidden in each; one collective more, beside all of them.
    assert hidden(text, 4.0) == pytest.approx(5 * 3.0 + 4.0)
