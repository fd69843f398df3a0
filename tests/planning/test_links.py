"""What a group of chips can exchange, by hand."""

from __future__ import annotations

import itertools

import pytest

from lacy_jax.planning.links import bandwidth, closed
from lacy_jax.planning.slices import parse_topology


def box(*ranges):
    """Coordinates of a group."""
    return list(itertools.product(*ranges))


@pytest.mark.parametrize(
    ("place", "joined"),
    [
        ("v5e:4x4", (False, False)),
        ("v5e:16x16", (True, True)),
        ("v6e:8x16", (False, True)),
        ("v5p:4x4x4", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("tpu7x:4x4x8", (True, True, True)),
    ],
)
def test_which_dimensions_are_closed(place, joined):
    assert closed(parse_topology(place)) == joined


@pytest.mark.parametrize(
    ("place", "members", "links"),
    [
        ("v5e:16x16", box(range(16), range(16)), 4),  # Everything: all links, as of a chip.
        ("v5e:16x16", box(range(16), [3]), 2),  # A ring along one dimension.
        ("v5e:16x16", box(range(4), [3]), 1),  # A part of it is a line.
        ("v5e:4x4", box(range(4), [0]), 1),
        ("v5e:4x4", box(range(4), range(4)), 2),  # A corner has two links.
        ("v5e:4x4", box([0, 2], [0]), 2 / 3),  # The group between needs the same link.
        ("v5p:4x4x4", box(range(4), range(4), [1]), 4),
        ("v5p:2x2x1", box(range(2), range(2), [0]), 2),
    ],
)
def test_a_group_has_the_links_of_its_dimensions(place, members, links):
    found = parse_topology(place)
    one = found.chip.ici_bytes_per_s / (2 * found.chip.dimensions)
    assert bandwidth(found, members) == pytest.approx(links * one)


@pytest.mark.parametrize(
    ("place", "most", "links"),
    [("v5e:4x4", 2, 2), ("v5e:4x4", 4, 2), ("v5p:4x4x4", 2, 2), ("v5p:4x4x4", 6, 6), ("v5p:4x4x4", 0, 6)],
)
def test_one_ring_through_all_chips_uses_two_links_of_each(place, most, links):
    found = parse_topology(place)
    members = box(*map(range, found.shape))
    one = found.chip.ici_bytes_per_s / (2 * found.chip.dimensions)
    assert bandwidth(found, members, most=most) == pytest.approx(links * one)


def test_a_message_may_go_both_ways_and_devices_share_their_chip():
    found = parse_topology("v5e:16x16")
    assert bandwidth(found, [(0, 0), (1, 0)], ring=False) == pytest.approx(2 * 50e9)
    found = parse_topology("tpu7x:4x4x4")
    chips = box(range(4), [0], [0])
    assert bandwidth(found, chips + chips) == pytest.approx(2 * 200e9 / 2)
    assert bandwidth(found, [(0, 0, 0), (0, 0, 0)]) == pytest.approx(600e9)
