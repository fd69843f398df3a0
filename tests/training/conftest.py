"""What most tests of training share: a small dataset and a finished run on it."""

from __future__ import annotations

import pathlib

import jax
import pytest
import training_small as small


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the small dataset. Tests must not write to it."""
    return small.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="session")
def one_device() -> list[jax.Device]:
    """Where most tests train: sharding has tests of its own."""
    return jax.devices()[:1]


@pytest.fixture(scope="session")
def finished_run(
    dataset: str, one_device: list[jax.Device], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Run directory of 12 uninterrupted steps. Tests must not write to it."""
    from lacy_jax.training import train

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(small.make_config(dataset), workdir, one_device)
    return workdir
