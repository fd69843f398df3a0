"""Every policy of the method's table against a slow implementation, one position at a time."""

from __future__ import annotations

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacy_jax.errors import ConfigError
from lacy_jax.objectives import POLICIES, delegation_mask, get_policy
from lacy_jax.objectives.policies import IDK_UPPER_BOUND

pytestmark = pytest.mark.oldest

TABLE = "ntp lacy loss judge rho rho_skip spacy spacy_ref lacy_ignorefacts lacy_ignore hardest idk".split()
RANDOM = ("loss", "spacy")


def make_signals(seed: int, shape=(4, 24), *, valid=0.85, factual=0.3, digits=1) -> dict[str, np.ndarray]:
    """Random per-token inputs; nll is rounded, so that ties at the threshold are the rule."""
    r = np.random.default_rng(seed)
    return {
        "nll": np.round(r.exponential(2.0, shape), digits).astype(np.float32),
        "weights": r.random(shape) < valid,
        "factual": r.random(shape) < factual,
        "nongrammatical": r.random(shape) < 0.25,
        "judge": r.random(shape) < 0.15,
        "reference_nll": np.round(r.exponential(2.0, shape), digits).astype(np.float32),
        "gap": np.where(r.random(shape) < 0.4, 0, r.exponential(2.0, shape)).astype(np.float32),
    }


def as_arguments(s: dict[str, np.ndarray]) -> dict:
    """The inputs as `delegation_mask` takes them: all labels as one object."""
    own = ("nll", "weights", "gap")
    labels = {name: values for name, values in s.items() if name not in own}
    return {**{name: s[name] for name in own if name in s}, "labels": labels}


def hardest_first(score, candidates, count):
    """The `count` candidates (flat positions) of highest score, the earliest among equals."""
    return set(sorted(candidates, key=lambda i: (-score[i], i))[: max(count, 0)])


def slow_mask(policy, s, call_rate, ignore_rate):
    """(call, learn) of a policy by lists and loops, or None where positions are random."""
    flat = {name: values.ravel() for name, values in s.items()}
    size = s["nll"].size
    valid = [i for i in range(size) if flat["weights"][i]]
    facts = [i for i in valid if flat["factual"][i]]
    k = int(Fraction(str(call_rate)) * len(valid))
    k_ignore = int(Fraction(str(ignore_rate)) * len(valid))
    nll = flat["nll"]
    excess = flat["nll"] - flat["reference_nll"]
    share, ignored = np.zeros(size), set()
    called = {
        "ntp": set(),
        "lacy": hardest_first(nll, facts, k),
        "judge": {i for i in valid if flat["judge"][i]},
        "rho": hardest_first(-excess, valid, k),
        "rho_skip": set(),
        "spacy_ref": hardest_first(flat["reference_nll"], facts, k),
        "lacy_ignorefacts": hardest_first(nll, facts, k),
        "lacy_ignore": hardest_first(nll, facts, k),
        "hardest": hardest_first(nll, valid, k),
        "idk": {i for i in valid if flat["gap"][i] > 0},
    }[policy]
    for i in called:
        share[i] = IDK_UPPER_BOUND * (1 - np.exp(-float(flat["gap"][i]))) if policy == "idk" else 1.0
    if policy == "rho_skip":
        ignored = hardest_first(-excess, valid, k_ignore)
    if policy in ("lacy_ignorefacts", "lacy_ignore"):
        ignored = set(facts) - called
    if policy == "lacy_ignore":
        neither = [i for i in valid if flat["nongrammatical"][i] and not flat["factual"][i]]
        ignored |= hardest_first(nll, neither, k_ignore - len(ignored))
    learn = np.zeros(size)
    for i in valid:
        learn[i] = 0.0 if i in ignored else 1.0 - share[i]
    return share.reshape(s["nll"].shape), learn.reshape(s["nll"].shape)


