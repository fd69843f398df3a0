"""How much of what two runs delegate is the same."""

from __future__ import annotations

import numpy as np
import pytest
from evaluated_runs import evaluation_config, save_run

from lacy_jax.dataset import build_dataset
from lacy_jax.errors import ConfigError
from lacy_jax.studies.overlap import GATE, MASKS, jaccard, overlap_study, overlap_table


def test_jaccard():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1.0
    assert np.isnan(jaccard(a & False, a & False))


def test_seeds_and_values_are_compared_on_the_same_tokens(tmp_path):
    """Runs of random parameters: one is told from itself by nothing, from others by much."""
    config = evaluation_config("lacy", tmp_path / "dataset")
    build_dataset(config, config.dataset.path)
    for seed in range(3):
        save_run(tmp_path / str(seed), config, seed)
    places = [tmp_path / str(seed) for seed in range(3)]
    result = overlap_study({"a": [places[0], places[1]], "b": [places[0], places[2]]}, batches=2)
    assert result["tokens"] > 100
    assert [len(runs) for runs in result["runs"].values()] == [2, 2]
    assert result["runs"]["a"][0] == result["runs"]["b"][0]
    assert result["runs"]["a"][0]["nll"] > 0
    assert f"wrong_fact_auroc/{GATE}" in result["runs"]["a"][0]
    for mask in MASKS:
        pairs = result["overlap"][mask]
        assert {name: len(found) for name, found in pairs.items()} == {"a": 1, "b": 1, "a / b": 4}
        assert pairs["a / b"][0] == 1.0
        assert 0 < pairs["a"][0] == pairs["a / b"][2] < 1.0  # Runs 0 and 1, both times.
    text = overlap_table(result)
    assert "a / b" in text
    assert f"{result['tokens']:,} held-out tokens" in text


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    config = evaluation_config("lacy", tmp_path / "dataset")
    build_dataset(config, config.dataset.path)
    save_run(tmp_path / "one", config, 0)
    config.objective.call_rate = 0.3
    save_run(tmp_path / "other", config, 0)
    with pytest.raises(
        ConfigError, match=r"other: runs are compared token by token, .* same dataset and call rate"
    ):
        overlap_study({"a": [tmp_path / "one"], "b": [tmp_path / "other"]}, batches=1)
