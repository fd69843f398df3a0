"""The fused loss against float64 numpy written from method.md, and against its naive twin with gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacy_jax.errors import ConfigError
from lacy_jax.objectives import (
    POLICIES,
    delegated_cross_entropy,
    delegation_mask,
    linear_statistics,
    token_statistics,
)
from lacy_jax.objectives.linear import default_chunk

pytestmark = pytest.mark.oldest

B, T, D, V = 3, 14, 8, 37
# Tests compile far longer than they run.
QUICK = {"xla_backend_optimization_level": 0}
# Of policies that share a code path under the softmax over V+1, one stands for all.
CASES = [(name, "renormalised") for name in POLICIES] + [
    (name, "full") for name in ("ntp", "lacy", "lacy_ignore", "idk")
]


def make_inputs(seed=0, *, shape=(B, T), d=D, v=V, scale=0.7):
    """(hidden, kernel, call_vector), (targets, weights, labels), key: random, rows end in real padding."""
    r = np.random.default_rng(seed)
    hidden = jnp.asarray(r.normal(size=(*shape, d)), jnp.float32)
    kernel = jnp.asarray(r.normal(size=(v, d)) * scale, jnp.float32)
    call_vector = jnp.asarray(r.normal(size=d) * scale, jnp.float32)
    weights = np.arange(shape[1]) < r.integers(shape[1] // 2, shape[1] - 1, (shape[0], 1))
    targets, factual = r.integers(0, v, shape).astype(np.int32), r.random(shape) < 0.35
    labels = {
        "factual": factual,
        "nongrammatical": r.random(shape) < 0.3,
        "judge": r.random(shape) < 0.15,
        "reference_nll": r.exponential(3.0, shape).astype(np.float32),
    }
    return (hidden, kernel, call_vector), (targets, weights, labels), jax.random.key(seed)


@functools.lru_cache
def compiled(loss, policy, call_objective, chunk, keep=0):
    """One compilation serves every test of the same shapes."""

    def f(model, tokens, key):
        return delegated_cross_entropy(
            *model, *tokens, policy=policy, call_rate=0.2, ignore_rate=0.3, z_loss=0.01,
            call_objective=call_objective, chunk=chunk, keep=keep, loss=loss, rng=key,
        )  # fmt: skip

    return jax.jit(jax.value_and_grad(f, has_aux=True), compiler_options=QUICK)


def fused(model, tokens, key, policy="lacy", call_objective="renormalised", chunk=12, keep=0):
    """((loss, metrics), gradients) of the fused loss."""
    return compiled("fused", policy, call_objective, chunk, keep)(model, tokens, key)


def reference(model, tokens, key, policy="lacy", call_objective="renormalised"):
    """((loss, metrics), gradients) of the naive loss."""
    return compiled("reference", policy, call_objective, 0)(model, tokens, key)


@functools.lru_cache
def compiled_mask(policy):
    return jax.jit(
        lambda s: delegation_mask(policy, call_rate=0.2, ignore_rate=0.3, **s), compiler_options=QUICK
    )


def numpy_loss(model, tokens, key, policy, call_objective):
    """The loss in float64, token by token, from the definitions of p(CALL) and p_\\CALL."""
    hidden, kernel, call_vector = (np.asarray(x, np.float64) for x in model)
    targets, weights, labels = tokens
    z, c = hidden @ kernel.T, hidden @ call_vector
    nll = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets[..., None], -1)[..., 0]
    gap = np.maximum(z.max(-1), c) - np.take_along_axis(z, targets[..., None], -1)[..., 0]
    computed = {"nll": nll.astype(np.float32), "gap": gap.astype(np.float32)}
    mask = compiled_mask(policy)({"weights": weights, "labels": labels, "rng": key, **computed})
    call, learn = np.asarray(mask.call, np.float64), np.asarray(mask.learn, np.float64)
    total = 0.0
    for b, t in np.argwhere(weights):
        logits = np.append(z[b, t], c[b, t])
        joint = np.exp(logits) / np.exp(logits).sum()
        p_call, p_joint, p_base = joint[-1], joint[targets[b, t]], np.exp(-nll[b, t])
        full = policy == "idk" or (call_objective == "full" and policy not in ("ntp", "rho_skip"))
        total += call[b, t] * -np.log(p_call)
        total += learn[b, t] * -np.log(p_joint if full else p_base)
        if policy == "idk" and gap[b, t] == 0:  # The false-positive regulariser of arXiv:2412.06676.
            total += -np.log(1 - p_call)
        if call[b, t] + learn[b, t] > 0:
            total += 0.01 * np.log(np.exp(z[b, t]).sum()) ** 2
    return total / weights.sum()


@pytest.mark.parametrize(("policy", "call_objective"), CASES)
def test_fused_equals_reference_equals_the_formula(policy, call_objective):
    inputs = make_inputs(2)
    (value, metrics), grads = fused(*inputs, policy, call_objective)
    (want, metrics_want), grads_want = reference(*inputs, policy, call_objective)
    np.testing.assert_allclose(value, numpy_loss(*inputs, policy, call_objective), rtol=2e-5)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(metrics.call_loss + metrics.learn_loss + metrics.z_loss, value, rtol=1e-6)
    for name, grad, grad_want in zip(("hidden", "kernel", "call_vector"), grads, grads_want):
        np.testing.assert_allclose(grad, grad_want, rtol=1e-4, atol=2e-6, err_msg=name)
    assert metrics.present == metrics_want.present
    for name in metrics.present:
        a, b = getattr(metrics, name), getattr(metrics_want, name)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("policy", "call_objective"), CASES)
def test_all_padding_is_zero_and_finite(policy, call_objective):
    model, (targets, weights, labels), key = make_inputs(9)
    tokens = (targets, np.zeros_like(weights), labels)
    for loss in (fused, reference):
        (value, metrics), grads = loss(model, tokens, key, policy, call_objective)
        assert value == 0
        assert all(leaf == 0 for leaf in jax.tree.leaves(metrics))
        assert not any(np.asarray(grad).any() for grad in grads)


@pytest.mark.parametrize(("policy", "call_objective"), CASES)
def test_what_stands_on_padding_does_not_matter(policy, call_objective):
    (hidden, kernel, call_vector), (targets, weights, labels), key = make_inputs(8)
    want = fused((hidden, kernel, call_vector), (targets, weights, labels), key, policy, call_objective)
    other = jnp.where(weights[..., None], hidden, 30.0 - hidden)
    wild = {name: np.where(weights, x, np.nan if x.dtype == np.float32 else ~x) for name, x in labels.items()}
    tokens = (np.where(weights, targets, 0), weights, wild)
    got = fused((other, kernel, call_vector), tokens, key, policy, call_objective)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
    assert not np.asarray(got[1][0])[~weights].any()


@pytest.mark.parametrize("policy", ["lacy", "lacy_ignore", "idk"])
def test_more_padding_changes_nothing(policy):
    """A padding row and five padding columns: the same loss, metrics and gradients."""
    model, tokens, key = make_inputs(8)
    wide = [(0, 1), (0, 5)]
    padded = (jnp.pad(model[0], [*wide, (0, 0)], constant_values=3.0), *model[1:])
    want, grads_want = fused(model, tokens, key, policy)
    got, grads = fused(padded, jax.tree.map(lambda x: np.pad(x, wide), tokens), key, policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    grads = (grads[0][:B, :T], *grads[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, grads_want)


@pytest.mark.parametrize("policy", ["lacy", "idk"])
def test_bfloat16_stays_near_float32(policy):
    """bf16 inputs, f32 statistics: gradients within bf16 rounding of those of the same numbers in f32."""
    (hidden, kernel, call_vector), tokens, key = make_inputs(3, shape=(4, 16), d=32, v=64, scale=0.2)
    narrow = hidden.astype(jnp.bfloat16)
    # Round the kernel too, so that both sides multiply the same numbers and pick the same mask.
    kernel = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    (value, metrics), grads = fused((narrow, kernel, call_vector), tokens, key, policy, chunk=16)
    wide = (narrow.astype(jnp.float32), kernel, call_vector)
    (want, metrics_want), grads_want = reference(wide, tokens, key, policy)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(value, want, rtol=1e-4)
    assert metrics.n_called == metrics_want.n_called
    for grad, grad_want in zip(grads, grads_want):
        scale = np.abs(grad_want).max()
        np.testing.assert_allclose(np.asarray(grad, np.float32) / scale, grad_want / scale, atol=1e-2)


def test_tied_head_adds_both_gradients():
    """An embedding used as input and as head gets the sum of both gradients."""
    (_, kernel, call_vector), tokens, key = make_inputs(4)
    ids = np.roll(tokens[0], 1, axis=1)
    both = []
    for loss in (fused, reference):
        hidden, pull = jax.vjp(lambda k: jnp.tanh(k[ids]), kernel)
        (_, _), (d_hidden, d_head, _) = loss((hidden, kernel, call_vector), tokens, key)
        both.append(d_head + pull(d_hidden)[0])
    np.testing.assert_allclose(*both, rtol=1e-4, atol=2e-6)

    def tied(kernel):
        options = {"policy": "lacy", "call_rate": 0.2, "z_loss": 0.01, "chunk": 12}
        return delegated_cross_entropy(jnp.tanh(kernel[ids]), kernel, call_vector, *tokens, **options)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(tied))(kernel), both[1], rtol=1e-4, atol=2e-6)


def test_gradient_is_the_slope():
    """Central differences of the fused loss, in random directions; ntp, so that no mask can jump."""
    model, tokens, key = make_inputs(5)
    _, grads = fused(model, tokens, key, "ntp")
    r = np.random.default_rng(0)
    for which, grad in enumerate(grads[:2]):
        step = jnp.asarray(r.normal(size=grad.shape), jnp.float32)

        def at(eps, which=which, step=step):
            moved = tuple(x + eps * step if i == which else x for i, x in enumerate(model))
            return fused(moved, tokens, key, "ntp")[0][0]

        slope = (at(1e-2) - at(-1e-2)) / 2e-2
        np.testing.assert_allclose(jnp.vdot(grad, step), slope, rtol=2e-2, atol=1e-4)


def test_who_gets_a_gradient():
    """ntp leaves CALL alone; renormalised CALL learns only where it is delegated; ignored targets are silent."""
    model, tokens, key = make_inputs(6)
    targets, weights, labels = tokens
    assert not np.asarray(fused(model, tokens, key, "ntp")[1][2]).any()
    nothing = (targets, weights, {**labels, "judge": np.zeros_like(weights)})
    assert not np.asarray(fused(model, nothing, key, "judge")[1][2]).any()
    assert np.asarray(fused(model, nothing, key, "judge", "full")[1][2]).any()
    for policy in ("rho_skip", "lacy_ignorefacts", "lacy_ignore"):
        (_, metrics), (d_hidden, _, _) = fused(model, tokens, key, policy)
        silent = ~np.asarray(d_hidden).any(-1)
        assert silent[~weights].all()
        assert silent[weights].sum() == metrics.n_ignored > 0
        assert metrics.n_learned + metrics.n_called + metrics.n_ignored == weights.sum()


@pytest.mark.parametrize("chunk", [0, 1, 7, 14, 1000])
def test_chunk_size_does_not_matter(chunk):
    inputs = make_inputs(7)
    got, want = fused(*inputs, chunk=chunk), reference(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), got, want)


def test_kept_logits_change_nothing():
    inputs = make_inputs(7)
    got, want = fused(*inputs, chunk=0, keep=4 * B * T * V), reference(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), got, want)


def test_logits_are_kept_only_where_they_fit_and_no_chunk_is_asked_for():
    """What counts is the products with the kernel: one forward and two backward, or a fourth that makes the logits again."""
    (hidden, kernel, _), (targets, _, _), _ = make_inputs(7)

    def products(**options):
        loss = lambda h, k: jnp.mean(linear_statistics(h, k, targets, **options)[0])  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, kernel)).count("dot_general")

    logits = 4 * B * T * V
    assert products() == products(keep=logits - 1) == products(keep=logits, chunk=B * T) == 4
    assert products(keep=logits) == 3


def test_metrics_count_and_average_what_they_say():
    model, tokens, key = make_inputs(10)
    targets, weights, factual = *tokens[:2], tokens[2]["factual"]
    (_, m), _ = fused(model, tokens, key, "lacy_ignorefacts")
    hidden, kernel, call_vector = (np.asarray(x, np.float64) for x in model)
    z, c = hidden @ kernel.T, hidden @ call_vector
    lse = np.log(np.exp(z).sum(-1))
    nll = lse - np.take_along_axis(z, targets[..., None], -1)[..., 0]
    facts, n = weights & factual, weights.sum()
    k = int(0.2 * n)
    cut = np.sort(nll[facts])[-k]
    called = facts & (nll >= cut)
    others = weights & ~factual
    want = {
        "weight_sum": n,
        "n_called": k,
        "n_learned": others.sum(),
        "n_ignored": facts.sum() - k,
        "factual_rate": facts.sum() / n,
        "realised_call_rate": k / n,
        "threshold": cut,
        "nll_all": nll[weights].mean(),
        "nll_called": nll[called].mean(),
        "nll_learned": nll[others].mean(),
        "nll_factual": nll[facts].mean(),
        "nll_other": nll[others].mean(),
        "p_call": (1 / (1 + np.exp(lse - c)))[weights].mean(),
    }
    for name, value in want.items():
        np.testing.assert_allclose(getattr(m, name), value, rtol=1e-5, err_msg=name)


def test_z_loss_is_paid_by_targets_with_a_gradient_and_normalised_like_the_rest():
    """Ignoring a target takes its own share away and changes no other's: the sum is divided by N, not by who pays."""
    model, tokens, key = make_inputs(16)
    targets, weights, labels = tokens
    (_, m), (_, _, _) = fused(model, tokens, key, "lacy_ignorefacts")
    hidden, kernel, _ = (np.asarray(x, np.float64) for x in model)
    squares = np.log(np.exp(hidden @ kernel.T).sum(-1)) ** 2
    called = np.asarray(
        compiled_mask("lacy_ignorefacts")(
            {"nll": np.asarray(_nll(model, targets)), "weights": weights, "labels": labels}
        ).call
    )
    paying = weights & (~labels["factual"] | (called > 0))
    assert 0 < paying.sum() < weights.sum()
    np.testing.assert_allclose(m.z_loss, 0.01 * squares[paying].sum() / weights.sum(), rtol=1e-5)


