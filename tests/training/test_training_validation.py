"""Detector figures against slow definitions; validation of a model against plain logits."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition
from lacy_jax.training.validation import Evaluator, TokenScores, auroc, average_precision, validation_metrics


def _slow_auroc(score, positive):
    pairs = list(itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)))
    won = sum(1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0 for i, j in pairs)
    return won / len(pairs)


def _slow_average_precision(score, positive):
    """Sum over thresholds of precision times the recall gained there."""
    found, recall_before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        chosen = score >= threshold
        hits = (chosen & positive).sum()
        recall = hits / positive.sum()
        found += hits / chosen.sum() * (recall - recall_before)
        recall_before = recall
    return found


@pytest.mark.parametrize("seed", range(4))
def test_detector_figures_equal_their_definitions(seed):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 12, 60) / 4.0  # Many ties.
    positive = rng.random(60) < 0.3
    assert auroc(score, positive) == pytest.approx(_slow_auroc(score, positive))
    assert average_precision(score, positive) == pytest.approx(_slow_average_precision(score, positive))


def test_detector_figures_at_the_ends():
    positive = np.array([True, True, False, False])
    assert auroc([4, 3, 2, 1], positive) == average_precision([4, 3, 2, 1], positive) == 1.0
    assert auroc([1, 2, 3, 4], positive) == 0.0
    assert auroc([1, 1, 1, 1], positive) == average_precision([1, 1, 1, 1], positive) == 0.5
    # Worked by hand: positives at ranks 2 and 4 of 4.
    assert average_precision([3, 1, 4, 2], positive) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert np.isnan(auroc([1.0, 2.0], [True, True]))
    assert np.isnan(average_precision([1.0, 2.0], [False, False]))


def _scores(**columns) -> TokenScores:
    n = len(next(iter(columns.values())))
    blank = {name: np.zeros(n) for name in TokenScores.__dataclass_fields__}
    return TokenScores(**{**blank, **{name: np.asarray(values) for name, values in columns.items()}})


def test_losses_are_means_over_their_tokens():
    found = validation_metrics(
        _scores(
            nll=[1.0, 2.0, 3.0, 4.0, 10.0],
            factual=[True, True, False, False, False],
            top1_correct=[True, False, False, True, False],
            called=[False, True, False, False, False],
            learned=[True, False, True, True, True],
            call_logit=[0.0, 5.0, 1.0, 0.0, 2.0],
        ),
        uses_call=True,
    )
    assert found["nll"] == 4.0
    assert (found["nll_factual"], found["nll_other"]) == (1.5, pytest.approx(17 / 3))
    assert (found["nll_called"], found["nll_learned"]) == (2.0, 4.5)
    assert (found["factual_rate"], found["wrong_fact_rate"], found["realised_call_rate"]) == (0.4, 0.2, 0.2)
    assert (found["top1_accuracy"], found["top1_accuracy_factual"]) == (0.4, 0.5)
    assert found["wrong_fact_auroc/call_logit"] == found["mask_ap/call_logit"] == 1.0
    assert found["wrong_fact_auroc/entropy"] == 0.5


def test_classes_without_tokens_are_left_out():
    found = validation_metrics(_scores(nll=[1.0], learned=[True]), uses_call=True)
    assert not {"nll_called", "nll_factual", "top1_accuracy_factual", "wrong_fact_auroc/call_logit"} & set(
        found
    )
    assert validation_metrics(_scores(nll=[]), uses_call=True) == {"tokens": 0.0}
    plain = validation_metrics(
        _scores(nll=[1.0, 2.0], factual=[True, False], entropy=[1, 0]), uses_call=False
    )
    assert "wrong_fact_auroc/entropy" in plain
    assert not [name for name in plain if "call" in name or "mask" in name]


def test_evaluator_against_plain_logits(one_device):
    config = small.make_config("", objective__call_rate=0.1)
    mesh = sharding.make_mesh(config.mesh, one_device)
    model = ModelDefinition(small.model_config(config))
    params = jax.jit(model.init)(jax.random.key(0))
    params["call"] = jax.random.normal(jax.random.key(1), params["call"].shape)
    batches = [small.random_batch(seed=seed) for seed in (0, 1)]
    scores = Evaluator(config, model, mesh).collect(params, batches)

    @jax.jit
    def plain(params, batch):
        network = model.merge(params)
        z, c = network.logits(network(batch.tokens, batch.positions, batch.segment_ids))
        nll = -jnp.take_along_axis(jax.nn.log_softmax(z), batch.targets[..., None], -1)[..., 0]
        return nll, c, z.argmax(-1)

    expected: dict[str, list[np.ndarray]] = {
        "nll": [],
        "call_logit": [],
        "called": [],
        "top1_correct": [],
        "factual": [],
    }
    for batch in batches:
        nll, c, best = map(np.asarray, plain(params, batch))
        valid = batch.weights
        k = int(np.floor(0.1 * valid.sum()))
        hard = np.where(valid & batch.labels["factual"], nll, -np.inf).ravel()
        called = np.zeros(hard.shape, bool)
        called[np.argsort(-hard, kind="stable")[:k]] = True
        right = best == batch.targets
        columns = (nll, c, called.reshape(nll.shape), right, batch.labels["factual"])
        for name, values in zip(expected, columns, strict=True):
            expected[name].append(values[valid])
    assert len(scores) == sum(batch.weights.sum() for batch in batches)
    for name, parts in expected.items():
        np.testing.assert_allclose(
            getattr(scores, name), np.concatenate(parts), rtol=1e-4, atol=1e-5, err_msg=name
        )
