"""What a user can get wrong, and what goes wrong by itself: one clear line each."""

from __future__ import annotations

import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax.dataset import open_split, write_extra
from lacy_jax.dataset.source import shard_name
from lacy_jax.errors import CheckpointError, ConfigError, DataError, TrainingError
from lacy_jax.training import load_run, loop, read_metrics, sharding, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.reference import reference_of
from lacy_jax.training.signals import StopRequest


def _poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of `steps` NaN, by a NaN in one parameter for that step only."""
    original = loop.make_train_step

    def make(*arguments):
        step_fn = original(*arguments)

        def poisoned(state, batch, reference):
            if int(state.step) + 1 not in steps:
                return step_fn(state, batch, reference)
            with jax.transfer_guard("allow"):
                call = state.params["call"] + 0
                bad = {**state.params, "call": call * jnp.nan}
            new, metrics = step_fn(type(state)(**{**vars(state), "params": bad}), batch, reference)
            return type(new)(**{**vars(new), "params": {**new.params, "call": call}}), metrics

        return poisoned

    monkeypatch.setattr(loop, "make_train_step", make)


def test_nan_loss_stops_the_run_and_names_the_last_good_checkpoint(
    dataset, one_device, tmp_path, monkeypatch
):
    """Step 8 has a checkpoint due: it must not be written."""
    _poison(monkeypatch, {8})
    with pytest.raises(TrainingError) as caught:
        train(small.make_config(dataset), tmp_path, one_device)
    message = str(caught.value)
    assert "step 8: loss nan" in message
    assert f"last good checkpoint: step 4 in {tmp_path}/checkpoints" in message
    assert "config.train.on_nan = 'skip'" in message
    assert "\n" not in message
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [4]
    assert read_metrics(tmp_path)[-1]["loss"] is None
    monkeypatch.undo()
    assert (
        train(small.make_config(dataset), tmp_path, one_device).step == 12
    )  # Intact: it goes on from step 4.


def test_nan_loss_is_skipped_and_counted(dataset, one_device, tmp_path, monkeypatch, capsys):
    _poison(monkeypatch, {3, 4, 7})
    result = train(
        small.make_config(dataset, train__on_nan="skip", train__max_skipped=2), tmp_path, one_device
    )
    assert result.train["skipped"] == 3
    assert "warning: step 4: loss nan" in (err := capsys.readouterr().err)
    assert "update dropped (2 in a row)" in err
    tokens = [
        line["weight_sum"]
        for line in read_metrics(tmp_path)
        if line["split"] == "train" and line["loss"] is not None
    ]
    assert result.train["total_tokens"] == sum(tokens)  # Dropped batches taught nothing.


def test_too_many_skipped_in_a_row_stop_the_run(dataset, one_device, tmp_path, monkeypatch):
    _poison(monkeypatch, {5, 6, 7})
    config = small.make_config(dataset, train__on_nan="skip", train__max_skipped=2)
    with pytest.raises(
        TrainingError, match=r"step 7: .*; 3 such steps in a row \(config.train.max_skipped = 2\)"
    ):
        train(config, tmp_path, one_device)


def test_batches_without_factual_targets_are_reported_not_fatal(one_device, tmp_path, capsys):
    path = small.write_dataset(tmp_path / "plain", factual=False)
    result = train(small.make_config(path, train__steps=6), tmp_path / "run", one_device)
    assert result.train["total_zero_factual_batches"] == 6
    assert result.train["n_called"] == 0
    assert result.train["loss"] > 0
    err = capsys.readouterr().err
    assert err.count("no factual target") == 1


def test_input_used_up_ends_the_run_with_a_checkpoint(dataset, one_device, tmp_path, capsys):
    result = train(small.make_config(dataset, input__epochs=1, train__steps=500), tmp_path, one_device)
    assert 0 < result.step < 500
    assert not result.interrupted
    assert f"input used up after step {result.step} (config.input.epochs = 1)" in capsys.readouterr().err
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps()[-1] == result.step
    lines = read_metrics(tmp_path)
    assert (
        train(small.make_config(dataset, input__epochs=1, train__steps=500), tmp_path, one_device).step
        == result.step
    )
    assert read_metrics(tmp_path) == lines


def test_another_tokenizer_is_refused_by_name(dataset, one_device, tmp_path):
    other = small.tokenizer("quite another text about boats and weather")
    other.save(tmp_path / "other.model")
    config = small.make_config(dataset, tokenizer__path=str(tmp_path / "other.model"))
    message = rf"dataset .*dataset was made with tokenizer {small.tokenizer().hash}, but config.tokenizer.path = .* is {other.hash}"
    with pytest.raises(DataError, match=message):
        train(config, tmp_path / "run", one_device)
    assert not (tmp_path / "run").exists()


def test_tokenizer_file_of_the_dataset_replaced(one_device, tmp_path):
    path = small.write_dataset(tmp_path / "dataset", documents=10)
    small.tokenizer("quite another text about boats and weather").save(f"{path}/tokenizer.model")
    with pytest.raises(DataError, match=r"its tokenizer.model is .*, its metadata says .*; restore the file"):
        train(small.make_config(path), tmp_path / "run", one_device)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            {"model__max_seq_len": 16},
            ConfigError,
            "config.model.max_seq_len = 16: shorter than config.input.seq_len = 32",
        ),
        ({"mesh__tensor": 3}, ConfigError, "does not fit the 1 devices"),
        ({"optimizer__warmup_steps": 12}, ConfigError, "config.optimizer.warmup_steps = 12"),
        ({"objective__policy": "lacie"}, ConfigError, "did you mean 'lacy'"),
        (
            {"objective__call_rate": 1.0},
            ConfigError,
            r"config.objective.call_rate = 1.0: must be in \[0, 1\)",
        ),
        (
            {"objective__policy": "judge"},
            DataError,
            r"config.objective.policy = 'judge' reads judge, which split 'train' of dataset .* does not have; "
            r"add it with lacy judge --config=\.\.\. --config.dataset.path=.*/dataset$",
        ),
        (
            {"objective__policy": "rho", "objective__reference": "dataset"},
            DataError,
            "config.objective.policy = 'rho' reads reference_nll, .* add it with lacy score --workdir=REFERENCE_RUN --dataset=",
        ),
        (
            {"objective__policy": "rho", "objective__reference": "/nowhere"},
            CheckpointError,
            "no run at /nowhere",
        ),
        ({"dataset__path": "/nowhere"}, DataError, "dataset /nowhere: metadata.json not found"),
        (
            {"objective__policy": "lacy_ignore"},
            DataError,
            r"'lacy_ignore' ignores tokens that are neither .* has none \(labels by fake\).* the same as policy 'lacy_ignorefacts'",
        ),
    ],
)
def test_configs_that_cannot_run_are_refused_before_anything_is_written(
    dataset, one_device, tmp_path, overrides, error, message
):
    with pytest.raises(error, match=message) as caught:
        train(small.make_config(dataset, **overrides), tmp_path / "run", one_device)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_empty_training_split(one_device, tmp_path):
    path = small.write_dataset(tmp_path / "dataset", documents=0)
    with pytest.raises(DataError, match="no records in split 'train'"):
        train(small.make_config(path), tmp_path / "run", one_device)


@pytest.fixture
def with_extra(dataset, tmp_path):
    """with_extra(name, splits, value): a copy of the dataset with an extra that is `value` everywhere."""

    def make(name: str, splits: tuple[str, ...], value: float = 1.0) -> str:
        path = tmp_path / "labelled"
        if not path.exists():
            shutil.copytree(dataset, path)
        for split in splits:
            lengths = open_split(path, split).lengths
            write_extra(path, name, split, (np.full(n, value) for n in lengths))
        return str(path)

    return make


@pytest.mark.parametrize(("policy", "extra"), [("judge", "judge"), ("rho", "reference_nll")])
@pytest.mark.parametrize("eval_batches", [2, 0])
def test_labels_that_only_validation_lacks_are_asked_for_before_the_first_step(
    one_device, tmp_path, with_extra, policy, extra, eval_batches
):
    """Also where training does not validate: `lacy evaluate` of the finished run would want them."""
    path = with_extra(extra, ("train",))
    fields = {"objective__policy": policy, "objective__reference": "dataset" if policy == "rho" else ""}
    config = small.make_config(path, train__eval_batches=eval_batches, train__steps=5, **fields)
    with pytest.raises(
        DataError, match=rf"reads {extra}, which split 'valid' .*add it with .* --split=valid"
    ):
        train(config, tmp_path / "run", one_device)
    assert not (tmp_path / "run").exists()
    with_extra(extra, ("valid",))
    assert train(config, tmp_path / "run", one_device).step == 5


def test_stored_labels_that_changed_since_the_checkpoint_are_refused(one_device, tmp_path, with_extra):
    path = with_extra("reference_nll", ("train", "valid"), 2.0)
    fields = {"objective__policy": "rho", "objective__reference": "dataset"}
    train(small.make_config(path, train__steps=5, **fields), tmp_path / "run", one_device)
    train(small.make_config(path, train__steps=5, **fields), tmp_path / "run", one_device)
    with_extra("reference_nll", ("train",), 3.0)
    with pytest.raises(CheckpointError, match=r"stored.reference_nll = '.*' \(checkpoint: '.*'\)"):
        train(small.make_config(path, train__steps=5, **fields), tmp_path / "run", one_device)


def test_another_reference_model_is_refused(dataset, one_device, finished_run, tmp_path):
    """Even under the name of the first, as when it was trained on in the meantime; by another name it is the same."""
    first, second = (shutil.copytree(finished_run, tmp_path / name) for name in ("first", "second"))
    shutil.rmtree(second / "checkpoints" / "12")
    for policy in ("rho", "spacy_ref"):

        def config(reference: pathlib.Path, policy: str = policy):
            fields = {"objective__policy": policy, "objective__reference": str(reference)}
            return small.make_config(dataset, train__steps=5, **fields)

        run = tmp_path / f"run_{policy}"
        train(config(first), run, one_device)
        assert train(config(finished_run), run, one_device).step == 5
        with pytest.raises(CheckpointError, match=r"reference.model = '.*' \(checkpoint: '.*'\)") as caught:
            train(config(second), run, one_device)
        assert "\n" not in str(caught.value)
        loaded, mesh = load_run(run), sharding.make_mesh(config(first).mesh, one_device)
        assert reference_of(loaded, mesh).step == 12
        shutil.rmtree(first / "checkpoints" / "12")
        with pytest.raises(CheckpointError, match=r"first' is another model .* than run .* was trained with"):
            reference_of(loaded, mesh)
        shutil.copytree(finished_run / "checkpoints" / "12", first / "checkpoints" / "12")


def test_a_gate_that_needs_validation_text_is_refused_where_there_is_none(one_device, tmp_path):
    path = small.write_dataset(tmp_path / "dataset", valid=0)
    with pytest.raises(
        ConfigError, match=r"'calibrated' is fitted on validation text, .* no validation split"
    ):
        train(small.make_config(path, generate__gate="calibrated"), tmp_path / "run", one_device)


def test_a_disk_without_room_for_a_checkpoint_is_refused_at_once(dataset, one_device, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"0.00 GB free, and a checkpoint of this run takes 0.00 GB"):
        train(small.make_config(dataset), tmp_path / "run", one_device)
    assert not (tmp_path / "run").exists()


def test_a_transfer_that_a_step_should_not_make_is_an_error(dataset, one_device, tmp_path, monkeypatch):
    """Rows that were not put on the devices would be sent there by each call, unseen and slow."""
    monkeypatch.setattr(sharding, "put_batch", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(small.make_config(dataset), tmp_path, one_device)


def test_validation_that_is_no_number_is_said(dataset, one_device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop.Evaluator, "evaluate", lambda *_: {"nll": float("nan")})
    train(small.make_config(dataset, train__steps=5), tmp_path, one_device)
    assert (
        "warning: step 5: validation nll nan: its checkpoint is never the best one" in capsys.readouterr().err
    )


def test_reference_model_must_share_the_tokenizer(one_device, finished_run, tmp_path):
    path = small.write_dataset(
        tmp_path / "dataset", documents=20, extra="quite another text about boats and weather"
    )
    config = small.make_config(path, objective__policy="spacy_ref", objective__reference=str(finished_run))
    with pytest.raises(
        ConfigError, match=r"config.objective.reference = .*: its tokenizer is .*, the dataset's"
    ):
        train(config, tmp_path / "run", one_device)


def test_frozen_reference_model_ranks_the_targets(dataset, one_device, finished_run, tmp_path):
    """With the run itself as its own reference the excess loss is small; with `spacy_ref` facts are called by rank."""
    config = small.make_config(
        dataset, objective__policy="spacy_ref", objective__reference=str(finished_run), train__steps=5
    )
    result = train(config, tmp_path, one_device)
    line = read_metrics(tmp_path)[0]
    assert line["n_called"] > 0
    # The model is fresh (nll near log V) but the threshold is the trained reference's loss.
    assert line["threshold"] < line["nll_all"]
    assert result.valid["realised_call_rate"] > 0.1


def test_memory_exhausted_is_one_line(dataset, one_device, tmp_path, monkeypatch):
    def exhausted(*_):
        def step(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")

        return step

    monkeypatch.setattr(loop, "make_train_step", exhausted)
    with pytest.raises(
        TrainingError, match=r"out of device memory: raise config.train.accumulation \(now 1\)"
    ) as caught:
        train(small.make_config(dataset), tmp_path, one_device)
    assert "\n" not in str(caught.value)


def test_no_validation_split_is_said_once(one_device, tmp_path, capsys):
    path = small.write_dataset(tmp_path / "dataset", documents=40, valid=0)
    result = train(small.make_config(path, train__steps=5), tmp_path / "run", one_device)
    assert result.valid == {}
    assert "no validation" in capsys.readouterr().err


def test_second_interrupt_is_immediate():
    with StopRequest() as stop:
        assert not stop.reached(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.reached(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_nothing_of_this_machine_in_the_record(finished_run: pathlib.Path):
    """Config and metadata name the dataset as the user did; no absolute path sneaks into checkpoints' identity."""
    with Checkpointer(finished_run) as checkpointer:
        meta = checkpointer.read_meta(12)
    assert "/" not in str(meta["config"])


