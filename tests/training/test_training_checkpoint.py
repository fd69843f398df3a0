"""Checkpoints on disk: kept, complete, checked; damage and full disks."""

from __future__ import annotations

import errno
import gc
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp_v1

from lacy_jax.config import get_default_config
from lacy_jax.errors import CheckpointError
from lacy_jax.training.checkpoint import Checkpointer

# Orbax leaves coroutines of a failed read to the garbage collector, which reports them.
pytestmark = [
    pytest.mark.oldest,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IDENTITY = {
    "config": {"optimizer.learning_rate": 1e-3, "objective.policy": "lacy"},
    "data": {"tokenizer": "t0"},
}


@pytest.fixture(autouse=True)
def _collect_here():
    yield
    gc.collect()


def _config(**fields):
    config = get_default_config()
    config.checkpoint.keep, config.checkpoint.keep_best = 2, 0
    for name, value in fields.items():
        config.checkpoint[name] = value
    return config


def _state(step: int):
    rng = np.random.default_rng(step)
    params = {
        "w": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
        "b": {"c": jnp.asarray([step], jnp.float32)},
    }
    return params, {"mu": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32), "step": jnp.int32(step)}


def _abstract(step: int = 0):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(step))


def _save(checkpointer: Checkpointer, step: int, valid_nll: float | None = None) -> None:
    checkpointer.save(step, *_state(step), {**IDENTITY, "pipeline": {"next_row": 8 * step}}, valid_nll)


def _data_file(workdir: pathlib.Path, step: int, item: str) -> pathlib.Path:
    """The file that holds most of an item's numbers."""
    files = [f for f in (workdir / "checkpoints" / str(step) / item).rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip(tmp_path, asynchronous):
    with Checkpointer(tmp_path, _config(asynchronous=asynchronous)) as checkpointer:
        assert checkpointer.restore_latest(*_abstract()) is None
        _save(checkpointer, 3)
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore_latest(*_abstract())
    assert restored.step == 3
    assert restored.meta["pipeline"] == {"next_row": 24}
    jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.optimizer), _state(3))


