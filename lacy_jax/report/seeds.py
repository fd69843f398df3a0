"""Figures from several runs: means with intervals over seeds, and differences paired over people, subjects or items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from lacy_jax.evaluation.detectors import bootstrap_ratio_difference
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.evaluation.suites.suite import mapping, nested
from lacy_jax.formatting import Table, number, percent
from lacy_jax.objectives import AUTO
from lacy_jax.report.run_record import RunRecord

# Fields that may differ between two runs of one method.
_OF_A_RUN = (
    "name",
    "seed",
    "dataset.path",
    "dataset.mixture",
    "generate",
    "checkpoint",
    "objective.reference",
)
_SEEDS_NOTE = (
    "Mean over seeds with the 95 % interval of the mean by Student's t. The runs differ only in their seed."
)


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % t interval of the mean.

    Raises:
      ValueError: there are fewer than two values, so their spread is unknown.
    """
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two runs")
    mean = float(np.mean(values))
    error = float(scipy.stats.sem(values))
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def seed_tables(records: Sequence[RunRecord], results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Means over seeds: of methods in result files at the same budget, and of runs that differ only in their seed."""
    return [table for table in (_methods(results), _runs(records)) if table.rows]


def paired_tables(records: Sequence[RunRecord]) -> list[Table]:
    """For each suite, each run compared with the first one, over the same people, subjects or items; [] without a pair."""
    rows = []
    for name, suite in SUITES.items():
        known = [
            (record, units) for record in records if (units := suite.units(record.suites.get(name) or {}))
        ]
        if len(known) < 2:
            continue
        (first, reference), *others = known
        for other, found in others:
            if suite.comparable(first.suites[name]) != suite.comparable(other.suites[name]):
                continue  # They have other judges or other questions.
            for measure in reference:
                cells = _difference(reference[measure], found.get(measure, {}))
                if cells:
                    rows.append((f"{first.name} minus {other.name}", measure, *cells))
    note = "Points, with 95 % paired bootstrap intervals over the units and questions that both runs were asked. Only runs with the same judge are compared."
    table = Table("Differences between runs", ("runs", "measure", "difference", "units"), tuple(rows), note)
    return [table] if rows else []


def _difference(
    ours: Mapping[str, Mapping[str, tuple[float, float]]],
    theirs: Mapping[str, Mapping[str, tuple[float, float]]],
) -> tuple[str, str] | None:
    """The paired difference with its interval, and the number of units; only questions that both were asked count."""
    rows = []
    for unit in ours:
        both = [asked for asked in ours[unit] if asked in theirs.get(unit, {})]
        if both:
            parts = [(*ours[unit][asked], *theirs[unit][asked]) for asked in both]
            rows.append(tuple(map(sum, zip(*parts, strict=True))))
    if not rows:
        return None
    gap = bootstrap_ratio_difference(*zip(*rows, strict=True))
    return _with_interval(gap.estimate, gap.low, gap.high, _points), str(len(rows))


def _methods(results: Sequence[Mapping[str, Any]]) -> Table:
    """Methods of several result files."""
    head = ("method", "seeds", "true facts", "reference minus this, points", "true facts per text", "written by the partner")  # fmt: skip
    budgets = {result.get("budget") for result in results}
    rows = []
    if len(results) > 1 and len(budgets) == 1:
        for method in results[0]["runs"]:
            own = [result["runs"][method] for result in results if method in result["runs"]]
            gaps = [mapping(mapping(mapping(r, "differences"), "rows"), method) for r in results]
            rows.append(
                (
                    method,
                    str(len(own)),
                    _over([row.get("true_fact_share") for row in own], percent),
                    _over([gap.get("difference") for gap in gaps], _points),
                    _over([row.get("true_facts_per_text") for row in own], number),
                    _over([row.get("call_share") for row in own], percent),
                )
            )
    reference = next((mapping(result, "differences").get("reference") for result in results), None)
    note = (
        f"{_SEEDS_NOTE} Differences are taken within each seed, over the same people; reference: {reference}."
    )
    return Table("Methods over seeds", head, tuple(rows), note)


def _runs(records: Sequence[RunRecord]) -> Table:
    measures = _measures()
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.config:
            groups.setdefault(_method_of(record.config), []).append(record)
    rows = []
    for own in groups.values():
        seeds = {record.config.get("seed") for record in own}
        if len(seeds) < 2 or len(seeds) < len(own):
            continue
        cells = [_over([measure(record) for record in own], show) for _, measure, show in measures]
        rows.append((own[0].policy or own[0].name, ", ".join(sorted(map(str, seeds))), *cells))
    kept = [n for n in range(len(measures)) if any(row[2 + n] != "–" for row in rows)]
    table = tuple((*row[:2], *(row[2 + n] for n in kept)) for row in rows)
    return Table("Runs over seeds", ("policy", "seeds", *(measures[n][0] for n in kept)), table, _SEEDS_NOTE)


def _at(*keys: str) -> Callable[[RunRecord], Any]:
    return lambda record: nested(record.evaluation, *keys)


def _valid(record: RunRecord) -> Any:
    return record.valid[-1].get("nll") if record.valid else None


def _own_gate(record: RunRecord) -> Any:
    gates = mapping(record.evaluation, "gates")
    gate = next((name for name in AUTO.values() if name in gates), "")
    return mapping(gates, gate).get("wrong_fact_auroc")


_MEASURES: tuple[tuple[str, Callable[[RunRecord], Any], Callable[[float], str]], ...] = (
    ("validation nll", _valid, number),
    ("nll, factual", _at("nll", "factual"), number),
    ("nll, other", _at("nll", "other"), number),
    ("AUROC of the own gate", _own_gate, number),
)


def _measures() -> list[tuple[str, Callable[[RunRecord], Any], Callable[[float], str]]]:
    """The measures tabulated over seeds: the run's own figures, then the headline of each suite."""

    def of_suite(name: str, figure: Callable[[Mapping[str, Any]], Any]) -> Callable[[RunRecord], Any]:
        return lambda record: figure(record.suites.get(name) or {})

    headlines = [(name, suite.headline) for name, suite in SUITES.items() if suite.headline]
    return [*_MEASURES, *((title, of_suite(name, figure), show) for name, (title, figure, show) in headlines)]


def _method_of(config: Mapping[str, Any]) -> str:
    """The config as text, without the fields that may differ between runs of one method."""
    kept = json.loads(json.dumps(config))
    for path in _OF_A_RUN:
        *parents, last = path.split(".")
        inner = kept
        for parent in parents:
            inner = inner.get(parent, {})
        inner.pop(last, None)
    return json.dumps(kept, sort_keys=True)


def _over(values: Sequence[Any], show: Callable[[float], str]) -> str:
    known = [float(value) for value in values if isinstance(value, int | float)]
    if len(known) < 2:
        return "–"
    return _with_interval(*interval_over_seeds(known), show)


def _with_interval(value: float, low: float, high: float, show: Callable[[float], str]) -> str:
    text = show(value)
    return f"{text} [{show(low)}, {show(high)}]" if np.isfinite(low) and np.isfinite(high) else text


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