@pytest.fixture
def damaged(dataset, tmp_path):
    """A copy of the dataset with a flipped bit in one record of its training shard."""
    path = shutil.copytree(dataset, tmp_path / "damaged")
    shard = path / shard_name("train", 0, 1)
    data = bytearray(shard.read_bytes())
    record = open_split(path, "train")[3]
    at = data.find(record.tokens.astype(np.uint16).tobytes())
    assert at > 0
    data[at] ^= 1
    shard.write_bytes(data)
    return str(path)


def test_a_damaged_record_stops_the_run_and_says_how_to_go_on(damaged, one_device, tmp_path):
    with pytest.raises(
        DataError, match=r"train.*record 3: corrupt: .*input.on_bad_record = 'skip'"
    ) as caught:
        train(small.make_config(damaged, train__steps=40), tmp_path / "run", one_device)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_left_out_and_counted(
    damaged, dataset, one_device, tmp_path, capsys, monkeypatch
):
    """More than an epoch, so that the record comes again; stopped on the way, it is the same run."""
    fields = {"train__steps": 40, "train__eval_every": 0, "input__on_bad_record": "skip"}
    train(small.make_config(damaged, **fields), tmp_path / "run", one_device)
    assert capsys.readouterr().err.count("warning: left out: ") == 1
    lines = [line for line in read_metrics(tmp_path / "run") if line["split"] == "train"]
    assert lines[-1]["bad_records"] == 1
    train(small.make_config(dataset, **fields), tmp_path / "whole", one_device)
    whole = [line for line in read_metrics(tmp_path / "whole") if line["split"] == "train"]
    assert "bad_records" not in whole[-1]
    assert lines[-1]["total_tokens"] < whole[-1]["total_tokens"]
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, step: step == 7)
        train(small.make_config(damaged, **fields), tmp_path / "broken", one_device)
    train(small.make_config(damaged, **fields), tmp_path / "broken", one_device)
    again = [line for line in read_metrics(tmp_path / "broken") if line["split"] == "train"]
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
