"""A run that is stopped and goes on is the run that was not: to the last bit, in every way of stopping."""

from __future__ import annotations

import gc
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import training_small as small

from lacy_jax.errors import CheckpointError
from lacy_jax.training import load_run, read_metrics, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.signals import StopRequest

pytestmark = pytest.mark.oldest

TIMINGS = {"tokens_per_s", "mfu", "input_wait_share", "step_s", "goodput"}


def _checksums(workdir: pathlib.Path, step: int) -> dict[str, int]:
    """Checksums of every parameter and every part of the optimiser state in a checkpoint."""
    with Checkpointer(workdir) as checkpointer:
        return checkpointer.read_meta(step)["checksums"]


def _lines(workdir: pathlib.Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(workdir)]


def _assert_same_run(workdir: pathlib.Path, other: pathlib.Path, step: int = 12) -> None:
    assert _checksums(workdir, step) == _checksums(other, step)
    assert _lines(workdir) == _lines(other)
    with Checkpointer(workdir) as a, Checkpointer(other) as b:
        one, two = a.read_meta(step), b.read_meta(step)
    assert (one["pipeline"], one["totals"]) == (two["pipeline"], two["totals"])


def _stop_after(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """As if the signal had come during step `at`."""
    monkeypatch.setattr(StopRequest, "reached", lambda self, step: step == at)


def test_the_run_directory_is_the_record(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "tokenizer.model",
        "dataset_metadata.json",
        "metrics.jsonl",
    }
    lines = read_metrics(finished_run)
    train_lines = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train_lines] == list(range(1, 13))
    assert [line["step"] for line in lines if line["split"] == "valid"] == [6, 12]
    assert train_lines[-1]["loss"] < train_lines[0]["loss"] - 1  # It learns.
    wanted = {
        "loss", "call_loss", "learn_loss", "realised_call_rate", "factual_rate", "threshold", "nll_called", "nll_learned", "grad_norm",
        "learning_rate", "tokens_per_s", "mfu", "input_wait_share", "total_learned_tokens",
    }  # fmt: skip
    assert wanted <= set(train_lines[5])
    assert train_lines[-1]["total_learned_tokens"] == sum(line["n_learned"] for line in train_lines)


@pytest.mark.parametrize("at", [6, 7])
def test_stopped_and_resumed_equals_uninterrupted(
    dataset, one_device, finished_run, tmp_path, monkeypatch, at, capsys
):
    """Step 6 has a validation due; step 7 is an ordinary step without a checkpoint of its own."""
    config = small.make_config(dataset)
    with monkeypatch.context() as patch:
        _stop_after(patch, at)
        result = train(config, tmp_path, one_device)
    assert result.interrupted
    assert result.step == at
    assert "resumable" in result.summary()
    assert "resumable" in capsys.readouterr().err
    result = train(config, tmp_path, one_device)
    assert not result.interrupted
    assert f"resuming from step {at}" in capsys.readouterr().err
    _assert_same_run(tmp_path, finished_run)
    assert [s["start_step"] for s in json.loads((tmp_path / "environment.json").read_text())] == [0, at]


@pytest.mark.parametrize("sharded", [True, False])
def test_the_optimiser_may_be_sharded_or_not_when_a_run_goes_on(
    dataset, tmp_path, monkeypatch, capsys, sharded
):
    """What was written with one setting of `train.shard_optimizer` is read with the other, and then loads as any run."""
    devices = jax.devices()[:4]
    with monkeypatch.context() as patch:
        _stop_after(patch, 6)
        train(small.make_config(dataset, train__shard_optimizer=sharded), tmp_path / "one", devices)
    config = small.make_config(dataset, train__shard_optimizer=not sharded)
    train(config, tmp_path / "one", devices)
    assert "resuming from step 6" in capsys.readouterr().err
    train(config, tmp_path / "other", devices)
    ours, theirs = (load_run(tmp_path / name).params for name in ("one", "other"))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5), ours, theirs
    )


# Orbax leaves coroutines of a failed read to the garbage collector, which reports them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_checkpoint_costs_steps_not_the_run(
    dataset, one_device, finished_run, tmp_path, monkeypatch, capsys
):
    config = small.make_config(dataset, checkpoint__keep=5)
    with monkeypatch.context() as patch:
        _stop_after(patch, 9)
        train(config, tmp_path, one_device)
    for file in (tmp_path / "checkpoints" / "9" / "params").rglob("d/*"):
        file.write_bytes(b"rubbish")
    train(config, tmp_path, one_device)
    warned = capsys.readouterr().err
    assert "checkpoints/9 is damaged" in warned
    assert "resuming from step 8" in warned
    _assert_same_run(tmp_path, finished_run)
    gc.collect()


def test_finished_run_is_left_alone(dataset, one_device, finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    result = train(small.make_config(dataset), copy, one_device)
    assert (result.step, result.interrupted) == (12, False)
    assert result.valid["nll"] == read_metrics(finished_run)[-1]["nll"]
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_another_config_in_the_same_workdir_is_refused(dataset, one_device, finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    before = (copy / "config.json").read_text()
    with pytest.raises(CheckpointError) as caught:
        train(
            small.make_config(dataset, optimizer__learning_rate=1e-3, objective__policy="ntp"),
            copy,
            one_device,
        )
    message = str(caught.value)
    assert "config.objective.policy = 'ntp' (checkpoint: 'lacy')" in message
    assert "config.optimizer.learning_rate = 0.001 (checkpoint: 0.003)" in message
    assert "restore these fields or use another workdir" in message
    assert (copy / "config.json").read_text() == before


def test_load_run_gives_the_model_that_was_saved(finished_run, dataset):
    run = load_run(finished_run)
    assert (run.step, run.tokenizer.hash, run.config.dataset.path) == (12, small.tokenizer().hash, dataset)
    with Checkpointer(finished_run) as checkpointer:
        saved = checkpointer.read_meta(12)["checksums"]
    assert {
        f"params/{name}": value for name, value in _bit_sums_of(run.params).items()
    }.items() <= saved.items()
    assert run.model.cfg == run.model_config
    assert load_run(finished_run, step=8).step == 8
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 5; it has .*8, 12"):
        load_run(finished_run, step=5)


def _bit_sums_of(params) -> dict[str, int]:
    """The documented checksum, written out with numpy: sum of the words, each times 2 * position + 1, modulo 2**32."""
    found = {}
    for path, leaf in jax.tree.flatten_with_path(params)[0]:
        words = np.asarray(leaf).view(np.uint32).ravel().astype(object)
        weights = 2 * np.arange(words.size).astype(object) + 1
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = int((words * weights).sum() % 2**32)
    return found


@pytest.mark.parametrize("missing", ["config.json", "checkpoints"])
def test_load_run_without_a_run(finished_run, tmp_path, missing):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        CheckpointError, match=r"no run at .*config.json not found|no checkpoint in .*train the run first"
    ):
        load_run(copy)