@functools.lru_cache
def compiled(policy, call_rate, ignore_rate):
    def f(key, s):
        return delegation_mask(
            policy, call_rate=call_rate, ignore_rate=ignore_rate, rng=key, **as_arguments(s)
        )

    # Tests compile far longer than they run.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def run(policy, s, call_rate=0.15, ignore_rate=0.25, seed=0):
    return jax.device_get(compiled(policy, call_rate, ignore_rate)(jax.random.key(seed), s))


def test_registry_is_the_table_of_the_method():
    assert list(POLICIES) == TABLE
    assert {name for name, p in POLICIES.items() if not p.uses_call} == {"ntp", "rho_skip"}


@pytest.mark.parametrize("policy", [name for name in TABLE if name not in RANDOM])
@pytest.mark.parametrize("seed", range(4))
def test_mask_equals_the_slow_one(policy, seed):
    s = make_signals(seed)
    call, learn = slow_mask(policy, s, 0.15, 0.25)
    mask = run(policy, s)
    np.testing.assert_allclose(mask.call, call, rtol=0, atol=1e-6 if policy == "idk" else 0)
    np.testing.assert_allclose(mask.learn, learn, rtol=0, atol=1e-6 if policy == "idk" else 0)
    assert int(mask.count) == int((call > 0).sum())


@pytest.mark.parametrize("policy", RANDOM)
def test_random_policies_draw_exactly_k_uniformly(policy):
    s = make_signals(7, factual=0.4)
    allowed = s["weights"] & s["factual"] if policy == "spacy" else s["weights"]
    k = int(Fraction("0.15") * int(s["weights"].sum()))
    drawn = jax.jit(
        jax.vmap(lambda key: delegation_mask(policy, call_rate=0.15, rng=key, **as_arguments(s)).call)
    )(jax.random.split(jax.random.key(3), 2000))  # fmt: skip
    drawn = np.asarray(drawn)
    assert (drawn.sum((1, 2)) == k).all()
    assert (drawn[:, ~allowed] == 0).all()
    # Each allowed position is drawn with probability p; 5 standard deviations of its mean over 2,000 draws.
    p = k / allowed.sum()
    assert np.abs(drawn.mean(0)[allowed] - p).max() < 5 * np.sqrt(p * (1 - p) / 2000)


@pytest.mark.parametrize("policy", RANDOM)
def test_random_policies_are_a_function_of_the_key(policy):
    s = make_signals(8)
    np.testing.assert_array_equal(run(policy, s, seed=1).call, run(policy, s, seed=1).call)
    assert (run(policy, s, seed=1).call != run(policy, s, seed=2).call).any()


def test_ties_go_to_the_earliest_in_row_major_order():
    s = make_signals(0, valid=2.0, factual=2.0)
    s["nll"] = np.full_like(s["nll"], 1.5)
    mask = run("lacy", s)
    np.testing.assert_array_equal(mask.call.ravel(), np.arange(96) < 14)
    assert mask.threshold == 1.5


def test_threshold_is_the_last_delegated_score():
    s = make_signals(3, digits=6)
    for policy, score in (("lacy", s["nll"]), ("spacy_ref", s["reference_nll"]), ("hardest", s["nll"])):
        mask = run(policy, s)
        assert mask.threshold == score[mask.call > 0].min(), policy
    assert run("rho", s).threshold == (s["nll"] - s["reference_nll"])[run("rho", s).call > 0].max()


@pytest.mark.parametrize("policy", TABLE)
def test_fewer_factual_targets_than_k_are_all_delegated(policy):
    s = make_signals(5, valid=2.0, factual=0.05)
    mask = run(policy, s)
    n_facts = int(s["factual"].sum())
    assert n_facts < 14
    if policy in ("lacy", "spacy", "spacy_ref", "lacy_ignorefacts", "lacy_ignore"):
        np.testing.assert_array_equal(mask.call > 0, s["factual"])
    elif policy in ("loss", "rho", "hardest"):
        assert mask.count == 14


