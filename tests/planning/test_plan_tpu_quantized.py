"""Quantised training with the real TPU compiler: the products are in 8 bits, where the chip has them."""

from __future__ import annotations

import pytest
from tpu_plans import NEEDS_LIBTPU, check_a_small_step, make_plans

pytestmark = NEEDS_LIBTPU

_PLANS = """
for name, place, kind in (("v5e int8", "v5e:2x2", "int8"), ("v6e int8", "v6e-4", "int8"), ("tpu7x fp8", "tpu7x:2x2x1", "fp8"), ("v6e none", "v6e-4", "none")):
    found[name] = smoke(place, "input.batch_size=8", "model.dtype=bfloat16", f"train.quantization={kind}")
    _, text = compiled[-1]
    found[name]["numbers"] = {number: len(re.findall(r"\\b" + number + r"\\[", text)) for number in ("s8", "f8e4m3fn", "f8e5m2")}
"""


@pytest.fixture(scope="module")
def quantized() -> dict:
    return make_plans(_PLANS)


@pytest.mark.parametrize(
    ("place", "kind"), [("v5e int8", "s8"), ("v6e int8", "s8"), ("tpu7x fp8", "f8e4m3fn")]
)
def test_a_quantised_step_compiles_and_multiplies_in_8_bits(quantized, place, kind):
    found = quantized[place]
    assert found["numbers"][kind] > 20
    assert (found["numbers"]["f8e5m2"] > 0) == ("fp8" in place)
    assert found["memory_per_chip"]["left"] > 0
    assert found["chips"] == 4
    assert found["mesh"]["data"] == (8 if "tpu7x" in place else 4)


def test_the_step_compiles_for_a_v6e(quantized):
    check_a_small_step(quantized["v6e none"])


def test_a_quantised_step_has_less_to_compute(quantized):
    """Of the layers' matrices a quarter is forward, a quarter recomputed, half backward: all at twice the speed."""
    with_it, without = quantized["v6e int8"], quantized["v6e none"]
    matrices = 12 * 128**2
    saved = 8 * matrices * 8 * 256 / 4 * (1 / 918e12 - 1 / 1836e12)
    assert without["roofline_s"]["compute"] - with_it["roofline_s"]["compute"] == pytest.approx(saved)
