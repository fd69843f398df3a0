"""Does the model ask for help where it needs it? Figures from per-token scores of held-out text.

Everything here is numpy over `TokenScores`; `lacy_jax.evaluation.evaluate.evaluate_run` makes the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from lacy_jax.evaluation.detectors import calibration_curve, finite, top_share
from lacy_jax.evaluation.kinds import KINDS
from lacy_jax.objectives import GATES, scored_gates
from lacy_jax.training.validation import TokenScores, auroc, average_precision

MASK_RATE = 0.15  # The paper's call mask at validation: the top 15 % CALL logits of a batch.
BUDGETS = (0.05, 0.10, 0.22)
HISTOGRAM_BINS = 40
_RANDOM_GATE_SEED = 20260212


def gate_values(scores: TokenScores, uses_call: bool) -> dict[str, np.ndarray]:
    """Gate -> score per token, [n]; higher = needs more help. CALL gates are included only if CALL was trained.

    `random` is the lower bound that any gate must beat; `oracle`, which is told where the model is about to be wrong
    about a fact, is the upper bound.
    """
    noise = np.random.default_rng(_RANDOM_GATE_SEED).random(len(scores))
    values = {name: GATES[name].score(scores, noise) for name in scored_gates(uses_call)}
    values["oracle"] = (scores.factual.astype(bool) & ~scores.top1_correct.astype(bool)).astype(np.float64)
    return values


def own_mask(scores: TokenScores, batch_sizes: Sequence[int], uses_call: bool) -> np.ndarray:
    """[n] bool: in each batch, the share `MASK_RATE` of tokens with the highest scores (arXiv:2602.12005, validation losses).

    The score is the CALL logit, or for a model without CALL the margin, which is the better after-the-fact gate.

    Args:
      batch_sizes: valid tokens of each batch, in order; their sum is n.
    """
    score = GATES["call_logit" if uses_call else "margin"].score(scores)
    parts = np.split(score, np.cumsum(batch_sizes)[:-1])
    return np.concatenate([top_share(part, MASK_RATE) for part in parts]) if len(score) else np.zeros(0, bool)


def losses_on_mask(mask: np.ndarray, scores: TokenScores, baseline: TokenScores | None) -> dict[str, Any]:
    """Mean nll (nats) on and off a call mask, for the model and, on the same tokens, the baseline.

    Returns:
      "call_nll", "other_nll", "baseline_call_nll", "baseline_other_nll" (None without a baseline), "rate" of
      the mask, "factual_share" of the masked tokens.
    """
    table: dict[str, Any] = {"rate": _mean(mask), "factual_share": _mean(scores.factual[mask])}
    for prefix, which in (("", scores), ("baseline_", baseline)):
        table[f"{prefix}call_nll"] = None if which is None else _mean(which.nll[mask])
        table[f"{prefix}other_nll"] = None if which is None else _mean(which.nll[~mask])
    return table


def detector_table(
    scores: TokenScores, uses_call: bool, budgets: Sequence[float] = BUDGETS
) -> dict[str, dict[str, Any]]:
    """Each gate as a detector, and what a call budget spent by it would achieve.

    Returns:
      {gate: ...} with "wrong_fact_auroc", "wrong_fact_ap": as a detector of wrong facts, that is, targets that are
      factual and not the model's first choice; "label_auroc", "label_ap": of factual targets; "mask_auroc", "mask_ap":
      of the training mask (None if there is none);
      "at_budget": {budget: {"precision", "recall" for wrong facts, "label_precision", "label_recall" for factual
      targets}} if the floor(budget * n) highest scores are called;
      "factual_right": {budget: share of factual tokens that are right if the truth is filled in at the floor(budget *
      n) highest scores}: a teacher-forced cascade with a partner that is always right;
      "histogram": scores of wrong facts, right facts and other tokens.
    """
    factual, correct, called = (a.astype(bool) for a in (scores.factual, scores.top1_correct, scores.called))
    wrong_fact = factual & ~correct
    table = {}
    for gate, value in gate_values(scores, uses_call).items():
        row: dict[str, Any] = {}
        for name, positive in (("wrong_fact", wrong_fact), ("label", factual), ("mask", called)):
            decided = bool(positive.any() and not positive.all())
            row[f"{name}_auroc"] = finite(auroc(value, positive)) if decided else None
            row[f"{name}_ap"] = finite(average_precision(value, positive)) if decided else None
        chosen = {f"{budget:g}": top_share(value, budget) for budget in budgets}
        row["factual_right"] = {budget: _mean((correct | mask)[factual]) for budget, mask in chosen.items()}
        row["at_budget"] = {
            budget: {
                "precision": _mean(wrong_fact[mask]),
                "recall": _mean(mask[wrong_fact]),
                "label_precision": _mean(factual[mask]),
                "label_recall": _mean(mask[factual]),
            }
            for budget, mask in chosen.items()
        }
        row["histogram"] = score_histogram(
            value, {"wrong fact": wrong_fact, "right fact": factual & correct, "other": ~factual}
        )
        table[gate] = row
    return table


def kind_table(scores: TokenScores, kinds: np.ndarray, uses_call: bool) -> dict[str, dict[str, Any]]:
    """Each gate by kind of fact, at the largest of `BUDGETS`.

    Args:
      kinds: [n], from `kinds.kinds_of`.

    Returns:
      {kind: {"tokens", "wrong": share that the model gets wrong, "gates": {gate: {"recall": share of the wrong ones
      that are called, "auroc": wrong ones of this kind against all targets that are not wrong facts}}}}, for the kinds
      that occur.
    """
    wrong = scores.factual.astype(bool) & ~scores.top1_correct.astype(bool)
    values = gate_values(scores, uses_call)
    masks = {gate: top_share(value, BUDGETS[-1]) for gate, value in values.items()}
    table = {}
    for index, kind in enumerate(KINDS):
        own = kinds == index
        missed = own & wrong
        if not own.any():
            continue
        apart = missed | ~wrong
        gates = {
            gate: {
                "recall": _mean(masks[gate][missed]),
                "auroc": finite(auroc(value[apart], missed[apart]))
                if missed.any() and not missed[apart].all()
                else None,
            }
            for gate, value in values.items()
        }
        table[kind] = {"tokens": int(own.sum()), "wrong": _mean(wrong[own]), "gates": gates}
    return table


def score_histogram(value: np.ndarray, classes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts of `value` by class of token, over common equal-width bins.

    The bins cover the central 99.8 % of the scores; scores outside are counted in the outermost bins.

    Returns:
      "edges" [bins + 1] and "counts" {class: [bins]}; both empty without tokens.
    """
    value = np.asarray(value, np.float64)
    value_ok = value[np.isfinite(value)]
    if not value_ok.size:
        return {"edges": [], "counts": {}}
    low, high = np.quantile(value_ok, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, HISTOGRAM_BINS + 1)
    inside = np.clip(value, edges[0], edges[-1])
    counts = {
        name: np.histogram(inside[which & np.isfinite(value)], edges)[0].tolist()
        for name, which in classes.items()
    }
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts}


