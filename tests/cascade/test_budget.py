"""The call budget: bounds on any stream of scores, ties, calibration; an independent simulation of the stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.cascade.budget import SLACK, make_controller, record_decision, record_tokens
from lacy_jax.errors import ConfigError

HORIZON = 200


@jax.jit
def _spend(controller, scores, call_tokens):
    """Partner-written flags of HORIZON tokens: scores[b, i] is what the gate says before token i, and the partner
    would write call_tokens[b, i] tokens there."""
    rows = scores.shape[0]
    horizon = jnp.full((rows,), HORIZON, jnp.int32)

    def token(carry, i):
        state, left = carry
        deciding = left == 0
        calls = controller.decide(state, scores[:, i], horizon) & deciding
        state = record_decision(state, deciding, scores[:, i])
        length = jnp.where(calls, jnp.minimum(call_tokens[:, i], controller.allowance(state, horizon)), 0)
        state = record_tokens(state, (deciding & ~calls).astype(jnp.int32), length)
        left = jnp.where(calls, length, left) - jnp.where(calls | ~deciding, 1, 0)
        return (state, left), calls | ~deciding

    start = (controller.init(rows, HORIZON), jnp.zeros((rows,), jnp.int32))
    return jax.lax.scan(token, start, jnp.arange(HORIZON))[1].T


def _shares(flags):
    return np.asarray(flags).mean(axis=1)


def _check_bounds(flags, budget, per_call):
    """The bounds of the specification, from the flags alone."""
    flags = np.asarray(flags)
    n = np.arange(1, HORIZON + 1)
    balance = budget * n - np.cumsum(flags, axis=1)
    tolerance, slack = 0.01 * HORIZON, max(SLACK, 1.5 * per_call)
    assert np.abs(balance[:, -1]).max() <= tolerance + 1e-3
    # On the way a call is counted token by token here, at once by the controller: it may be ahead by less.
    assert balance.min() >= -slack - 1e-3
    assert balance.max() <= slack + 1e-3


STREAMS = {
    "constant": lambda r: np.zeros(HORIZON),
    "increasing": lambda r: np.arange(HORIZON) / 7.0,
    "decreasing": lambda r: -np.arange(HORIZON) / 7.0,
    "alternating": lambda r: np.arange(HORIZON) % 2.0,
    "late burst": lambda r: np.r_[np.zeros(150), np.arange(50) + 1.0],
    "early burst": lambda r: np.r_[np.arange(50) + 1.0, np.zeros(150)],
    "normal": lambda r: r.normal(size=HORIZON),
    "heavy tail": lambda r: r.standard_cauchy(size=HORIZON),
    "minus infinity": lambda r: np.full(HORIZON, -np.inf),
    "not a number": lambda r: np.full(HORIZON, np.nan),
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("budget", [0.02, 0.05, 0.10, 0.22, 0.5, 0.9, 1.0])
def test_budget_is_met_on_any_kind_of_stream(budget, calibrated):
    rng = np.random.default_rng(1)
    scores = np.stack([make(rng) for make in STREAMS.values()]).astype(np.float32)
    calls = rng.integers(1, 9, size=scores.shape)
    prior = rng.normal(size=5000) if calibrated else None
    controller = make_controller(budget, 3.0, prior)
    _check_bounds(_spend(controller, jnp.asarray(scores), jnp.asarray(calls)), budget, 3.0)


@settings(max_examples=40, deadline=None)
@given(
    budget=st.floats(0.01, 1.0),
    per_call=st.floats(1.0, 12.0),
    values=st.lists(
        st.sampled_from([-5.0, -1.0, 0.0, 0.5, 1.0, 3.0, 50.0]), min_size=HORIZON, max_size=HORIZON
    ),
    lengths=st.lists(st.integers(1, 20), min_size=5, max_size=5),
    calibrated=st.booleans(),
)
def test_budget_bounds_hold_for_generated_streams(budget, per_call, values, lengths, calibrated):
    scores = np.stack([values, np.sort(values), np.sort(values)[::-1]]).astype(np.float32)
    calls = np.tile(np.resize(lengths, HORIZON), (3, 1))
    prior = np.linspace(-3, 3, 100) if calibrated else None
    controller = make_controller(budget, per_call, prior)
    _check_bounds(_spend(controller, jnp.asarray(scores), jnp.asarray(calls)), budget, per_call)


def test_budget_zero_never_calls_and_budget_one_always_does():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, HORIZON)), jnp.float32)
    ones = jnp.ones(scores.shape, jnp.int32)
    assert not np.asarray(_spend(make_controller(0.0), scores, ones)).any()
    assert _shares(_spend(make_controller(1.0), scores, ones)).min() >= 0.99


def test_ties_are_spent_evenly_over_the_text():
    flags = np.asarray(
        _spend(make_controller(0.2, 1.0), jnp.zeros((1, HORIZON)), jnp.ones((1, HORIZON), jnp.int32))
    )
    quarters = flags.reshape(4, 50).sum(axis=1)
    assert quarters.min() >= 8
    assert quarters.max() <= 12


@pytest.mark.parametrize(("budget", "at_least"), [(0.05, 12.5), (0.10, 11.7)])
def test_calls_go_to_the_highest_scores_at_tight_budgets(budget, at_least):
    """A quarter of the positions is hot, uniformly 5 to 15: what can be afforded goes to the hottest.

    The best choice with hindsight, the top fifth or two fifths, has a mean heat of 14 or 13; any hot position, 10.
    """
    rng = np.random.default_rng(3)

    def texts(count):
        heat = np.where(rng.random((count, HORIZON)) < 0.25, rng.uniform(5, 15, (count, HORIZON)), 0.0)
        return heat + rng.normal(size=heat.shape) / 4, heat

    prior = texts(50)[0].ravel()
    scores, heat = texts(100)
    ones = jnp.ones(scores.shape, jnp.int32)

    def called(calibration, first=HORIZON):
        controller = make_controller(budget, 1.0, calibration)
        flags = np.asarray(_spend(controller, jnp.asarray(scores, jnp.float32), ones))[:, :first]
        return heat[:, :first][flags].mean()

    assert called(prior) > at_least
    assert called(prior, first=40) > called(None, first=40) + 0.5  # What calibration is for: the start.


def test_random_scores_spend_near_the_budget_from_the_start():
    """Texts may end of themselves: on ordinary streams the mean spending is right long before the horizon."""
    rng = np.random.default_rng(5)
    prior = rng.normal(size=20_000)
    scores = jnp.asarray(rng.normal(size=(400, HORIZON)), jnp.float32)
    calls = jnp.asarray(rng.integers(1, 7, size=scores.shape))
    for budget in (0.05, 0.10, 0.22):
        flags = np.asarray(_spend(make_controller(budget, 3.5, prior), scores, calls))
        for n in (60, 100, 150):
            assert abs(flags[:, :n].mean() - budget) < 0.015, (budget, n)


def test_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(7)
    scores = jnp.asarray(rng.normal(size=(5, HORIZON)), jnp.float32)
    calls = jnp.asarray(rng.integers(1, 5, size=scores.shape))
    controller = make_controller(0.15, 2.0)
    together = np.asarray(_spend(controller, scores, calls))
    alone = np.concatenate(
        [np.asarray(_spend(controller, scores[i : i + 1], calls[i : i + 1])) for i in range(5)]
    )
    np.testing.assert_array_equal(together, alone)


def test_prior_rank_against_counting():
    """With calls of one token the rank among the calibration scores is a plain count."""
    prior = np.random.default_rng(0).integers(0, 400, size=400).astype(np.float32)
    controller = make_controller(0.1, 1.0, prior)
    probes = np.concatenate([np.unique(prior), [-1.0, 1000.0, 57.5]]).astype(np.float32)
    low, high = controller._prior_rank(jnp.asarray(probes))
    above = np.array([(prior > p).mean() for p in probes])
    at_least = np.array([(prior >= p).mean() for p in probes])
    # The grid is a summary: exact at the top, within a few hundredths elsewhere.
    top = at_least <= 0.05
    np.testing.assert_allclose(np.asarray(low)[top], above[top], atol=2e-3)
    np.testing.assert_allclose(np.asarray(high)[top], at_least[top], atol=2e-3)
    assert np.abs(np.asarray(low) - above).max() < 0.02
    assert np.abs(np.asarray(high) - at_least).max() < 0.02


def test_positions_that_may_not_call_rank_last():
    prior = np.where(np.arange(1000) % 2, -np.inf, np.arange(1000.0))
    controller = make_controller(0.1, 1.0, prior)
    low, high = controller._prior_rank(jnp.array([-np.inf, 0.0, 998.0, 5000.0]))
    np.testing.assert_allclose(low, [0.5, 0.499, 0.0, 0.0], atol=5e-3)
    np.testing.assert_allclose(high, [1.0, 0.5, 0.001, 0.001], atol=5e-3)


def test_a_call_is_cut_to_the_allowance():
    controller = make_controller(0.1, 1.0)
    state = controller.init(1, HORIZON)
    state = record_tokens(state, jnp.array([20]), jnp.array([0]))
    # e = 2: on the way (8 + 2) / 0.9 = 11 tokens, and no more than the whole budget plus a point: 22.
    assert controller.allowance(state, jnp.array([HORIZON])).tolist() == [11]
    assert controller.allowance(state, jnp.array([24])).tolist() == [3]  # 0.1 * 24 + 1


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_budget_out_of_range_is_refused(budget):
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\]"):
        make_controller(budget)


def test_bad_calibration_is_refused():
    with pytest.raises(ConfigError, match="calibration scores"):
        make_controller(0.1, 3.0, np.array([]))
    with pytest.raises(ConfigError, match="calibration scores"):
        make_controller(0.1, 3.0, np.array([1.0, np.nan]))
    with pytest.raises(ConfigError, match="tokens_per_call"):
        make_controller(0.1, 0.0)