@pytest.mark.parametrize("policy", TABLE)
def test_zero_factual_targets(policy):
    s = make_signals(6, factual=-1.0)
    mask = run(policy, s)
    k = int(Fraction("0.15") * int(s["weights"].sum()))
    if policy in ("lacy", "spacy", "spacy_ref", "lacy_ignorefacts", "lacy_ignore"):
        assert mask.count == 0
        assert mask.threshold == 0
    elif policy in ("loss", "rho", "hardest"):
        assert mask.count == k


@pytest.mark.parametrize("policy", TABLE)
def test_call_rate_zero_delegates_nothing(policy):
    mask = run(policy, make_signals(9), call_rate=0.0)
    if policy not in ("judge", "idk"):  # Their labels, or the model's errors, decide; not a rate.
        assert mask.count == 0
        assert mask.call.sum() == 0


@pytest.mark.parametrize("policy", TABLE)
def test_all_padding(policy):
    mask = run(policy, make_signals(10, valid=-1.0))
    assert mask.count == 0
    assert mask.call.sum() == mask.learn.sum() == mask.threshold == 0


@pytest.mark.parametrize("policy", [name for name in TABLE if name not in RANDOM])
def test_padding_never_matters(policy):
    s = make_signals(11)
    wild = {
        name: np.where(s["weights"], values, np.nan if values.dtype == np.float32 else ~values)
        for name, values in s.items()
        if name != "weights"
    }
    a, b = run(policy, s), run(policy, {**wild, "weights": s["weights"]})
    np.testing.assert_array_equal(a.call, b.call)
    np.testing.assert_array_equal(a.learn, b.learn)


def test_float_weights_count_as_valid_when_positive():
    s = make_signals(12)
    mask = run("lacy", {**s, "weights": s["weights"] * np.float32(0.5)})
    np.testing.assert_array_equal(mask.call, run("lacy", s).call)


def test_no_gradient_passes_through_the_mask():
    s = make_signals(13)

    def f(nll):
        given = as_arguments({**s, "nll": nll, "gap": nll})
        return jnp.sum(delegation_mask("idk", call_rate=0.15, **given).call)

    assert not np.asarray(jax.grad(f)(jnp.asarray(s["nll"]))).any()


@pytest.mark.parametrize(
    ("policy", "missing", "says"),
    [
        ("lacy", "factual", "no factual labels"),
        ("judge", "judge", "LLM judge"),
        ("rho", "reference_nll", "objective.reference"),
        ("rho_skip", "reference_nll", "objective.reference"),
        ("spacy_ref", "reference_nll", "objective.reference"),
        ("lacy_ignore", "nongrammatical", "non-grammatical"),
        ("idk", "gap", "gap"),
        ("loss", "rng", "rng"),
    ],
)
def test_a_missing_input_is_named(policy, missing, says):
    s = make_signals(14)
    given = {name: value for name, value in s.items() if name != missing}
    with pytest.raises(ConfigError, match=says) as error:
        delegation_mask(policy, call_rate=0.15, **as_arguments(given))
    assert "\n" not in str(error.value)
    assert repr(policy) in str(error.value)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(ConfigError, match=r"objective.call_rate = .*must be in \[0, 1\)"):
        delegation_mask("lacy", call_rate=rate, **as_arguments(make_signals(15)))


@pytest.mark.parametrize(("rate", "count"), [(1e-5, 10), (0.99999, 999_990), (0.29, 290_000), (1e-7, 0)])
def test_rates_near_the_ends_are_taken_as_they_are_written(rate, count):
    nll = np.random.default_rng(0).random((1000, 1000), np.float32)
    mask = jax.jit(
        lambda nll: delegation_mask("hardest", nll=nll, weights=nll >= 0, labels={}, call_rate=rate)
    )(nll)  # fmt: skip
    assert mask.count == count


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lacy_ignore'"):
        get_policy("lacy_ignor")