def _nll(model, targets):
    lse, z_target, _ = linear_statistics(*model[:2], targets)
    return lse - z_target


def test_extreme_logits_stay_finite():
    model, tokens, key = make_inputs(11)
    big = (model[0] * 200, model[1] * 20, model[2] * 20)
    for policy in ("lacy", "idk"):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fused(big, tokens, key, policy)))


def test_logits_are_never_materialised():
    """Temporary memory of value and gradients stays below one array of logits; the reference needs several."""
    shape, v = (4, 128), 3000
    model, tokens, _ = make_inputs(12, shape=shape, v=v)

    def temp(loss):
        def f(*model):
            return delegated_cross_entropy(*model, *tokens, policy="lacy", call_rate=0.2, chunk=32, loss=loss)

        step = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))
        return step.lower(*model).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * shape[0] * shape[1] * v
    assert temp("fused") < 0.4 * logits
    assert temp("reference") > logits


def test_token_statistics_are_those_of_the_softmax():
    (hidden, kernel, call_vector), (targets, _, _), _ = make_inputs(13)
    kernel = kernel.at[5].set(kernel[4])  # A tie between two pieces somewhere.
    targets = np.asarray(jnp.where(np.arange(T) % 2, jnp.argmax(hidden @ kernel.T, -1), targets))
    s = jax.jit(lambda *a: token_statistics(*a, chunk=9))(hidden, kernel, call_vector, targets)
    z = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
    c = np.asarray(hidden, np.float64) @ np.asarray(call_vector, np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    top = np.sort(z, axis=-1)
    want = {
        "nll": -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0]),
        "lse": np.log(np.exp(z).sum(-1)),
        "call_logit": c,
        "max_z": top[..., -1],
        "second_z": top[..., -2],
        "entropy": -(p * np.log(p)).sum(-1),
        "gap": np.maximum(top[..., -1], c) - np.take_along_axis(z, targets[..., None], -1)[..., 0],
    }
    for name, value in want.items():
        np.testing.assert_allclose(getattr(s, name), value, rtol=1e-4, atol=1e-5, err_msg=name)
    # First of equals, as greedy decoding picks.
    np.testing.assert_array_equal(s.top1, jnp.argmax(hidden @ kernel.T, -1))
    right = np.asarray(s.top1) == targets
    assert right[:, 1::2].all()
    np.testing.assert_array_equal(s.gap == 0, (s.max_z >= s.call_logit) & right)


