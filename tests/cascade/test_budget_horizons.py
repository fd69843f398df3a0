"""The call budget at 50, 200 and 1000 tokens, against streams that are made to defeat it."""

from __future__ import annotations

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.cascade.budget import make_controller, record_decision, record_tokens, slack

HORIZONS = (50, 200, 1000)
ADVERSARIES = ("given", "never the best", "best when it is dear", "worst when it is behind")


def _spend(controller, values, lengths, horizon, adversary):
    """Flags [B, horizon] of partner-written tokens.

    The adversary sees the controller's state before it names the score of a position: it may always give the
    lowest rank, give the highest one only when the sequence is ahead of its budget, or the lowest when it is behind.
    `values` and `lengths` [B, horizon]: scores of "given", and tokens the partner would write.
    """
    rows = values.shape[0]
    limit = jnp.full((rows,), horizon, jnp.int32)

    def token(carry, i):
        state, left = carry
        falling = -1.0 * state.written.astype(jnp.float32)
        ahead = controller.balance(state) <= 0
        score = {
            "given": values[:, i],
            "never the best": falling,
            "best when it is dear": jnp.where(ahead, -falling, falling),
            "worst when it is behind": jnp.where(ahead, 0.0, falling),
        }[adversary]
        deciding = left == 0
        calls = controller.decide(state, score, limit) & deciding
        state = record_decision(state, deciding, score)
        length = jnp.where(calls, jnp.minimum(lengths[:, i], controller.allowance(state, limit)), 0)
        state = record_tokens(state, (deciding & ~calls).astype(jnp.int32), length)
        left = jnp.where(calls, length, left) - jnp.where(calls | ~deciding, 1, 0)
        return (state, left), calls | ~deciding

    start = (controller.init(rows, horizon), jnp.zeros((rows,), jnp.int32))
    return jax.lax.scan(token, start, jnp.arange(horizon))[1].T


_spend_jit = jax.jit(_spend, static_argnums=(3, 4))


def _check(flags, budget, per_call, horizon):
    """The specification: bounds on the way, and at the horizon."""
    flags = np.asarray(flags)
    n = np.arange(1, horizon + 1)
    balance = budget * n - np.cumsum(flags, axis=1)
    assert (np.abs(balance) <= np.asarray(slack(n, per_call)) + 1e-2).all()
    points = 100 * np.abs(balance[:, -1]) / horizon
    assert (
        points.max() <= 100 * max(1.0, 0.01 * horizon) / horizon + 0.05
    )  # 2 points at 50, 1 at 200 and 1000.


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("horizon", HORIZONS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    budget=st.floats(0.01, 1.0),
    per_call=st.floats(1.0, 10.0),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["normal", "two values", "constant", "bursts", "infinite"]),
    longest=st.integers(1, 32),
    calibrated=st.booleans(),
)
def test_realised_budget_is_within_its_bounds(
    horizon, adversary, budget, per_call, seed, kind, longest, calibrated
):
    rng = np.random.default_rng(seed)
    shape = (4, horizon)
    values = {
        "normal": rng.normal(size=shape),
        "two values": rng.integers(0, 2, size=shape),
        "constant": np.zeros(shape),
        "bursts": np.where(rng.random(shape).cumsum(1) % 20 < 3, 50.0, rng.normal(size=shape)),
        "infinite": rng.choice([-np.inf, 0.0, np.inf], size=shape),
    }[kind]
    lengths = rng.integers(1, longest + 1, size=shape)
    prior = rng.normal(size=300) if calibrated else None
    controller = make_controller(budget, per_call, prior)
    flags = _spend_jit(controller, jnp.asarray(values, jnp.float32), jnp.asarray(lengths), horizon, adversary)
    _check(flags, budget, per_call, horizon)


@pytest.mark.parametrize("per_call", [1.0, 5.3, 6.5, 10.0])
@pytest.mark.parametrize("ends_at", HORIZONS)
def test_a_text_that_ends_of_itself_is_within_the_slack(ends_at, per_call):
    """The horizon is far away: only the bounds on the way hold, against the worst adversary too."""
    ones = jnp.ones((1, 1000), jnp.int32)
    lengths = jnp.full((1, 1000), round(per_call))
    for adversary in ADVERSARIES[1:]:
        for budget in (0.05, 0.22, 0.6):
            controller = make_controller(budget, per_call)
            flags = np.asarray(_spend_jit(controller, ones.astype(jnp.float32), lengths, 1000, adversary))
            assert abs(flags[0, :ends_at].sum() - budget * ends_at) <= slack(ends_at, per_call) + 0.02


def test_the_table_in_the_docs_is_the_bound():
    page = pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md"
    rows = re.findall(
        r"^\| (\d+) \| within (\S+) points? \| within (\S+) points? \| within (\S+) points? \|",
        page.read_text(),
        re.M,
    )
    assert [int(row[0]) for row in rows] == list(HORIZONS)
    for row in rows:
        tokens, *points = map(float, row)
        limit = 100 * max(1.0, 0.01 * tokens) / tokens
        bounds = [limit, *(100 * float(slack(int(tokens), per_call)) / tokens for per_call in (5.3, 6.5))]
        np.testing.assert_allclose(points, bounds, atol=0.051)
