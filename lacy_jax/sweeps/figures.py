"""Charts of a sweep: how the metric responds to each field, and every run across all fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from lacy_jax.formatting import number
from lacy_jax.report.charts import STYLES, Series, bar_chart, line_chart, parallel_chart
from lacy_jax.sweeps.run import Outcome

_MOST_PLACES = (
    8  # Points of a response curve; more values are grouped, with the same number of runs in each group.
)


def sweep_charts(outcomes: Sequence[Outcome], metric: str) -> list[Markup]:
    """One chart of the metric if few settings vary; else one for each field, and parallel coordinates over all."""
    fields = varied_fields(outcomes)
    kept = [one for one in outcomes if one.value(metric) is not None]
    numeric = [f for f in fields if _is_numeric(kept, f)]
    others = {repr([one.trial.overrides.get(f) for f in fields if f not in numeric[:1]]) for one in kept}
    if len(fields) < 3 and len(others) <= STYLES:
        charts = [sweep_chart(outcomes, metric)]
    else:
        charts = [response_chart(kept, metric, field) for field in fields]
    if len(fields) > 1:
        charts.append(parallel_coordinates(outcomes, metric))
    return [chart for chart in charts if chart]


def varied_fields(outcomes: Sequence[Outcome]) -> list[str]:
    """Fields that differ between trials, except the seed, in the sweep's order."""
    fields = list(dict.fromkeys(f for one in outcomes for f in one.trial.overrides))
    return [
        f for f in fields if f != "seed" and len({repr(one.trial.overrides.get(f)) for one in outcomes}) > 1
    ]


def response_chart(outcomes: Sequence[Outcome], metric: str, field: str) -> Markup:
    """The metric over one field, whatever the others are: mean, lowest and highest of the finished runs."""
    runs = [(one.trial.overrides[field], one.value(metric)) for one in outcomes if one.status == "done" and field in one.trial.overrides]  # fmt: skip
    pairs = [(x, y) for x, y in runs if y is not None]
    if not pairs:
        return Markup("")
    note = "Mean over runs, with the lowest and the highest; other fields vary along."
    if not _is_numeric(outcomes, field):
        names = list(dict.fromkeys(str(x) for x, _ in pairs))
        means, low, high = _spread([[y for x, y in pairs if str(x) == name] for name in names])
        top = max(high) * 1.05 or 1.0
        series = Series(metric, list(range(len(names))), means, low, high)
        return bar_chart(f"{metric} by {field}", names, [series], value_label=metric, value_range=(min(0.0, *low), top), legend=False, note=note)  # fmt: skip
    pairs.sort(key=lambda pair: pair[0])
    log = _is_log([x for x, _ in pairs])
    groups: dict[float, list[tuple[float, float]]] = {}
    for x, y in pairs:
        groups.setdefault(x, []).append((x, y))
    parts = list(groups.values())
    if len(parts) > _MOST_PLACES:
        parts = [[pairs[i] for i in part] for part in np.array_split(np.arange(len(pairs)), _MOST_PLACES)]
    means, low, high = _spread([[y for _, y in part] for part in parts])
    xs = [float(np.mean([math.log10(x) if log else x for x, _ in part])) for part in parts]
    name = f"log10 of {field}" if log else field
    return line_chart(f"{metric} over {field}", [Series(metric, xs, means, low, high)], x_label=name, y_label=metric, note=note)  # fmt: skip


def parallel_coordinates(outcomes: Sequence[Outcome], metric: str) -> Markup:
    """Every run with the metric as a line across the fields and the metric: the best tenth, the others, the stopped."""
    kept = [one for one in outcomes if one.value(metric) is not None]
    fields = varied_fields(kept)
    if not fields:
        return Markup("")
    columns: list[tuple[str, list[str], list[float | None]]] = []
    for field in (*fields, metric):
        values = [one.value(metric) if field == metric else one.trial.overrides.get(field) for one in kept]
        columns.append((field.split(".")[-1], *_heights(values)))
    finished = sorted(one.value(metric) or 0.0 for one in kept if one.status != "stopped")
    bar = finished[max(len(finished) // 10 - 1, 0)] if finished else -math.inf

    def kind(one: Outcome) -> tuple[str, int]:
        if one.status == "stopped":
            return "stopped early", 6
        return ("best", 1) if (one.value(metric) or 0.0) <= bar else ("finished", 0)

    lines = []
    for i, one in enumerate(kept):
        name, style = kind(one)
        lines.append(Series(name, [], [heights[i] for *_, heights in columns], style=style))
    lines.sort(key=lambda line: ("stopped early", "finished", "best").index(line.name))  # The best on top.
    return parallel_chart("All runs", [(name, marks) for name, marks, _ in columns], lines)


def _heights(values: Sequence[Any]) -> tuple[list[str], list[float | None]]:
    """Marks of an axis from bottom to top, and the height in [0, 1] of each value."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        log = _is_log(values)
        places = [math.log10(v) if log else float(v) for v in values]
        low, high = min(places), max(places)
        marks = [number(v) for v in (min(values), *([10 ** ((low + high) / 2)] if log else [(low + high) / 2]), max(values))]  # fmt: skip
        return marks, [(p - low) / ((high - low) or 1.0) for p in places]
    names = sorted({str(v) for v in values if v is not None})
    return names, [None if v is None else names.index(str(v)) / max(len(names) - 1, 1) for v in values]


def _is_numeric(outcomes: Sequence[Outcome], field: str) -> bool:
    return all(_is_number(one.trial.overrides.get(field)) for one in outcomes)


def _is_log(xs: Sequence[float]) -> bool:
    return min(xs) > 0 and max(xs) / min(xs) >= 10


def sweep_chart(outcomes: Sequence[Outcome], metric: str) -> Markup:
    """`metric` over the first numeric field that varies, one curve per setting of the others; bars if none is numeric.

    Trials that differ only in the seed are one point: their mean, with the range from best to worst.
    """
    kept = [one for one in outcomes if one.value(metric) is not None]
    if not kept:
        return Markup("")
    varied = varied_fields(kept)
    numeric = [f for f in varied if _is_numeric(kept, f)]
    x_field = numeric[0] if numeric else ""
    curves: dict[str, dict[Any, list[float]]] = {}
    for one in kept:
        settings = one.trial.overrides
        label = ", ".join(f"{f.split('.')[-1]}={settings.get(f)}" for f in varied if f != x_field)
        points = curves.setdefault(label if x_field else "", {})
        value = one.value(metric)
        assert value is not None
        points.setdefault(settings[x_field] if x_field else label or one.trial.name, []).append(value)
    if not x_field:
        (groups,) = curves.values()
        names = list(groups)
        means, low, high = _spread([groups[name] for name in names])
        top = max(high) * 1.05 or 1.0
        series = Series(metric, list(range(len(names))), means, low, high)
        return bar_chart(metric, names, [series], value_label=metric, value_range=(0.0, top), legend=False)
    xs = [x for points in curves.values() for x in points]
    log = _is_log(xs)
    series_list = []
    for index, (label, points) in enumerate(sorted(curves.items())):
        order = sorted(points)
        means, low, high = _spread([points[x] for x in order])
        place = [math.log10(x) if log else float(x) for x in order]
        series_list.append(Series(label or metric, place, means, low, high, style=index % STYLES))
    name = f"log10 of {x_field}" if log else x_field
    return line_chart(f"{metric} over {x_field}", series_list, x_label=name, y_label=metric)


def _spread(groups: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    return [sum(g) / len(g) for g in groups], [min(g) for g in groups], [max(g) for g in groups]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
