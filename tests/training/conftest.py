"""One compilation cache for all training tests: most of their time is XLA compiling the same small steps."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import jax
import pytest
import training_small as small


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Folder of the cache; subprocesses of a test may use it too (JAX_COMPILATION_CACHE_DIR)."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla"  # Shared by workers.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    yield folder
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


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