def call_calibration(scores: TokenScores) -> dict[str, Any]:
    """Is p(CALL) the probability that the model is wrong about a fact? See `calibration_curve` for the keys.

    With the renormalised objective it need not be, because learned targets give CALL no gradient (arXiv:2602.12005 §4).
    "above_half" is the share of tokens with p(CALL) > 0.5.
    """
    p = expit(np.asarray(scores.call_logit, np.float64) - np.asarray(scores.lse, np.float64))
    wrong_fact = scores.factual.astype(bool) & ~scores.top1_correct.astype(bool)
    return {**calibration_curve(p, wrong_fact), "above_half": _mean(p > 0.5)}


def call_figures(
    scores: TokenScores,
    batch_sizes: Sequence[int],
    uses_call: bool,
    *,
    baseline: TokenScores | None = None,
    baseline_uses_call: bool = False,
    kinds: np.ndarray | None = None,
) -> dict[str, Any]:
    """All figures of one run, JSON-safe; a figure over no tokens is None.

    Args:
      scores, baseline: scores of the same tokens in the same order.
      batch_sizes: valid tokens per batch.
      uses_call: whether the run's policy trains CALL.
      kinds: [n] kind of fact of each token (`kinds.kinds_of`), for `kind_table`.

    Raises:
      ValueError: the two differ in length, or `batch_sizes` does not add up.
    """
    if sum(batch_sizes) != len(scores) or (baseline is not None and len(baseline) != len(scores)):
        raise ValueError("scores, baseline and batch_sizes must describe the same tokens")
    factual, correct = scores.factual.astype(bool), scores.top1_correct.astype(bool)
    called, learned = scores.called.astype(bool), scores.learned.astype(bool)
    classes = {
        "all": np.ones(len(scores), bool),
        "factual": factual,
        "other": ~factual,
        "called": called,
        "learned": learned,
    }
    masks = {"own": own_mask(scores, batch_sizes, uses_call)}
    if baseline is not None:
        masks["baseline"] = own_mask(baseline, batch_sizes, baseline_uses_call)
    named = {"own": uses_call, "baseline": baseline_uses_call}
    return {
        "tokens": len(scores),
        "batches": len(batch_sizes),
        "factual_rate": _mean(factual),
        "wrong_fact_rate": _mean(factual & ~correct),
        "call_rate": _mean(called),
        "factual_right_alone": _mean(correct[factual]),
        "nll": {name: _mean(scores.nll[which]) for name, which in classes.items()},
        "masks": {
            name: {
                "score": "call_logit" if named[name] else "margin",
                **losses_on_mask(mask, scores, baseline),
            }
            for name, mask in masks.items()
        },
        "gates": detector_table(scores, uses_call),
        "by_kind": None if kinds is None else kind_table(scores, kinds, uses_call),
        "call_calibration": call_calibration(scores) if uses_call else None,
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None
