"""Suites in the report: FActScore, leakage, language understanding, cost, judge, acceptability; one table each, cells as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lacy_jax.evaluation.acceptability import bin_name
from lacy_jax.formatting import number, percent
from lacy_jax.report.charts import STYLES, Series, bar_chart, line_chart
from lacy_jax.report.run_record import RunRecord


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for the template: the first cell of each row is its heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def suite_tables(records: Sequence[RunRecord]) -> list[Table]:
    """One table per suite that some run has; a score never stands without its judge."""
    tables = [
        _factscore(records),
        _leakage(records),
        _nlu(records),
        _cost(records),
        _judge(records),
        _acceptability(records),
    ]
    return [table for table in tables if table.rows]


def study_tables(study: Mapping[str, Any]) -> list[Table]:
    """One table per group of people of a gate study (`gate_study`), best first by partner."""
    head = ("method", "partner", "FActScore", "unpenalised", "supported per text", "facts per text", "calls", "reference minus this")  # fmt: skip
    rows = _rows(study)
    tables = []
    for group in dict.fromkeys(str(row.get("group")) for row in rows):
        own = [row for row in rows if str(row.get("group")) == group]
        own.sort(key=lambda row: (str(row.get("partner")), -(row.get("init_score") or 0.0)))
        cells = tuple(
            (
                str(row.get("model")) + ("" if row.get("gate") == "alone" else f" + {row.get('gate')}"),
                str(row.get("partner")),
                _with(row.get("score"), row.get("score_ci")),
                _with(row.get("init_score"), row.get("init_score_ci")),
                number(row.get("supported_per_text")),
                number(row.get("facts_per_text")),
                percent(row.get("call_share")),
                _with(row.get("difference"), row.get("difference_ci")),
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
    """Quality against what a text costs, FActScore against leakage, acceptability by loss."""
    curves, points = [], []
    bills: list[Series] = []
    for record in records:
        paid = [row for row in _rows(record.suites.get("cost")) if _numbers(row, "flops", "quality")]
        for who, ours in (("", True), (": partner alone", False)):
            own = [(r["flops"], r["quality"]) for r in paid if (r.get("who") != "partner alone") == ours]
            if own:
                style = styles.get(record.name, 0) + (0 if ours else 4)
                x, y = zip(*sorted(own), strict=True)
                bills.append(Series(f"{record.name}{who}", x, y, style=style % STYLES))
        rows = [row for row in _rows(record.suites.get("cost")) if row.get("who") != "partner alone"]
        known = [
            (row["call_share"], row["quality"]) for row in rows if _numbers(row, "call_share", "quality")
        ]
        if known:
            curves.append(_series(record.name, sorted(known), styles))
        score, leaked = _at(record, "factscore", "score"), _at(record, "leakage", "all", "share")
        if score is not None and leaked is not None:
            points.append(_series(record.name, [(leaked, score)], styles))
    judges = sorted({str(row.get("judge")) for r in records for row in _rows(r.suites.get("cost"))})
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
        names = sorted({str(_at(r, "factscore", "judge")) for r in records if r.suites.get("factscore")})
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
    rows = [row for row in _rows(record.suites.get("acceptability")) if _numbers(row, "low", "positions")]
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
        note=f"judge: {_at(record, 'acceptability', 'judge')}",
    )


def _acceptability(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        f = record.suites.get("acceptability") or {}
        whole = [
            {"kind": kind, **f[kind]} for kind in ("factual", "other") if isinstance(f.get(kind), Mapping)
        ]
        for row in [*_rows(f), *whole]:
            if row.get("positions"):
                rows.append(
                    (
                        record.name,
                        bin_name(row) if "low" in row else "any",
                        str(row.get("kind")),
                        number(row["positions"]),
                        percent(row.get("right", 0) / row["positions"]),
                        _with(row.get("share"), row.get("share_ci")),
                        f"{f.get('no_answer', f.get('malformed'))} of {f.get('requests')}",
                        str(f.get("judge")),
                    )
                )
    head = ("run", "loss (nats)", "tokens", "positions", "top-1 right", "acceptable", "no answer", "judge")  # fmt: skip
    note = (
        "Share of top-1 tokens that keep the statement true to the document; 95 % intervals over documents."
    )
    return Table("Acceptability", head, tuple(rows), note)


def _factscore(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        f = record.suites.get("factscore")
        if f:
            rows.append(
                (
                    record.name,
                    _with(f.get("score"), f.get("score_ci")),
                    _with(f.get("init_score"), f.get("init_score_ci")),
                    number(f.get("facts_per_text")),
                    percent(f.get("abstention_rate")),
                    f"{f.get('covered')} of {f.get('texts')}",
                    str(f.get("judge")),
                    str(f.get("splitter")),
                )
            )
    head = (
        "run",
        "score",
        "unpenalised",
        "facts per text",
        "abstained",
        "topics covered",
        "judge",
        "splitter",
    )
    note = (
        "95 % bootstrap intervals over entities. Scores of different judges or splitters cannot be compared."
    )
    return Table("FActScore", head, tuple(rows), note)


def _leakage(records: Sequence[RunRecord]) -> Table:
    groups = list(dict.fromkeys(name for r in records for name in (_at(r, "leakage", "groups") or {})))
    rows = []
    for record in records:
        if "leakage" in record.suites:
            cells = [_at(record, "leakage", "all"), *(_at(record, "leakage", "groups", g) for g in groups)]
            rows.append(
                (record.name, *(_with((c or {}).get("share"), (c or {}).get("share_ci")) for c in cells))
            )
    note = "Answers among the first generated tokens with CALL off; lower means less stored. Intervals over subjects."
    return Table("Fact leakage", ("run", "all", *groups), tuple(rows), note)


def _nlu(records: Sequence[RunRecord]) -> Table:
    tasks = list(dict.fromkeys(name for r in records for name in (_at(r, "nlu", "tasks") or {})))
    rows = [
        (record.name, percent(_at(record, "nlu", "acc_mean")), *(percent(_at(record, "nlu", "tasks", t, "acc")) for t in tasks))
        for record in records
        if "nlu" in record.suites
    ]  # fmt: skip
    note = (
        "Accuracy by lm-evaluation-harness on local test sets; mean of ARC-Easy, HellaSwag, PIQA, Social IQA."
    )
    return Table("Language understanding", ("run", "mean", *tasks), tuple(rows), note)


def _cost(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        for row in _rows(record.suites.get("cost")):
            rows.append(
                (
                    record.name,
                    str(row.get("who")),
                    percent(row.get("budget")),
                    percent(row.get("call_share")),
                    _with(row.get("quality"), row.get("quality_ci")),
                    number(row.get("tokens")),
                    number(row.get("calls")),
                    number(row.get("model_flops")),
                    number(row.get("partner_flops")),
                    number(row.get("partner_seconds")),
                    str(row.get("judge")),
                )
            )
    head = ("run", "who writes", "call budget", "realised", "supported facts", "tokens", "calls", "model FLOPs", "partner FLOPs", "partner seconds", "judge")  # fmt: skip
    note = "Per text. FLOPs are counted analytically; – where the partner is no model whose size is known."
    return Table("Cost against quality", head, tuple(rows), note)


def _judge(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        f = record.suites.get("judge")
        if f:
            rows.append(
                (
                    str(f.get("judge")),
                    f"{f.get('facts')} about {f.get('topics')} people",
                    percent(f.get("accuracy")),
                    percent(f.get("always")),
                    number(f.get("f1_supported")),
                    number(f.get("f1_not_supported")),
                    number(f.get("score_correlation")),
                    number(f.get("ranking_correlation")),
                )
            )
    head = ("judge", "labelled facts", "accuracy", "constant answer", "F1 supported", "F1 not supported", "correlation per text", "order of systems")  # fmt: skip
    return Table(
        "The judge against people", head, tuple(rows), "Facts that people labelled supported or not."
    )


def _series(name: str, points: Sequence[tuple[float, float]], styles: Mapping[str, int]) -> Series:
    x, y = zip(*points, strict=True)
    return Series(name, x, y, style=styles.get(name, 0))


def _with(value: Any, interval: Any) -> str:
    text = percent(value)
    return text if not interval else f"{text} [{percent(interval[0])}, {percent(interval[1])}]"


def _rows(figures: Any) -> list[Mapping[str, Any]]:
    rows = figures.get("rows") if isinstance(figures, Mapping) else None
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _numbers(row: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(row.get(name), int | float) for name in names)


def _at(record: RunRecord, *keys: str) -> Any:
    value: Any = record.suites
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
