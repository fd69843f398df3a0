"""Suites in the report: each suite's table, and charts over several suites or runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lacy_jax.evaluation.acceptability import bin_name
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.evaluation.suites.suite import nested, rows_of
from lacy_jax.formatting import Table, number, percent, with_interval
from lacy_jax.report.charts import STYLES, Series, bar_chart, line_chart
from lacy_jax.report.run_record import RunRecord


def suite_tables(records: Sequence[RunRecord]) -> list[Table]:
    """One table per suite that some run has."""
    tables = []
    for name, suite in SUITES.items():
        reported = [(record.name, record.suites[name]) for record in records if record.suites.get(name)]
        if suite.table and reported:
            tables.append(suite.table(reported))
    return [table for table in tables if table.rows]


def study_tables(study: Mapping[str, Any]) -> list[Table]:
    """One table per group of people of a gate study (`gate_study`), sorted by partner, best first."""
    head = ("method", "partner", "FActScore", "unpenalised", "supported per text", "facts per text", "calls", "reference minus this")  # fmt: skip
    rows = rows_of(study)
    tables = []
    for group in dict.fromkeys(str(row.get("group")) for row in rows):
        own = [row for row in rows if str(row.get("group")) == group]
        own.sort(key=lambda row: (str(row.get("partner")), -(row.get("init_score") or 0.0)))
        cells = tuple(
            (
                str(row.get("model")) + ("" if row.get("gate") == "alone" else f" + {row.get('gate')}"),
                str(row.get("partner")),
                with_interval(row.get("score"), row.get("score_ci")),
                with_interval(row.get("init_score"), row.get("init_score_ci")),
                number(row.get("supported_per_text")),
                number(row.get("facts_per_text")),
                percent(row.get("call_share")),
                with_interval(row.get("difference"), row.get("difference_ci")),
            )
            for row in own
        )
        note = (
            f"Judge: {study.get('judge')}; splitter: {study.get('splitter')}. Call budget {percent(study.get('budget'))}. Reference: {' + '.join(map(str, study.get('reference') or []))} with the same "
            "partner, unpenalised, paired over people. 95 % bootstrap intervals over people."
        )
        tables.append(Table(f"Gates and partners: {group} people", head, cells, note))
    return tables


def suite_charts(records: Sequence[RunRecord], styles: Mapping[str, int]) -> list[Markup]:
    """Quality against cost, FActScore against leakage, acceptability by loss."""
    curves, points = [], []
    bills: list[Series] = []
    for record in records:
        paid = [row for row in rows_of(record.suites.get("cost")) if _numbers(row, "flops", "quality")]
        for who, ours in (("", True), (": partner alone", False)):
            own = [(r["flops"], r["quality"]) for r in paid if (r.get("who") != "partner alone") == ours]
            if own:
                style = styles.get(record.name, 0) + (0 if ours else 4)
                x, y = zip(*sorted(own), strict=True)
                bills.append(Series(f"{record.name}{who}", x, y, style=style % STYLES))
        rows = [row for row in rows_of(record.suites.get("cost")) if row.get("who") != "partner alone"]
        known = [
            (row["call_share"], row["quality"]) for row in rows if _numbers(row, "call_share", "quality")
        ]
        if known:
            curves.append(_series(record.name, sorted(known), styles))
        score, leaked = (
            nested(record.suites, "factscore", "score"),
            nested(record.suites, "leakage", "all", "share"),
        )
        if score is not None and leaked is not None:
            points.append(_series(record.name, [(leaked, score)], styles))
    judges = sorted({str(row.get("judge")) for r in records for row in rows_of(r.suites.get("cost"))})
    charts = []
    if curves:
        charts.append(
            line_chart(
                "Quality against the partner's share",
                curves,
                x_label="tokens written by the partner",
                y_label="supported facts",
                share=True,
                x_share=True,
                note=f"judge: {', '.join(judges)}",
            )
        )
    if bills:
        charts.append(
            line_chart(
                "Quality against cost per text",
                bills,
                x_label="FLOPs of model and partner",
                y_label="supported facts",
                share=True,
                note=f"judge: {', '.join(judges)}",
            )
        )
    if points:
        names = sorted(
            {str(nested(r.suites, "factscore", "judge")) for r in records if r.suites.get("factscore")}
        )
        charts.append(
            line_chart(
                "FActScore against leakage",
                points,
                x_label="leaked answers, CALL off",
                y_label="FActScore",
                share=True,
                x_share=True,
                note=f"judge: {', '.join(names)}",
            )
        )
    return [*charts, *(chart for record in records if (chart := _acceptability_chart(record)))]


def _acceptability_chart(record: RunRecord) -> Markup:
    rows = [row for row in rows_of(record.suites.get("acceptability")) if _numbers(row, "low", "positions")]
    names = list(dict.fromkeys(bin_name(row) for row in rows))
    kinds = []
    for style, kind in enumerate(("factual", "other")):
        found = {bin_name(row): row for row in rows if row.get("kind") == kind}
        own = [found.get(name, {}) for name in names]
        ends = [row.get("share_ci") or (None, None) for row in own]
        low, high = ([pair[end] for pair in ends] for end in (0, 1))
        shares = [row.get("share") for row in own]
        kinds.append(Series(kind, range(len(names)), shares, low, high, style=style))
    return bar_chart(
        f"Acceptable top-1 tokens by loss (nats): {record.name}",
        names,
        kinds,
        value_label="acceptable to the judge",
        value_range=(0.0, 1.0),
        share=True,
        note=f"judge: {nested(record.suites, 'acceptability', 'judge')}",
    )


def _series(name: str, points: Sequence[tuple[float, float]], styles: Mapping[str, int]) -> Series:
    x, y = zip(*points, strict=True)
    return Series(name, x, y, style=styles.get(name, 0))


def _numbers(row: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(row.get(name), int | float) for name in names)
