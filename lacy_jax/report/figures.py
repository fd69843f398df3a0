"""The charts of a report, from result tables and run records. Charts without data are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lacy_jax.evaluation.suites.suite import nested
from lacy_jax.formatting import short_percent
from lacy_jax.objectives import AUTO, GATES
from lacy_jax.report.charts import Series, bar_chart, histogram_chart, line_chart
from lacy_jax.report.run_record import RunRecord
from lacy_jax.report.tables import as_number, last_validation

CLASSES = ("all", "factual", "other", "called", "learned")
Styles = Mapping[str, int]
Rows = Sequence[Mapping[str, Any]]


def headline_chart(results: Mapping[str, Any], styles: Styles) -> Markup:
    """True facts by method at the main budget, with intervals."""
    methods = results["runs"]
    ends = {name: figures.get("true_fact_share_ci") or (None, None) for name, figures in methods.items()}
    series = [
        Series(
            name,
            [],
            [figures.get("true_fact_share") if row == name else None for row in methods],
            [ends[name][0] if row == name else None for row in methods],
            [ends[name][1] if row == name else None for row in methods],
            styles[name],
        )
        for name, figures in methods.items()
    ]
    return bar_chart(
        f"True facts at a call budget of {short_percent(results.get('budget'))}",
        list(methods),
        series,
        value_label="stated facts that are true",
        value_range=(0.0, 1.0),
        share=True,
        note="Whiskers: 95 % bootstrap interval over people.",
        legend=False,
    )


def budget_charts(results: Mapping[str, Any], styles: Styles) -> list[Markup]:
    """Quality against the share of tokens that the partner actually wrote, for every budget."""
    by_budget = results.get("by_budget") or {}
    charts = []
    for key, title, label, share in (
        ("true_fact_share", "Quality against cost", "stated facts that are true", True),
        ("true_facts_per_text", "True facts per text against cost", "true facts per text", False),
        ("stated_facts_per_text", "Facts stated per text", "stated facts per text", False),
    ):
        series = []
        for name in results["runs"]:
            points: dict[float, Mapping[str, Any]] = {}
            for budget in sorted(by_budget, key=as_number):
                figures = by_budget[budget].get(name) or {}
                if figures.get("call_share") is not None and figures.get(key) is not None:
                    points[figures["call_share"]] = figures
            x = sorted(points)
            ends = [points[at].get(f"{key}_ci") or (None, None) for at in x]
            low, high = [e[0] for e in ends], [e[1] for e in ends]
            series.append(Series(name, x, [points[at][key] for at in x], low, high, styles[name]))
        charts.append(
            line_chart(
                title,
                series,
                x_label="tokens written by the partner",
                y_label=label,
                y_range=(0.0, 1.0) if share else None,
                from_zero=True,
                share=share,
                x_share=True,
            )
        )
    return [chart for chart in charts if chart]


def training_charts(runs: Sequence[RunRecord], styles: Styles) -> tuple[list[Markup], list[Markup]]:
    """(main, further) curves over optimiser steps."""

    def curves(
        title: str, label: str, key: str, rows: Callable[[RunRecord], Rows], share: bool = False
    ) -> Markup:
        series = [_curve(run.name, rows(run), key, styles[run.name]) for run in runs]
        return line_chart(title, series, x_label="optimiser step", y_label=label, share=share)

    def train(run: RunRecord) -> Rows:
        return run.train

    def valid(run: RunRecord) -> Rows:
        return run.valid

    main = [
        curves("Training loss", "nats per token", "loss", train),
        curves("Validation nll, all tokens", "nats per token", "nll", valid),
        curves("Training nll, factual tokens", "nats per token", "nll_factual", train),
        curves("Training nll, other tokens", "nats per token", "nll_other", train),
        curves("Call rate", "delegated targets", "realised_call_rate", train, share=True),
        curves("Factual rate of the data", "factual targets", "factual_rate", train, share=True),
        curves("Threshold of the delegation mask", "nll, nats", "threshold", train),
        curves("Mean p(CALL)", "probability", "p_call", train, share=True),
    ]
    further = [
        curves("Validation nll, factual tokens", "nats per token", "nll_factual", valid),
        curves("Validation nll, other tokens", "nats per token", "nll_other", valid),
        curves("Training nll, delegated tokens", "nats per token", "nll_called", train),
        curves("Training nll, learned tokens", "nats per token", "nll_learned", train),
        curves("Gradient norm", "before clipping", "grad_norm", train),
        curves("Learning rate", "per step", "learning_rate", train),
        curves("Speed", "tokens per second", "tokens_per_s", train),
        curves("Model FLOP/s utilisation", "share of peak", "mfu", train, share=True),
        curves("Waiting for input", "share of time", "input_wait_share", train, share=True),
    ]
    return [chart for chart in main if chart], [chart for chart in further if chart]


def loss_chart(runs: Sequence[RunRecord], styles: Styles) -> Markup:
    """Validation nll by class of token, from `lacy evaluate`, else from the last validation."""
    losses = {run.name: (run.evaluation or {}).get("nll") or last_validation(run) for run in runs}
    series = [
        Series(name, [], [nll.get(kind) for kind in CLASSES], style=styles[name])
        for name, nll in losses.items()
    ]
    top = max((value for s in series for value in s.y if value is not None), default=1.0)
    return bar_chart(
        "Validation nll by class of token",
        CLASSES,
        series,
        value_label="nats per token",
        value_range=(0.0, top),
        note="called, learned: by the mask of each run's own training policy.",
    )


def gate_charts(runs: Sequence[RunRecord], styles: Styles) -> list[Markup]:
    """How well each gate finds the facts that the model gets wrong; score distributions; calibration."""
    tables = {run.name: detector_figures(run) for run in runs}
    gates = list(dict.fromkeys(gate for table in tables.values() for gate in table))
    note = "0.5 is chance. Target: the next token is factual and the model's first choice is wrong."
    charts = [
        _gate_bars("Gates as detectors (AUROC)", gates, tables, "wrong_fact_auroc", styles, "AUROC", note),
        _gate_bars("Average precision", gates, tables, "wrong_fact_ap", styles, "average precision", ""),
    ]
    budgets = list(
        dict.fromkeys(
            b for t in tables.values() for row in t.values() for b in row.get("factual_right") or {}
        )
    )
    for budget in budgets[-1:]:
        filled = {
            name: {gate: {"right": nested(row, "factual_right", budget)} for gate, row in table.items()}
            for name, table in tables.items()
        }
        note = "The truth is filled in at the positions with the highest scores: an upper bound for the gate."
        title = f"Factual tokens right at a budget of {short_percent(as_number(budget))}"
        charts.append(
            _gate_bars(title, gates, filled, "right", styles, "factual tokens right", note, share=True)
        )
    for run in runs:
        charts += [score_chart(run), calibration_chart(run, styles)]
    return [chart for chart in charts if chart]


def score_chart(run: RunRecord) -> Markup:
    """Scores of a run's own gate on facts that it gets wrong, facts that it gets right, and other tokens."""
    gates = (run.evaluation or {}).get("gates") or {}
    gate = next((name for name in AUTO.values() if name in gates), "")
    histogram = nested(gates, gate, "histogram") if gate else None
    if not histogram or not histogram.get("edges"):
        return Markup("")
    series = [
        Series(kind, [], counts, style=i) for i, (kind, counts) in enumerate(histogram["counts"].items())
    ]
    return histogram_chart(
        f"{run.name}: scores of the gate {gate}", histogram["edges"], series, x_label=GATES[gate].description
    )


