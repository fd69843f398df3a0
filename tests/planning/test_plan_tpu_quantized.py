"""Quantised training with the real TPU compiler: the products are in 8 bits, where the chip has them."""

from __future__ import annotations

import pytest
from tpu_plans import NEEDS_LIBTPU, make_plans

pytestmark = NEEDS_LIBTPU

_PLANS = """
written = ahead.program_text
numbers = {}
def in_8_bits(program, folder):
    text = written(program, folder)
    numbers.update({kind: len(re.findall(r"\\b" + kind + r"\\[", text)) for kind in ("s8", "f8e4m3fn", "f8e5m2")})
    return text
ahead.program_text = in_8_bits
for name, place, kind in (("v5e int8", "v5e:2x2", "int8"), ("v6e int8", "v6e-4", "int8"), ("tpu7x fp8", "tpu7x:2x2x1", "fp8"), ("v6e none", "v6e-4", "none")):
    found[name] = smoke(place, *PAPER, "model.dtype=bfloat16", f"train.quantization={kind}")
    found[name]["numbers"] = dict(numbers)
"""


@pytest.fixture(scope="module")
def plans() -> dict:
    return make_plans(_PLANS)


@pytest.mark.parametrize(
    ("place", "kind"), [("v5e int8", "s8"), ("v6e int8", "s8"), ("tpu7x fp8", "f8e4m3fn")]
)
def test_a_quantised_step_compiles_and_multiplies_in_8_bits(plans, place, kind):
    found = plans[place]
    assert found["numbers"][kind] > 20
    assert (found["numbers"]["f8e5m2"] > 0) == ("fp8" in place)
    assert found["memory_per_chip"]["left"] > 0
    assert found["chips"] == 4
    assert found["mesh"]["data"] == (8 if "tpu7x" in place else 4)


def test_a_quantised_step_has_less_to_compute(plans):
    """Of the layers' matrices a quarter is forward, a quarter recomputed, half backward: all at twice the speed."""
    with_it, without = plans["v6e int8"], plans["v6e none"]
    matrices = 12 * 512**2
    saved = 8 * matrices * 16 * 1024 / 4 * (1 / 918e12 - 1 / 1836e12)
    assert without["roofline_s"]["compute"] - with_it["roofline_s"]["compute"] == pytest.approx(saved)
