"""Meshes on TPU tori, and several slices: the data axis alone goes across them. Devices here are descriptions; nothing runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.training import sharding


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a TPU device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "pretend"
    core_on_chip: int = 0
    client: None = None

    @property
    def process_index(self) -> int:
        return self.slice_index


def chips(slices: int) -> list[Chip]:
    """Slices of 2 x 2 chips, in an order that mixes them."""
    return [Chip(4 * s + i, s, (i % 2, i // 2, 0)) for i in range(4) for s in range(slices)]


def mesh(slices: int, **sizes: int):
    config = get_default_config().mesh
    for axis, size in sizes.items():
        config[axis] = size
    return sharding.make_mesh(config, chips(slices))


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 4},
        {"fsdp": 2, "tensor": 2},
        {"data": 8},
        {"data": 4, "tensor": 2},
        {"sequence": 2, "fsdp": 2},
    ],
)
def test_only_data_goes_across_slices(sizes):
    found = mesh(2, **sizes)
    where = np.vectorize(lambda chip: chip.slice_index)(found.devices)
    assert found.size == 8
    # Along fsdp, sequence and tensor all chips are of one slice; along data each slice is one stretch.
    assert (where == where[:, :1, :1, :1]).all()
    assert (np.diff(where[:, 0, 0, 0]) >= 0).all()
    assert set(where[:, 0, 0, 0]) == {0, 1}


def test_a_data_axis_that_slices_do_not_divide_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"config.mesh.data = 1: must be a multiple of the 2 slices; fsdp, sequence and tensor stay",
    ):
        mesh(2, fsdp=8)
    with pytest.raises(ConfigError, match=r"config.mesh.data = 4: must be a multiple of the 3 slices"):
        mesh(3, data=4, fsdp=3)


def test_an_axis_that_needs_part_of_a_torus_axis_is_placed():
    """16 neighbours of an 8 x 8 torus: two of its rows."""
    torus = [Chip(8 * y + x, 0, (x, y, 0), device_kind="TPU v6 lite") for y in range(8) for x in range(8)]
    config = get_default_config().mesh
    config.fsdp = 16
    found = sharding.make_mesh(config, torus)
    assert dict(found.shape) == {"data": 4, "fsdp": 16, "sequence": 1, "tensor": 1}
    assert sorted(chip.id for chip in found.devices.flat) == list(range(64))
