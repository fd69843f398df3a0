"""`lacy score`: the losses of a run, stored in a dataset as the reference of another."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import training_small as small

from lacy_jax import cli
from lacy_jax.dataset import open_split
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.training import load_run, read_metrics, reference, train
from lacy_jax.training.reference import score_dataset


@pytest.fixture
def copy(dataset, tmp_path) -> pathlib.Path:
    """A dataset that may be written to."""
    return shutil.copytree(dataset, tmp_path / "dataset")


def _stored(path: pathlib.Path, split: str) -> np.ndarray:
    return np.array(open_split(path, split).extras["reference_nll"])


def test_each_token_gets_its_loss_given_its_document(finished_run, copy):
    """Against plain logits; documents longer than the context of 32 are cut every 32 tokens, as in training."""
    result = score_dataset(finished_run, copy)
    run = load_run(finished_run)
    for split in ("train", "valid"):
        source = open_split(copy, split)
        assert max(source.lengths) > 33
        for index in (0, 1, len(source) - 1):
            record = source[index]
            expected = np.zeros(len(record.tokens), np.float32)
            for start in range(0, len(record.tokens) - 1, 32):
                tokens = record.tokens[None, start : start + 33]
                positions = np.arange(tokens.shape[1] - 1)[None]
                hidden = run.model(tokens[:, :-1], positions, np.ones_like(positions))
                logits = jax.nn.log_softmax(run.model.logits(hidden)[0])[0]
                nll = -np.take_along_axis(np.asarray(logits), tokens[0, 1:, None], -1)[:, 0]
                expected[start + 1 : start + 1 + len(nll)] = nll
            np.testing.assert_allclose(record.labels["reference_nll"], expected, rtol=1e-4, atol=1e-5)
        mean = _stored(copy, split).sum() / (len(_stored(copy, split)) - len(source))
        assert result["splits"][split]["nll"] == pytest.approx(mean, rel=1e-5)


def test_a_policy_trains_and_validates_on_what_was_stored(finished_run, copy, one_device, tmp_path):
    """Where the reference is read from makes no difference but for rounding."""
    score_dataset(finished_run, copy)
    rows = {}
    for name, where in (("stored", "dataset"), ("asked", str(finished_run))):
        config = small.make_config(
            str(copy),
            objective__policy="rho",
            objective__reference=where,
            train__steps=5,
            input__packing="whole",
        )
        result = train(config, tmp_path / name, one_device)
        assert result.valid["realised_call_rate"] > 0.1
        rows[name] = read_metrics(tmp_path / name)[0]
    for field in ("loss", "threshold", "n_called"):
        assert rows["stored"][field] == pytest.approx(rows["asked"][field], rel=1e-4)


def test_stopped_and_shared_out_it_stores_the_same(finished_run, copy, dataset, tmp_path, monkeypatch):
    score_dataset(finished_run, copy)
    monkeypatch.setattr(reference, "PART_TOKENS", 600)
    scored: list[tuple[str, int]] = []
    real = reference._Scorer.__call__

    def counted(self, source, first, last):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append((source.split, first))
        return real(self, source, first, last)

    broken = shutil.copytree(dataset, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(reference._Scorer, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            score_dataset(finished_run, broken)
        assert "reference_nll" not in open_split(broken, "train").extras
        done, scored = scored, []
        with pytest.raises(KeyboardInterrupt):
            score_dataset(finished_run, broken)
        assert not set(done) & set(scored)
    shared = score_dataset(finished_run, broken, shard=(1, 3))
    assert shared["splits"]["train"]["missing"] > 0
    assert shared["splits"]["train"]["nll"] is None
    for index in (0, 2):
        last = score_dataset(finished_run, broken, shard=(index, 3))
    assert [found["missing"] for found in last["splits"].values()] == [0, 0]
    for split in ("train", "valid"):
        np.testing.assert_allclose(_stored(broken, split), _stored(copy, split), rtol=1e-5, atol=1e-6)
    assert not (broken / ".score").exists()

    def never(*_):
        pytest.fail("what is stored was scored again")

    monkeypatch.setattr(reference._Scorer, "__call__", never)
    assert score_dataset(finished_run, broken)["splits"] == last["splits"]


def test_another_model_replaces_what_is_stored(finished_run, copy, tmp_path):
    score_dataset(finished_run, copy, split="valid")
    before, note = _stored(copy, "valid"), json.loads((copy / "extra-reference_nll-valid.json").read_text())
    assert (note["step"], note["model"]) == (12, load_run(finished_run).fingerprint)
    score_dataset(finished_run, copy, split="valid", step=8)
    assert not np.array_equal(_stored(copy, "valid"), before)
    assert "reference_nll" not in open_split(copy, "train").extras


def test_the_verb(finished_run, copy, capsys):
    assert cli.main(["score", f"--workdir={finished_run}", f"--dataset={copy}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["splits"]) == {"train", "valid"}
    assert all(0 < found["nll"] < 10 for found in result["splits"].values())
    assert cli.main(["score", f"--workdir={finished_run}", f"--dataset={copy}", "--shard=2/2"]) == 2
    assert "--shard=2/2: expected I/N with I from 0 to N - 1" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(finished_run, copy, tmp_path):
    with pytest.raises(DataError, match=r"no records in split 'test' \(there are: train, valid\)"):
        score_dataset(finished_run, copy, split="test")
    other = small.write_dataset(
        tmp_path / "other", documents=5, extra="quite another text about boats and weather"
    )
    with pytest.raises(ConfigError, match="a reference must read the same tokens"):
        score_dataset(finished_run, other)
