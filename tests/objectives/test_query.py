"""The query head's loss: against a plain loop, and the same on any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from lacy_jax.objectives import QueryTargets, delegated_cross_entropy, most_queries, query_loss

pytestmark = pytest.mark.oldest

B, T, C, D, Q = 8, 24, 16, 12, 6
AXES = ("data", "fsdp", "sequence", "tensor")


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of linked targets, some delegated; some entries are stated in several rows, and some rows name others, too."""
    r = np.random.default_rng(seed)
    vectors = r.normal(size=(40, Q)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    linked = np.where(r.random((B, T)) < 0.6, r.integers(1, 40, (B, T)), 0).astype(np.int32)
    entries = np.zeros((B, C), np.int32)
    for row, own in zip(entries, linked, strict=True):
        stated = np.unique(own[own > 0])
        more = np.setdiff1d(r.permutation(np.arange(1, 40)), stated)[:2]
        wanted = [*stated, *more][:C]
        row[: len(wanted)] = wanted
    return {
        "hidden": r.normal(size=(B, T, D)).astype(np.float32),
        "head": r.normal(size=(Q, D)).astype(np.float32),
        "sharpness": np.float32(3.0),
        "linked": linked,
        "entries": entries,
        "vectors": vectors[entries],
        "delegated": np.where(r.random((B, T)) < 0.4, 0.5 + 0.5 * r.random((B, T)), 0).astype(np.float32),
    }


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def of(values, most=T):
    """(weighted sum of the loss, the rest) as `query_loss` gives them."""
    targets = QueryTargets(values["entries"], values["vectors"])
    found = query_loss(
        values["hidden"], lambda h: unit(h @ values["head"].T), values["sharpness"], values["linked"], targets,
        values["delegated"], most,
    )  # fmt: skip
    return found.total, found


def plainly(values, most=T):
    """The same by one loop over the targets."""
    vector = {}
    for row, own in zip(values["entries"], values["vectors"], strict=True):
        vector |= {int(n): v for n, v in zip(row, own, strict=True) if n}
    names = sorted(vector)
    table = jnp.stack([vector[n] for n in names])
    total, count, right = 0.0, 0, 0
    for b in range(B):
        asked = [t for t in range(T) if values["linked"][b, t] and values["delegated"][b, t] > 0][:most]
        for t in asked:
            own = int(values["linked"][b, t])
            if own not in values["entries"][b]:
                continue
            similar = values["sharpness"] * (table @ unit(values["head"] @ values["hidden"][b, t]))
            place = names.index(own)
            total += values["delegated"][b, t] * -jax.nn.log_softmax(similar)[place]
            count, right = count + 1, right + (int(jnp.argmax(similar)) == place)
    return total, (count, right)


def differentiated(fn, values):
    model = {name: values[name] for name in ("hidden", "head", "sharpness")}
    return jax.value_and_grad(lambda model: fn(values | model), has_aux=True)(model)


@pytest.mark.parametrize("most", [T, 3])
def test_loss_and_gradients_are_those_of_a_plain_loop(most):
    values = inputs()
    (total, found), grads = differentiated(lambda v: of(v, most), values)
    (wanted, (count, right)), expected = differentiated(lambda v: plainly(v, most), values)
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    assert (int(found.count), int(found.right)) == (count, right)
    assert 0 < right < count
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-4, atol=1e-5)


def test_an_entry_of_several_rows_is_one_negative():
    values = inputs()
    once, _ = of(values)
    values["entries"], values["vectors"] = (
        np.concatenate([values[name], values[name][::-1]], axis=1) for name in ("entries", "vectors")
    )
    twice, _ = of(values)
    assert float(twice) == pytest.approx(float(once), rel=1e-6)


@pytest.mark.parametrize("nothing", ["entries", "delegated", "linked"])
def test_where_nothing_is_asked_the_loss_is_zero_and_so_are_its_gradients(nothing):
    values = inputs() | {nothing: np.zeros_like(inputs()[nothing])}
    (total, found), grads = differentiated(of, values)
    assert (float(total), float(found.count), float(found.nats)) == (0, 0, 0)
    assert all(np.all(np.asarray(grad) == 0) for grad in grads.values())


def test_it_is_the_same_on_any_mesh():
    """The negatives are those of the global batch, whatever device has them."""
    values = inputs()
    step = jax.jit(lambda v: differentiated(of, v))
    wanted = jax.device_get(step(values))
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 simulated devices (XLA_FLAGS is set in conftest.py)")
    for sizes in ((8, 1, 1, 1), (2, 2, 2, 1), (1, 4, 1, 2)):
        mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4)
        rows = NamedSharding(mesh, jax.P(("data", "fsdp"), "sequence"))
        split = {
            name: jax.device_put(value, rows if np.ndim(value) > 1 and name != "head" else None)
            for name, value in values.items()
        }
        with jax.set_mesh(mesh):
            found = jax.device_get(jax.jit(lambda v: differentiated(of, v))(split))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, wanted)


def test_the_other_parts_of_the_loss_are_as_without_it():
    """CALL and base head get the same gradients; the loss grows by the queries' share of all targets."""
    values, r = inputs(), np.random.default_rng(1)
    heads = {name: r.normal(size=shape).astype(np.float32) for name, shape in (("w", (9, D)), ("c", (D,)))}
    weights = r.random((B, T)) < 0.9
    rest = (r.integers(0, 9, (B, T)), weights, {"factual": values["linked"] > 0})

    def loss(heads, **options):
        model = (values["hidden"], heads["w"], heads["c"])
        return delegated_cross_entropy(*model, *rest, policy="lacy", call_rate=0.3, **options)

    def query(delegated):
        return of(values | {"delegated": delegated})[1]

    (plain, before), grads = jax.value_and_grad(loss, has_aux=True)(heads)
    asked = jax.value_and_grad(lambda h: loss(h, query=query, query_weight=0.5), has_aux=True)
    (total, metrics), with_queries = asked(heads)
    jax.tree.map(np.testing.assert_array_equal, grads, with_queries)
    assert (before.n_queries, before.query_loss, before.query_right) == (None, None, None)
    assert set(metrics.present) - set(before.present) == {"n_queries", "query_loss", "query_right"}
    assert 0 < float(metrics.n_queries) <= float(metrics.n_called)
    share = float(metrics.query_loss * metrics.n_queries / metrics.weight_sum)
    assert float(total - plain) == pytest.approx(0.5 * share, rel=1e-4)
    assert float(metrics.loss) == float(total)


def test_rows_have_room_for_half_as_many_again_as_the_call_rate():
    assert (most_queries(448, 0.15), most_queries(32, 0.15), most_queries(8, 0.9)) == (104, 8, 8)
