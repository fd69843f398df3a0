"""Radix selection and its integer arithmetic against sorting and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacy_jax.objectives.selection import (
    fraction_of,
    from_sortable_bits,
    random_keys,
    select_largest,
    sortable_bits,
)

pytestmark = pytest.mark.oldest

SELECT = jax.jit(select_largest)


def sorted_selection(keys, eligible, count):
    order = sorted(np.flatnonzero(eligible), key=lambda i: (-int(keys.ravel()[i]), i))
    chosen = np.zeros(keys.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(keys.shape)


@pytest.mark.parametrize(
    "rate",
    "0 0.15 0.29 0.57 0.9999 0.3333 0.1 0.00001 0.99999 0.3333333333333333 0.1234567890123456 1e-9 1e-12 1e-30 1".split(),
)
def test_fraction_is_the_exact_floor(rate):
    totals = np.r_[np.arange(300), 10**6, 2**24 + np.arange(50), 10**9, 2**31 - 1 - np.arange(50)]
    got = jax.vmap(lambda n: fraction_of(float(rate), n))(jnp.asarray(totals, jnp.int32))
    assert got.tolist() == [int(Fraction(rate) * int(n)) for n in totals]


def test_sortable_bits_keep_the_order_of_floats():
    r = np.random.default_rng(0)
    values = np.r_[r.normal(size=400), 1e-40, -1e-40, 0.0, np.inf, -np.inf, 3e38, -3e38].astype(np.float32)
    # The CPU flushes denormals to zero in comparisons; keys must agree with what the machine calls equal.
    keys = np.asarray(sortable_bits(values))
    order = np.argsort(values, kind="stable")
    assert (np.diff(keys[order].astype(np.int64)) >= 0).all()
    normal = np.abs(values) > 1e-37
    assert len(set(keys[normal].tolist())) == len(set(values[normal].tolist()))
    np.testing.assert_array_equal(from_sortable_bits(keys)[normal], values[normal])
    assert sortable_bits(jnp.float32(-0.0)) == sortable_bits(jnp.float32(0.0))


@pytest.mark.parametrize("spread", [1, 3, 2**32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (5, 7), (3, 2, 11), (33, 31)])
def test_selection_equals_sorting(shape, spread):
    r = np.random.default_rng(hash((shape, spread)) % 2**32)
    for share in (0.0, 0.3, 1.0):
        keys = r.integers(0, spread, shape).astype(np.uint32)
        eligible = r.random(shape) < share
        n = int(eligible.sum())
        for count in sorted({0, 1, n // 3, max(n - 1, 0), n, n + 5}):
            chosen, threshold = SELECT(keys, eligible, count)
            want = sorted_selection(keys, eligible, count)
            np.testing.assert_array_equal(chosen, want, err_msg=f"{share=} {count=}")
            if want.any():
                assert threshold == keys[want].min()


def test_extreme_keys_are_told_apart():
    keys = np.array([[0, 2**32 - 1, 2**31, 2**31 - 1, 2**32 - 2, 1]], np.uint32)
    for count in range(7):
        chosen, _ = SELECT(keys, np.ones_like(keys, bool), count)
        np.testing.assert_array_equal(chosen, sorted_selection(keys, np.ones_like(keys, bool), count))


def test_random_keys_do_not_depend_on_the_global_setting():
    key = jax.random.key(5)
    with jax.threefry_partitionable(False):
        a = random_keys(key, (3, 8))
    np.testing.assert_array_equal(a, random_keys(key, (3, 8)))