def calibration_chart(run: RunRecord, styles: Styles) -> Markup:
    """p(CALL) against how often the model was wrong about a fact."""
    curve = (run.evaluation or {}).get("call_calibration")
    if not curve:
        return Markup("")
    series = [Series(run.name, curve["mean_probability"], curve["event_rate"], style=styles[run.name])]
    return line_chart(
        f"{run.name}: calibration of p(CALL)",
        series,
        x_label="p(CALL)",
        y_label="wrong about a fact",
        y_range=(0.0, 1.0),
        share=True,
        x_share=True,
        diagonal=True,
        note=f"Expected calibration error {short_percent(curve.get('ece'))}. Gates use ranks and need no calibration.",
    )


def detector_figures(run: RunRecord) -> dict[str, dict[str, Any]]:
    """{gate: figures} from `lacy evaluate`, else from the last validation of the training run."""
    if run.evaluation and run.evaluation.get("gates"):
        return run.evaluation["gates"]
    table: dict[str, dict[str, Any]] = {}
    for key, value in (run.valid[-1] if run.valid else {}).items():
        what, slash, gate = key.partition("/")
        if slash and what.startswith(("wrong_fact_", "mask_")):
            table.setdefault(gate, {})[what] = value
    return table


def _gate_bars(
    title: str,
    gates: Sequence[str],
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    key: str,
    styles: Styles,
    label: str,
    note: str,
    share: bool = False,
) -> Markup:
    series = [
        Series(name, [], [nested(table, gate, key) for gate in gates], style=styles[name])
        for name, table in tables.items()
    ]
    return bar_chart(title, gates, series, value_label=label, value_range=(0.0, 1.0), share=share, note=note)


def _curve(name: str, rows: Rows, key: str, style: int) -> Series:
    kept = [row for row in rows if isinstance(row.get(key), (int, float))]
    return Series(name, [row["step"] for row in kept], [row[key] for row in kept], style=style)
