"""Shared fixtures. Eight simulated devices, so that sharding tests run in this process."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # Nothing is kept in the home of who runs the tests.

import hypothesis
import pytest

# A machine may be busy: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

_ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real text and test sets; tests that use it skip where it is absent."""
    path = pathlib.Path(os.environ.get("LACY_DATA", _ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set LACY_DATA to a folder that has wiki/, labels/, tokenizers/")
    return path
