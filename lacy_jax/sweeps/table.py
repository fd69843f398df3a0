"""The trials of a sweep side by side: a table, a plot, JSONL and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from lacy_jax import files
from lacy_jax.errors import TrainingError
from lacy_jax.report.charts import STYLES, Series, bar_chart, line_chart
from lacy_jax.sweeps import experiment_name, load_trials
from lacy_jax.sweeps.run import Outcome, launch_line, outcome, run_trials

METRIC = "valid/nll"
_SHOWN = ("valid/nll", "valid/nll_called", "train/loss", "train/call_rate", "train/tokens_per_s")


def trial_table(outcomes: Sequence[Outcome], metric: str = METRIC) -> str:
    """Plain text, one line per trial, best first by `metric` (lower is better); trials without it last."""
    columns = list(dict.fromkeys((metric, *_SHOWN)))
    columns = [c for c in columns if any(value_of(o, c) is not None for o in outcomes)]
    rows = [["trial", "status", "step", *columns]]
    for one in ranked(outcomes, metric):
        values = [value_of(one, column) for column in columns]
        rows.append(
            [one.trial.name, one.status, str(one.step), *("-" if v is None else _number(v) for v in values)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def ranked(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """Best first; those without the metric keep their order at the end."""

    def key(one: Outcome) -> tuple[float, int]:
        value = value_of(one, metric)
        return (math.inf if value is None else value, one.trial.index)

    return sorted(outcomes, key=key)


def value_of(one: Outcome, metric: str) -> float | None:
    """ "valid/nll" -> that metric of a trial, None if it has none."""
    split, _, name = metric.partition("/")
    value = {"train": one.train, "valid": one.valid}.get(split, {}).get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def write_sweep(
    workdir: epath.PathLike, title: str, outcomes: Sequence[Outcome], metric: str = METRIC
) -> list[str]:
    """Write trials.jsonl, trials.csv and sweep.html to `workdir`; returns their paths."""
    workdir = epath.Path(workdir)
    contents = {
        "trials.jsonl": "".join(json.dumps(one.to_dict()) + "\n" for one in outcomes),
        "trials.csv": _csv(outcomes),
        "sweep.html": _page(title, outcomes, metric),
    }
    for name, text in contents.items():
        files.write_text(workdir / name, text)
    return [str(workdir / name) for name in contents]


def _csv(outcomes: Sequence[Outcome]) -> str:
    fields = list(dict.fromkeys(f for one in outcomes for f in one.trial.overrides))
    metrics = list(
        dict.fromkeys(
            f"{s}/{m}" for one in outcomes for s, part in (("train", one.train), ("valid", one.valid)) for m in part
        )
    )  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "name", "status", "step", *fields, *metrics])
    for one in outcomes:
        values = (value_of(one, m) for m in metrics)
        own = (one.trial.overrides.get(f, "") for f in fields)
        writer.writerow([one.trial.index, one.trial.name, one.status, one.step, *own, *values])
    return out.getvalue()


def sweep_chart(outcomes: Sequence[Outcome], metric: str) -> Markup:
    """`metric` over the first numeric field that varies, one curve per setting of the others; bars if none is numeric.

    Trials that differ in the seed alone are one point: their mean, with the range from best to worst.
    """
    kept = [one for one in outcomes if value_of(one, metric) is not None]
    if not kept:
        return Markup("")
    fields = list(dict.fromkeys(f for one in kept for f in one.trial.overrides))
    varied = [
        f for f in fields if f != "seed" and len({repr(one.trial.overrides.get(f)) for one in kept}) > 1
    ]
    numeric = [f for f in varied if all(_is_number(one.trial.overrides.get(f)) for one in kept)]
    x_field = numeric[0] if numeric else ""
    curves: dict[str, dict[Any, list[float]]] = {}
    for one in kept:
        settings = one.trial.overrides
        label = ", ".join(f"{f.split('.')[-1]}={settings.get(f)}" for f in varied if f != x_field)
        points = curves.setdefault(label if x_field else "", {})
        value = value_of(one, metric)
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
    log = min(xs) > 0 and max(xs) / min(xs) >= 10
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


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _page(title: str, outcomes: Sequence[Outcome], metric: str) -> str:
    columns = [
        c for c in dict.fromkeys((metric, *_SHOWN)) if any(value_of(o, c) is not None for o in outcomes)
    ]
    rows = [
        (one, [None if (v := value_of(one, c)) is None else _number(v) for c in columns])
        for one in ranked(outcomes, metric)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("sweep.html").render(
        title=title, chart=sweep_chart(outcomes, metric), columns=columns, rows=rows, metric=metric
    )


def sweep_command(
    spec: str,
    overrides: Sequence[str],
    workdir: epath.Path,
    dry_run: bool,
    jobs: int,
    emit: str | None,
    metric: str,
) -> tuple[dict[str, Any], str]:
    """What `lacy sweep` does: list (dry run), print launch commands (emit), or run and tabulate.

    Returns:
      The result as JSON, and as text.

    Raises:
      ConfigError: see `load_trials` and `run_trials`.
      TrainingError: trials failed, after all that could run have run and the table is written; or stopped.
    """
    trials = load_trials(spec, overrides)
    standing = [outcome(workdir, trial) for trial in trials]
    if emit is not None:
        left = [one.trial for one in standing if one.status != "done"]
        lines = [launch_line(emit, spec, overrides, workdir, trial) for trial in left]
        return {"commands": lines}, "\n".join(lines)
    if dry_run:
        text = "\n".join(f"{one.status:<8} {one.trial.name}" for one in standing)
        done = sum(one.status == "done" for one in standing)
        result = {"trials": [one.to_dict() for one in standing]}
        return result, f"{text}\n{len(trials)} trials, {done} done; would run in {workdir}/trials"
    found = run_trials(trials, spec, overrides, workdir, jobs)
    paths = write_sweep(workdir, f"Sweep {experiment_name(spec)}", found, metric)
    failed = [one for one in found if one.status == "failed"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(found)} trials failed, first {failed[0].trial.name}: {failed[0].error} "
            f"(log in {failed[0].workdir}/log.txt; table of the others in {paths[-1]})"
        )
    table = trial_table(found, metric)
    return {"trials": [one.to_dict() for one in found], "files": paths}, f"{table}\n\n{' '.join(paths)}"
