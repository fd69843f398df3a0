"""Figures of calls and losses against slow definitions, on made-up token scores."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np
import pytest
from cascade_fakes import make_tokenizer
from fake_runs import make_scores

from lacy_jax.corpus import World
from lacy_jax.evaluation import calls, kinds
from lacy_jax.labels import RuleLabeller
from lacy_jax.training.validation import TokenScores


def _subset(scores, which):
    return TokenScores(**{f.name: getattr(scores, f.name)[which] for f in dataclasses.fields(scores)})


def test_own_mask_is_the_top_of_each_batch_by_call_logit_or_margin():
    scores = make_scores(n=300)
    sizes = [100, 60, 140]
    mask = calls.own_mask(scores, sizes, uses_call=True)
    start = 0
    for size in sizes:
        logits = scores.call_logit[start : start + size]
        chosen = set(np.flatnonzero(mask[start : start + size]))
        assert chosen == set(sorted(range(size), key=lambda i: -logits[i])[: int(0.15 * size)])
        start += size
    plain = calls.own_mask(scores, [300], uses_call=False)
    margin = scores.max_z - scores.second_z
    assert margin[plain].max() <= margin[~plain].min()
    assert plain.sum() == 45


def test_losses_on_mask_are_means_of_the_two_sides():
    scores, base = make_scores(seed=1, n=200), make_scores(seed=2, n=200)
    mask = np.arange(200) % 4 == 0
    table = calls.losses_on_mask(mask, scores, base)
    assert table["call_nll"] == pytest.approx(np.mean(scores.nll[::4]))
    assert table["baseline_call_nll"] == pytest.approx(np.mean(base.nll[::4]))
    rest = [x for i, x in enumerate(base.nll.tolist()) if i % 4]
    assert table["baseline_other_nll"] == pytest.approx(sum(rest) / len(rest))
    assert table["factual_share"] == pytest.approx(scores.factual[::4].mean())
    assert calls.losses_on_mask(mask, scores, None)["baseline_call_nll"] is None


def test_truth_filled_in_at_the_highest_scores():
    scores = make_scores(n=500)
    table = calls.detector_table(scores, uses_call=True, budgets=(0.0, 0.1, 1.0))
    score = scores.call_logit - scores.max_z
    filled = set(sorted(range(500), key=lambda i: -score[i])[:50])
    right = [i in filled or bool(scores.top1_correct[i]) for i in range(500) if scores.factual[i]]
    assert table["call_margin"]["factual_right"]["0.1"] == pytest.approx(sum(right) / len(right))
    alone = scores.top1_correct[scores.factual].mean()
    for row in table.values():
        assert row["factual_right"]["0"] == pytest.approx(alone)
        assert row["factual_right"]["1"] == 1.0


def test_a_perfect_gate_buys_every_wrong_fact_it_can_pay_for():
    scores = make_scores(n=1000)
    wrong = scores.factual & ~scores.top1_correct
    perfect = dataclasses.replace(scores, call_logit=np.where(wrong, 50.0, -50.0), called=wrong)
    row = calls.detector_table(perfect, uses_call=True, budgets=(0.1, 0.22))["call_logit"]
    assert row["wrong_fact_auroc"] == row["wrong_fact_ap"] == row["mask_auroc"] == 1.0
    assert row["factual_right"]["0.22"] == 1.0
    paid = (scores.top1_correct & scores.factual).sum() + 100
    assert row["factual_right"]["0.1"] == pytest.approx(paid / scores.factual.sum())


def test_precision_and_recall_at_a_budget_by_hand():
    scores = make_scores(n=500)
    row = calls.detector_table(scores, uses_call=True, budgets=(0.1,))["call_margin"]
    score = scores.call_logit - scores.max_z
    called = set(sorted(range(500), key=lambda i: -score[i])[:50])
    wrong = {i for i in range(500) if scores.factual[i] and not scores.top1_correct[i]}
    factual = set(np.flatnonzero(scores.factual))
    at = row["at_budget"]["0.1"]
    assert at["precision"] == pytest.approx(len(called & wrong) / 50)
    assert at["recall"] == pytest.approx(len(called & wrong) / len(wrong))
    assert at["label_precision"] == pytest.approx(len(called & factual) / 50)
    assert at["label_recall"] == pytest.approx(len(called & factual) / len(factual))
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in factual
        for j in set(range(500)) - factual
    ]
    assert row["label_auroc"] == pytest.approx(np.mean(pairs))


def test_gates_by_kind_of_fact_by_hand():
    scores = make_scores(n=600)
    kinds = np.where(scores.factual, np.arange(600) % 2, -1)
    table = calls.kind_table(scores, kinds, uses_call=True)
    assert set(table) == {"name", "number"}
    called = calls.top_share(scores.call_logit, 0.22)
    own = np.flatnonzero(kinds == 1)
    wrong = [i for i in own if not scores.top1_correct[i]]
    assert table["number"]["tokens"] == len(own)
    assert table["number"]["wrong"] == pytest.approx(len(wrong) / len(own))
    assert table["number"]["gates"]["call_logit"]["recall"] == pytest.approx(np.mean(called[wrong]))
    rest = [i for i in range(600) if scores.top1_correct[i] or not scores.factual[i]]
    pairs = [scores.call_logit[i] > scores.call_logit[j] for i in wrong for j in rest]
    assert table["number"]["gates"]["call_logit"]["auroc"] == pytest.approx(np.mean(pairs), abs=1e-3)


def test_kinds_are_those_of_the_rules_on_the_targets():
    world = World(people=60, seed=3)
    tokenizer = make_tokenizer(world, 500)
    texts = ["Ada was born on 7 May 1956 in Oslo.", "In 1901 she met Bo Berg."]
    ids = [tokenizer.encode(text) for text in texts]
    row = np.concatenate([*ids, [0, 0]]).astype(np.int32)
    segments = np.repeat([1, 2, 0], [len(ids[0]), len(ids[1]), 2])
    batch = types.SimpleNamespace(
        targets=row[None], weights=(segments > 0).astype(np.float32)[None], segment_ids=segments[None],
        labels={"factual": (segments > 0)[None]},
    )  # fmt: skip
    found = kinds.kinds_of(batch, tokenizer, RuleLabeller())
    assert len(found) == len(row) - 2
    written = {
        kind: tokenizer.decode(row[:-2][found == index]).split() for index, kind in enumerate(kinds.KINDS)
    }
    assert "".join(written["date"]) == "7May1956"
    assert "OsloBoBerg" in "".join(written["name"])
    assert "".join(written["number"]) == "1901"
    batch.labels = {"factual": np.zeros_like(batch.labels["factual"])}
    assert set(kinds.kinds_of(batch, tokenizer, RuleLabeller())) == {kinds.NOT_FACTUAL}


def test_random_gate_is_chance_and_plain_models_have_no_call_gates():
    table = calls.detector_table(make_scores(n=4000), uses_call=False)
    assert set(table) == {"entropy", "margin", "random", "oracle"}
    assert table["oracle"]["wrong_fact_auroc"] == 1.0
    assert table["random"]["wrong_fact_auroc"] == pytest.approx(0.5, abs=0.04)


def test_histogram_counts_every_token_once():
    value = np.array([-1e9, 0.0, 0.5, 1.0, 1e9, np.nan])
    found = calls.score_histogram(
        value, {"a": np.array([1, 1, 0, 0, 1, 1], bool), "b": np.array([0, 0, 1, 1, 0, 0], bool)}
    )
    assert sum(found["counts"]["a"]) == 3
    assert sum(found["counts"]["b"]) == 2
    assert len(found["edges"]) == calls.HISTOGRAM_BINS + 1
    assert calls.score_histogram(np.zeros(0), {})["edges"] == []
    constant = calls.score_histogram(np.ones(5), {"a": np.ones(5, bool)})
    assert sum(constant["counts"]["a"]) == 5


def test_summary_is_json_and_its_classes_add_up():
    scores, base = make_scores(seed=1, n=400), make_scores(seed=2, n=400)
    figures = calls.call_figures(scores, [150, 250], True, baseline=base)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    rate, nll = figures["factual_rate"], figures["nll"]
    assert rate * nll["factual"] + (1 - rate) * nll["other"] == pytest.approx(nll["all"], rel=1e-6)
    called = figures["call_rate"]
    assert called * nll["called"] + (1 - called) * nll["learned"] == pytest.approx(nll["all"], rel=1e-6)
    own = figures["masks"]["own"]
    assert own["rate"] * own["call_nll"] + (1 - own["rate"]) * own["other_nll"] == pytest.approx(
        nll["all"], rel=1e-6
    )
    assert figures["masks"]["baseline"]["score"] == "margin"
    assert figures["call_calibration"]["count"] is not None
    with pytest.raises(ValueError, match="same tokens"):
        calls.call_figures(scores, [100, 250], True)


def test_tokens_without_facts_give_none_not_nan():
    scores = make_scores(n=100)
    plain = _subset(scores, ~scores.factual)
    figures = calls.call_figures(plain, [len(plain)], False)
    assert figures["nll"]["factual"] is None
    assert figures["gates"]["margin"]["wrong_fact_auroc"] is None
    assert figures["gates"]["margin"]["factual_right"]["0.22"] is None
    json.dumps(figures, allow_nan=False)
