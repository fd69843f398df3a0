"""Intervals and calibration against their definitions, enumerated by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lacy_jax.evaluation import detectors


def _exact_quantiles(statistic, n, level=0.95):
    """Every one of the n**n equally likely resamples."""
    values = [statistic(np.bincount(draw, minlength=n)) for draw in itertools.product(range(n), repeat=n)]
    values = [v for v in values if np.isfinite(v)]
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2])


def test_bootstrap_ratio_matches_the_full_enumeration_of_resamples():
    true, stated = np.array([1, 5, 2, 0, 7]), np.array([4, 6, 2, 3, 9])
    interval = detectors.bootstrap_ratio(true, stated, resamples=40_000)
    assert interval.estimate == pytest.approx(15 / 24)
    exact = _exact_quantiles(lambda w: (w @ true) / (w @ stated), 5)
    np.testing.assert_allclose([interval.low, interval.high], exact, atol=0.01)


def test_paired_difference_matches_enumeration_and_is_narrower_than_unpaired():
    a, b, n = np.array([1, 5, 9, 3, 7]), np.array([0, 4, 8, 2, 5]), np.full(5, 10)
    interval = detectors.bootstrap_ratio_difference(a, n, b, n, resamples=40_000)
    assert interval.estimate == pytest.approx(0.25 * 0.48, abs=1e-12)
    exact = _exact_quantiles(lambda w: (w @ a) / (w @ n) - (w @ b) / (w @ n), 5)
    np.testing.assert_allclose([interval.low, interval.high], exact, atol=0.005)
    assert (
        interval.high - interval.low
        < 0.1
        < detectors.bootstrap_ratio(a, n).high - detectors.bootstrap_ratio(a, n).low
    )


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        stated = rng.integers(1, 12, 60)
        share = rng.beta(2, 3, 60)  # people differ, facts of a person go together
        interval = detectors.bootstrap_ratio(rng.binomial(stated, share), stated, resamples=400, seed=trial)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_reproducible_and_independent_of_chunking(monkeypatch):
    true, stated = np.arange(40), np.arange(40) + 5
    whole = detectors.bootstrap_ratio(true, stated, seed=3)
    assert whole == detectors.bootstrap_ratio(true, stated, seed=3)
    monkeypatch.setattr(detectors, "_CHUNK", 400)
    assert detectors.bootstrap_ratio(true, stated, seed=3) == whole


def test_bootstrap_without_evidence_gives_no_interval():
    assert np.isnan(detectors.bootstrap_ratio([], []).estimate)
    one = detectors.bootstrap_ratio([3], [4])
    assert one.estimate == 0.75
    assert np.isnan(one.low)
    nothing_stated = detectors.bootstrap_ratio([0, 0], [0, 0])
    assert np.isnan(nothing_stated.estimate)
    with pytest.raises(ValueError, match="lengths differ: 2 and 1"):
        detectors.bootstrap_ratio([1, 2], [3])
    with pytest.raises(ValueError, match="same units on both sides, got 1 and 2"):
        detectors.bootstrap_ratio_difference([1], [3], [1, 1], [3, 3])


def test_calibration_curve_against_its_definition():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), [0.0, 1.0, 0.1, 0.3]])
    event = rng.random(504) < p**2
    curve = detectors.calibration_curve(p, event, bins=4)
    ece = 0.0
    for b in range(4):
        low, high = b / 4, (b + 1) / 4
        inside = (p >= low) & ((p < high) | (b == 3))
        assert curve["count"][b] == inside.sum()
        assert curve["mean_probability"][b] == pytest.approx(p[inside].mean())
        assert curve["event_rate"][b] == pytest.approx(event[inside].mean())
        ece += inside.sum() / 504 * abs(p[inside].mean() - event[inside].mean())
    assert curve["ece"] == pytest.approx(ece)
    assert curve["brier"] == pytest.approx(np.mean((p - event) ** 2))


def test_calibration_of_a_perfect_and_a_confidently_wrong_predictor():
    event = np.array([True, False, True])
    assert detectors.calibration_curve(event.astype(float), event)["ece"] == 0
    assert detectors.calibration_curve(1.0 - event, event)["ece"] == 1
    empty = detectors.calibration_curve([], [])
    assert empty["ece"] is None
    assert empty["event_rate"] == [None] * 10
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        detectors.calibration_curve([1.5], [True])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        detectors.calibration_curve([np.nan], [True])


def test_top_share_is_exact_with_ties_and_nan():
    chosen = detectors.top_share([1.0, 2.0, 2.0, 2.0, np.nan, 0.0], 0.5)
    assert chosen.tolist() == [False, True, True, True, False, False]
    assert detectors.top_share([2.0, 2.0, 2.0, 2.0], 0.6).tolist() == [True, True, False, False]
    assert detectors.top_share([1.0, 2.0], 0.0).sum() == 0
    assert detectors.top_share(np.arange(100), 0.29).sum() == 29  # 0.29 * 100 is less than 29 in floats.
    assert detectors.top_share([1.0, 2.0, np.nan], 1.0).all()
