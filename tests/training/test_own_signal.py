"""A signal that the package has never heard of: stored by its producer, read by its policy, known to nothing between."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import training_small as small

from lacy_jax.dataset import make_input, open_split, write_extra
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.evaluation.evaluate import evaluate_run
from lacy_jax.objectives import POLICIES, Policy, delegation_mask
from lacy_jax.objectives.policies import Choice
from lacy_jax.training import train


@pytest.fixture
def rarity(monkeypatch):
    """A policy that delegates what the signal `rarity` puts above 6."""
    policy = Policy(
        "rare", "rare enough", lambda s: Choice(s.valid & (s.label("rarity") > 6)), labels=("rarity",)
    )
    monkeypatch.setitem(POLICIES._entries, "rare", policy)
    return policy


def write_rarity(path, split):
    """The producer: here the last digit of each token's id."""
    source = open_split(path, split)
    write_extra(path, "rarity", split, (source[i].tokens % 10 for i in range(len(source))))


def test_from_the_producer_to_the_mask(rarity, one_device, tmp_path):
    path = small.write_dataset(tmp_path / "data")
    write_rarity(path, "train")
    write_rarity(path, "valid")
    config = small.make_config(path, objective__policy="rare", train__steps=5, train__accumulation=2)
    first = next(make_input(config))
    assert first.labels["rarity"].dtype == np.int32
    np.testing.assert_array_equal(first.labels["rarity"], np.where(first.weights, first.targets % 10, 0))

    result = train(config, tmp_path / "run", one_device)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rare = first.weights & (first.targets % 10 > 6)
    assert lines[0]["n_called"] == rare.sum() > 0
    assert 0.05 < result.valid["realised_call_rate"] < 0.6
    figures = evaluate_run(tmp_path / "run", save=False)
    batches = list(make_input(config, split="valid", epochs=1, drop_remainder=False))
    want = sum((b.weights & (b.targets % 10 > 6)).sum() for b in batches) / sum(
        b.weights.sum() for b in batches
    )
    assert figures["call_rate"] == pytest.approx(want)


def test_a_dataset_without_it_is_refused_before_the_first_step(rarity, tmp_path):
    path = small.write_dataset(tmp_path / "data")
    write_rarity(path, "train")
    missing = r"'rare' reads rarity, which split 'valid' of .* does not have; add it with lacy_jax.dataset.write_extra"
    with pytest.raises(DataError, match=missing):
        train(small.make_config(path, objective__policy="rare"), tmp_path / "run")


def test_plain_arrays_will_do(rarity):
    weights = np.ones((2, 5), bool)
    nll, rare = np.ones((2, 5), np.float32), np.arange(10).reshape(2, 5)
    mask = delegation_mask("rare", nll=nll, weights=weights, labels={"rarity": rare}, call_rate=0.1)
    np.testing.assert_array_equal(mask.call, rare > 6)
    with pytest.raises(ConfigError, match=r"no rarity labels: add them with lacy_jax.dataset.write_extra"):
        delegation_mask("rare", nll=nll, weights=weights, labels={"factual": rare > 6}, call_rate=0.1)
    careless = dataclasses.replace(rarity, labels=())
    with pytest.raises(
        ConfigError, match=r"reads the label 'rarity' without naming it: Policy\(..., labels="
    ):
        delegation_mask(careless, nll=nll, weights=weights, labels={"rarity": rare}, call_rate=0.1)
