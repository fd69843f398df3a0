"""How fast the members of a collective can exchange within a slice, by the links they really have.

A chip of a torus of d dimensions has 2 d links, two along each dimension. A group that lies along some dimensions uses
only the links of these. Along a dimension that is closed to a ring, both links are in use all the time. An open
dimension is a line: its end chips have one link, and what goes around the ring must come back through the middle, so
the bandwidth is half. Groups whose chips alternate along a dimension share its links. One ring through all chips of a group
uses two links of each.

In slices of three dimensions, the dimensions are closed if all are multiples of 4: these slices are made of whole cubes
with optical switches around them. On v5e and v6e only dimensions of 16, the whole pod's, are closed
(docs.cloud.google.com/tpu/docs, "v4", "v5p", "v5e", "v6e").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from lacy_jax.planning.collectives import Collective, Where
from lacy_jax.planning.slices import Topology

_CLOSED_2D = 16
_CUBE = 4


def closed(place: Topology) -> tuple[bool, ...]:
    """For each dimension of a slice, whether its ends are joined."""
    if place.chip.dimensions == 2:
        return tuple(size == _CLOSED_2D for size in place.shape)
    cubes = all(size % _CUBE == 0 for size in place.shape)
    return tuple(cubes for _ in place.shape)


def bandwidth(place: Topology, members: Sequence[tuple[int, ...]], ring: bool = True, most: int = 0) -> float:
    """Bytes per second, in one direction, that each member can send to the others while all groups exchange at once.

    Args:
      place: the slice.
      members: coordinates of one group's chips; equal coordinates are devices of one chip.
      ring: False = one message from the first to the last, over the links of its dimensions; at best both ways around.
      most: the algorithm sends over no more than so many links at once; 0 = over all.
    """
    link = place.chip.ici_bytes_per_s * place.chip.devices / (2 * place.chip.dimensions)
    total = 0.0
    for size, joined, *values in zip(place.shape, closed(place), *members, strict=True):
        used = sorted(set(values))
        if len(used) < 2:
            continue
        whole = joined and len(used) == size
        links = 2 if whole or not ring else 1
        between = (used[-1] - used[0] + 1) / len(
            used
        )  # Chips of other groups lie between them and need the same links.
        total += links * link / (1.0 if whole or not ring else max(between, 1.0))
    if most:
        total = min(total, most * link)
    # Devices share the links of their chip; within one chip they have more bandwidth than all its links.
    return (total or 2 * place.chip.dimensions * link) / place.chip.devices


def seconds_of_each(
    place: Topology, messages: Sequence[Collective], devices: Sequence[jax.Device]
) -> dict[Where, float]:
    """Seconds of each of a step's collectives within slices, once.

    Args:
      place: the slices.
      messages: all collectives of a step.
      devices: descriptions of its devices, in the order of the mesh.
    """
    where = [tuple(device.coords[: place.chip.dimensions]) for device in devices]
    return {
        one.where: one.sent
        / one.executions
        / bandwidth(place, [where[i] for i in one.members], one.kind != "collective-permute", one.links)
        for one in messages
        if not one.crosses_slices
    }


def exchange_seconds(messages: Sequence[Collective], each: Mapping[Where, float]) -> float:
    """Seconds of a step's collectives, one after the other; `each`: see `seconds_of_each`."""
    return sum(one.executions * each.get(one.where, 0.0) for one in messages)