def test_flat_token_axis_and_no_gradient_through_max():
    (hidden, kernel, _), (targets, _, _), _ = make_inputs(14)
    statistics = jax.jit(lambda *a: linear_statistics(*a, chunk=10))
    for a, b in zip(
        statistics(hidden.reshape(-1, D), kernel, targets.reshape(-1)), statistics(hidden, kernel, targets)
    ):
        np.testing.assert_allclose(a, b.reshape(-1), rtol=1e-6)
    grad = jax.jit(jax.grad(lambda k: linear_statistics(hidden, k, targets)[2].sum()))(kernel)
    assert not np.asarray(grad).any()


def test_bad_options_are_refused():
    model, tokens, _ = make_inputs(15)
    with pytest.raises(
        ConfigError, match=r"objective\.call_objective = 'fulll': expected one of renormalised, full"
    ):
        delegated_cross_entropy(*model, *tokens, policy="lacy", call_rate=0.1, call_objective="fulll")
    with pytest.raises(ConfigError, match=r"objective\.loss = 'fuzed': expected one of fused, reference"):
        delegated_cross_entropy(*model, *tokens, policy="lacy", call_rate=0.1, loss="fuzed")
    with pytest.raises(ConfigError, match="labels have no 'factual'"):
        delegated_cross_entropy(*model, *tokens[:2], {}, policy="ntp", call_rate=0.1)
    with pytest.raises(ConfigError, match=r"objective\.policy = 'lazy'"):
        delegated_cross_entropy(*model, *tokens, policy="lazy", call_rate=0.1)


def test_a_gpu_gets_larger_chunks(monkeypatch):
    cpu = default_chunk(32_000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (cpu, default_chunk(32_000)) == (393, 2097)