def test_orbax_v1_opens_it(tmp_path):
    """Its next API, by its own account; ours is the one beneath it (docs/choices.md)."""
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 3)
    wanted = {"params": _abstract()[0], "meta": None}
    found = ocp_v1.load_checkpointables(tmp_path / "checkpoints" / "3", wanted)
    jax.tree.map(np.testing.assert_array_equal, found["params"], _state(3)[0])
    assert found["meta"]["pipeline"] == {"next_row": 24}


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    """The checkpoint under way holds the values at the time of `save`, whatever becomes of the buffers."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    params, optimizer = _state(1)
    params["w"] = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = np.arange(1 << 20, dtype=np.float32)
    with Checkpointer(tmp_path, _config()) as checkpointer:
        checkpointer.save(1, params, optimizer, IDENTITY)
        for _ in range(3):
            params = overwrite(params)
        checkpointer.wait()
        abstract = {
            "w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=params["w"].sharding),
            "b": _abstract()[0]["b"],
        }
        np.testing.assert_array_equal(checkpointer.restore(1, abstract).params["w"], expected)


def test_last_best_and_every_nth_are_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: 4.0, 6: 4.5, 7: 4.6, 8: 4.7}
    with Checkpointer(tmp_path, _config(keep=2, keep_best=1, keep_every=4)) as checkpointer:
        for step, nll in losses.items():
            _save(checkpointer, step, nll)
        checkpointer.wait()
        assert checkpointer.steps() == [3, 4, 7, 8]  # Best; multiples of 4; last two.


def test_checkpoint_without_validation_is_never_the_best(tmp_path):
    with Checkpointer(tmp_path, _config(keep=1, keep_best=1)) as checkpointer:
        for step, nll in ((1, 2.0), (2, None), (3, None)):
            _save(checkpointer, step, nll)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]


@pytest.mark.parametrize("nll", [float("nan"), float("-inf"), float("inf")])
def test_a_validation_that_is_no_number_is_never_the_best(tmp_path, nll):
    with Checkpointer(tmp_path, _config(keep=1, keep_best=1)) as checkpointer:
        for step, value in ((1, 1.0), (2, 2.0), (3, nll), (4, 3.0)):
            _save(checkpointer, step, value)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 4]


def test_nan_in_the_metrics_of_an_earlier_version_is_not_the_best_either(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("lacy_jax.training.checkpoint.math.isfinite", lambda x: True)
        with Checkpointer(tmp_path, _config(keep=3, keep_best=0)) as checkpointer:
            for step, value in ((1, 1.0), (2, float("nan"))):
                _save(checkpointer, step, value)
    with Checkpointer(tmp_path, _config(keep=1, keep_best=1)) as checkpointer:
        _save(checkpointer, 3, 2.0)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]


def test_unfinished_checkpoint_is_not_seen(tmp_path):
    """What a kill in the middle of a save leaves: a temporary folder beside the complete checkpoints."""
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (left / "params").mkdir(parents=True)
    with Checkpointer(tmp_path, _config()) as checkpointer:
        assert checkpointer.steps() == [1]
        assert checkpointer.restore_latest(*_abstract()).step == 1
        _save(checkpointer, 2)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]


def _flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def _truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _truncate, pathlib.Path.unlink])
@pytest.mark.parametrize("item", ["params", "optimizer", "meta"])
def test_damaged_latest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, item, capsys):
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
        _save(checkpointer, 2)
    damage(_data_file(tmp_path, 2, item))
    with Checkpointer(tmp_path, _config()) as checkpointer:
        restored = checkpointer.restore_latest(*_abstract())
        assert restored.step == 1
        jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.optimizer), _state(1))
        warning = capsys.readouterr().err
        assert f"warning: checkpoint {tmp_path}/checkpoints/2 is damaged" in warning
        assert "going back to step 1" in warning
        # The run goes on from there and writes its own step 2; the damaged one is kept aside.
        checkpointer.set_aside_after(1)
        _save(checkpointer, 2)
    assert (tmp_path / "damaged" / "2").is_dir()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore_latest(*_abstract()).step == 2


def test_only_checkpoint_damaged_is_an_error_that_names_it(tmp_path):
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
    _truncate(_data_file(tmp_path, 1, "params"))
    with (
        Checkpointer(tmp_path, _config()) as checkpointer,
        pytest.raises(CheckpointError, match=r"checkpoints/1 is damaged: .*; no older checkpoint is left"),
    ):
        checkpointer.restore_latest(*_abstract())


def test_every_flipped_bit_of_the_state_is_noticed(tmp_path):
    """The checksum itself, apart from what the storage format may notice."""
    from lacy_jax.training.checksums import _bit_sums, checksums

    tree = {
        "a": jnp.asarray([1.0, 2.0, 3.0, 1e-30]),
        "n": jnp.int32(7),
        "h": jnp.asarray([1.0, 2.0], jnp.bfloat16),
    }
    good = checksums(tree)
    assert (
        list(good.values()) == _bit_sums(jax.tree.leaves(tree)).tolist()
    )  # numpy and the compiled program agree.
    for name, leaf in tree.items():
        raw = np.asarray(leaf).tobytes()
        for bit in range(8 * len(raw)):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << (bit % 8)
            value = np.frombuffer(bytes(changed), np.asarray(leaf).dtype).reshape(leaf.shape)
            assert checksums({**tree, name: jnp.asarray(value)}) != good
    swapped = jnp.asarray([2.0, 1.0, 3.0, 1e-30])
    assert checksums({**tree, "a": swapped}) != good


def test_another_run_is_refused_with_the_fields_that_differ(tmp_path):
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
        checkpointer.wait()
        checkpointer.refuse_other_run(IDENTITY)
        other = {
            "config": {"optimizer.learning_rate": 3e-4, "objective.policy": "lacy"},
            "data": {"tokenizer": "t1"},
        }
        with pytest.raises(CheckpointError) as caught:
            checkpointer.refuse_other_run(other)
    message = str(caught.value)
    assert "config.optimizer.learning_rate = 0.0003 (checkpoint: 0.001)" in message
    assert "data.tokenizer = 't1' (checkpoint: 't0')" in message
    assert "policy" not in message
    assert "\n" not in message


def test_a_group_younger_than_the_checkpoint_is_not_compared(tmp_path):
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
        checkpointer.wait()
        checkpointer.refuse_other_run({**IDENTITY, "reference": {"model": "a"}})
        _, optimizer = _state(2)
        checkpointer.save(2, _state(2)[0], optimizer, {**IDENTITY, "reference": {"model": "a"}})
        checkpointer.wait()
        with pytest.raises(CheckpointError, match=r"reference.model = 'b' \(checkpoint: 'a'\)"):
            checkpointer.refuse_other_run({**IDENTITY, "reference": {"model": "b"}})


def test_a_field_younger_than_the_checkpoint_had_its_default(tmp_path):
    with Checkpointer(tmp_path, _config()) as checkpointer:
        _save(checkpointer, 1)
        checkpointer.wait()
        defaults = {"config": {"optimizer.ema_decay": 0.0, "objective.policy": "ntp"}}
        young = {**IDENTITY, "config": {**IDENTITY["config"], "optimizer.ema_decay": 0.0}}
        checkpointer.refuse_other_run(young, defaults)
        young["config"]["optimizer.ema_decay"] = 0.9
        with pytest.raises(CheckpointError, match=r"ema_decay = 0.9 \(checkpoint: 0.0\)"):
            checkpointer.refuse_other_run(young, defaults)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, asynchronous):
    from orbax.checkpoint._src.serialization import type_handlers

    with Checkpointer(tmp_path, _config(asynchronous=asynchronous)) as checkpointer:
        _save(checkpointer, 1)
        checkpointer.wait()

        async def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(type_handlers.ArrayHandler, "_serialize_batch", full, raising=False)
        monkeypatch.setattr(type_handlers.ArrayHandler, "serialize", full)
        with pytest.raises(CheckpointError) as caught:  # noqa: PT012 - asynchronous saves fail at `wait`
            _save(checkpointer, 2)
            checkpointer.wait()
        message = str(caught.value)
        assert f"cannot write checkpoint {tmp_path}/checkpoints/2: No space left on device" in message
        assert "last good checkpoint: step 1" in message
        assert "\n" not in message
        monkeypatch.undo()
        assert checkpointer.steps() == [1]
        assert checkpointer.restore_latest(*_abstract()).step == 1
        _save(checkpointer, 2)  # Space was made: the run can go on.
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]


_LIMITED = """
import resource, signal, sys
import jax.numpy as jnp
from lacy_jax.config import get_default_config
from lacy_jax.errors import CheckpointError
from lacy_jax.training.checkpoint import Checkpointer
config = get_default_config()
params = {"w": jnp.arange(1 << 19, dtype=jnp.float32)}
with Checkpointer(sys.argv[1], config) as checkpointer:
    checkpointer.save(1, params, params, {})
    checkpointer.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        checkpointer.save(2, params, params, {})
        checkpointer.wait()
    except CheckpointError as error:
        print("CheckpointError:", error)
    print("steps:", checkpointer.steps())
"""


def test_a_write_that_the_system_refuses(tmp_path):
    """Not simulated: the operating system itself cuts the file off."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "CheckpointError: cannot write checkpoint" in done.stdout, done.stdout + done.stderr
    assert "No space left on device; last good checkpoint: step 1" in done.stdout
    assert "steps: [1]" in done.stdout
