"""A loss spike sends the run back to its last checkpoint and past the batch: by a rule that a resumed run repeats."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import signal

import numpy as np
import pytest
import training_small as small

from lacy_jax.dataset import make_input
from lacy_jax.errors import ConfigError, TrainingError
from lacy_jax.training import loop, read_metrics, sharding, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.health import EVENTS_FILE
from lacy_jax.training.signals import StopRequest
from lacy_jax.training.step import make_train_step
from lacy_jax.training.watcher import Watcher

STEPS, POISON = 40, 30
TIMINGS = {"tokens_per_s", "mfu", "input_wait_share", "step_s", "goodput"}


def _config(dataset: str, **overrides: object):
    return small.make_config(
        dataset, train__steps=STEPS, train__eval_every=0, train__on_spike="rewind", health__window=8,
        health__loss_spike=6.0, checkpoint__every=4, optimizer__warmup_steps=0, **overrides,
    )  # fmt: skip


@pytest.fixture
def poison(monkeypatch, dataset):
    """poison(batches): these batches of the data, counted from 1, have random targets, whenever they are read."""
    put = sharding.put_batch
    clean: dict[int, bytes] = {}

    def set_batches(numbers: tuple[int, ...]) -> None:
        pipeline = make_input(_config(dataset), tokenizer_hash=small.tokenizer().hash)
        for number in range(1, max(numbers) + 1):
            batch = next(pipeline)
            if number in numbers:
                clean[number] = batch.tokens.tobytes()
        pipeline.close()

        def poisoned(batch, mesh):
            for number, tokens in clean.items():
                if batch.tokens.tobytes() == tokens:
                    random = np.random.default_rng(number).integers(4, small.VOCAB, batch.targets.shape)
                    batch = dataclasses.replace(
                        batch, targets=np.where(batch.weights, random, 0).astype(np.int32)
                    )
            return put(batch, mesh)

        monkeypatch.setattr(sharding, "put_batch", poisoned)

    return set_batches


def _events(workdir: pathlib.Path, kind: str) -> list[dict]:
    lines = (workdir / EVENTS_FILE).read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def _end(workdir: pathlib.Path):
    with Checkpointer(workdir) as checkpointer:
        meta = checkpointer.read_meta(STEPS)
    lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(workdir)]
    return meta["checksums"], meta["pipeline"], meta["totals"], meta["losses"], lines


def test_a_spike_sends_the_run_back_and_past_its_batch(dataset, one_device, tmp_path, poison, capsys):
    poison((POISON,))
    result = train(_config(dataset), tmp_path, one_device)
    assert (result.step, result.interrupted) == (STEPS, False)
    (event,) = _events(tmp_path, "rewind")
    assert (event["step"], event["to"], event["count"]) == (POISON, 28, 1)
    assert f"loss spike at step {POISON}" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # No step twice.
    assert max(line["loss"] for line in lines[POISON - 4 :]) < lines[0]["loss"] - 1
    assert lines[-1]["total_rewinds"] == 1
    _, pipeline, *_ = _end(tmp_path)
    skipped = POISON - 28  # Batches 29 and 30 were read and count for nothing.
    assert pipeline["next_row"] == (STEPS + skipped) * 8


def test_a_rewind_compiles_nothing(dataset, one_device, tmp_path, poison, monkeypatch):
    made = []

    def make(*arguments):
        made.append(make_train_step(*arguments))
        return made[-1]

    monkeypatch.setattr(loop, "make_train_step", make)
    poison((POISON,))
    train(_config(dataset), tmp_path, one_device)
    assert _events(tmp_path, "rewind")
    assert len(made) == 1
    assert made[0]._cache_size() == 1


def test_killed_after_the_rewind_it_does_the_same_again(dataset, one_device, tmp_path, poison, monkeypatch):
    """Stopped at 29, in the window between the checkpoint before the spike and the next: the resumed run meets it again."""
    poison((POISON,))
    train(_config(dataset), tmp_path / "whole", one_device)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, step: step == 29)
        assert train(_config(dataset), tmp_path / "broken", one_device).interrupted
    # As a kill leaves it: without the checkpoint of the stop itself.
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "29")
    train(_config(dataset), tmp_path / "broken", one_device)
    assert _end(tmp_path / "broken") == _end(tmp_path / "whole")


def test_a_signal_in_the_step_of_a_spike_is_not_lost(dataset, one_device, tmp_path, poison, monkeypatch):
    """It comes while the run turns back: one step from there, and it saves and stops."""
    poison((POISON,))
    catch_up = Watcher.catch_up

    def signalled(self: Watcher):
        found = catch_up(self)
        if found is not None:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Watcher, "catch_up", signalled)
    result = train(_config(dataset), tmp_path, one_device)
    assert (result.interrupted, result.step) == (True, 29)


def test_too_many_spikes_stop_the_run(dataset, one_device, tmp_path, poison):
    poison((POISON, POISON + 1))
    with pytest.raises(
        TrainingError, match=r"loss spike at step 29: .*went back 1 times before .*step 28"
    ) as caught:
        train(_config(dataset, train__max_rewinds=1), tmp_path, one_device)
    assert "\n" not in str(caught.value)


def test_a_spike_that_is_only_reported_changes_nothing(dataset, one_device, tmp_path, poison):
    poison((POISON,))
    config = _config(dataset)
    with config.unlocked():
        config.train.on_spike = "report"
    train(config, tmp_path, one_device)
    assert not _events(tmp_path, "rewind")
    assert [event["step"] for event in _events(tmp_path, "loss_spike")] == [POISON]


def test_rewinding_needs_spikes_to_be_looked_for(dataset):
    config = _config(dataset)
    with config.unlocked():
        config.health.loss_spike = 0.0
    with pytest.raises(ConfigError, match=r"train.on_spike = 'rewind': config.health.loss_spike is 0"):
        train(config, "never")
