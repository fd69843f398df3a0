from __future__ import annotations

import pathlib

import pytest
import tpu_stand_in
from tpu_stand_in import SCRIPTS

from lacy_jax import cli


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> tpu_stand_in.Cloud:
    """Stand-ins on a PATH of their own."""
    return tpu_stand_in.Cloud(tmp_path)


@pytest.fixture
def gke(cloud, monkeypatch):
    """`lacy gke ARGUMENTS` in the root of the repository; gives its exit status."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(SCRIPTS.parent)
    return lambda *arguments: cli.main(["gke", *arguments])
