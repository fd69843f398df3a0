"""Topologies by name and the roofline: arithmetic that can be checked by hand."""

from __future__ import annotations

import pytest

from lacy_jax.errors import ConfigError
from lacy_jax.planning.slices import TPUS, parse_topology, roofline


@pytest.mark.parametrize(
    ("text", "slices", "layout", "chips"),
    [
        ("v5e:4x4", 1, "v5e:4x4", 16),
        ("v5e-16", 1, "v5e:4x4", 16),
        ("v5litepod-256", 2, "v5e:16x16", 512),
        ("v5p-128", 1, "v5p:4x4x4", 64),  # Cloud counts the cores of v4 and v5p.
        ("V4-32", 1, "v4:2x2x4", 16),
        ("v6e:8x8", 1, "v6e:8x8", 64),
    ],
)
def test_names_of_slices(text, slices, layout, chips):
    found = parse_topology(text, slices)
    assert (found.layout, found.chips) == (layout, chips)


@pytest.mark.parametrize(
    ("text", "slices", "says"),
    [
        ("h100:8", 1, "expected a chip of v4, v5e, v5p, v6e"),
        ("v5e", 1, "such as v5e:4x4"),
        ("v5e:4x4x4", 1, "a slice of v5e has 2 dimensions, such as v5e:4x4"),
        ("v5p:4x4", 1, "a slice of v5p has 3 dimensions"),
        ("v5e:32x32", 1, "1024 chips, but the largest v5e slice has 256; use several with --slices"),
        ("v5e-12", 1, "no such slice; known: v5e-1, v5e-4"),
        ("v5p-9", 1, "no such slice"),
        ("v5e:0x4", 1, "dimensions"),
        ("v5e:4x4", 0, "--slices=0: must be at least 1"),
    ],
)
def test_impossible_slices_say_what_would_do(text, slices, says):
    with pytest.raises(ConfigError) as caught:
        parse_topology(text, slices)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_slowest_resource_bounds_the_step():
    chip = TPUS["v5e"]
    bound = roofline(chip, flops=197e12, hbm_bytes=819e9 / 2, ici_s=3.0, dcn_bytes=0)
    assert (bound.compute, bound.memory, bound.ici, bound.dcn) == (1.0, 0.5, 3.0, 0.0)
    assert (bound.step_s, bound.limit) == (3.0, "ici")
