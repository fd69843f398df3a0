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

from lacy_jax import files
from lacy_jax.errors import ConfigError, TrainingError
from lacy_jax.formatting import percent
from lacy_jax.sweeps import Search, Trial, experiment_name
from lacy_jax.sweeps.figures import sweep_charts
from lacy_jax.sweeps.run import Outcome, launch_line, outcome, run_trials
from lacy_jax.sweeps.study import Study, next_trials, run_search
from lacy_jax.sweeps.trials import Overrides, load_sweep, make_trials

METRIC = "valid/nll"
_SHOWN = ("valid/nll", "valid/nll_called", "train/loss", "train/call_rate", "train/tokens_per_s")


def table_rows(outcomes: Sequence[Outcome], metric: str) -> tuple[list[str], list[tuple[Outcome, list[str]]]]:
    """Metrics that any trial has, and the trials in the order of their fields' values, each with its rank by `metric`
    and those metrics.

    Only finished trials have a rank; lower is better.
    """
    columns = [c for c in dict.fromkeys((metric, *_SHOWN)) if any(o.value(c) is not None for o in outcomes)]
    done = [one for one in outcomes if one.status == "done" and one.value(metric) is not None]
    best_first = [
        one.trial.index for one in sorted(done, key=lambda one: (one.value(metric), one.trial.index))
    ]

    def cells(one: Outcome) -> list[str]:
        rank = str(best_first.index(one.trial.index) + 1) if one.trial.index in best_first else ""
        return [rank, *("" if (v := one.value(c)) is None else _number(v) for c in columns)]

    return columns, [(one, cells(one)) for one in in_order(outcomes)]


def trial_table(outcomes: Sequence[Outcome], metric: str = METRIC) -> str:
    """Plain text, one line per trial, in the order of `table_rows`."""
    columns, trials = table_rows(outcomes, metric)
    rows = [["trial", "status", "step", "rank", *columns]]
    rows += [[one.trial.name, one.status, str(one.step), *(c or "-" for c in cells)] for one, cells in trials]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Sort by the values of the fields that trials set, first field first: numbers by size, texts as they appear."""
    fields = list(dict.fromkeys(f for one in outcomes for f in one.trial.overrides))
    came = {f: list(dict.fromkeys(str(one.trial.overrides.get(f)) for one in outcomes)) for f in fields}

    def place(one: Outcome, field: str) -> float:
        value = one.trial.overrides.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        return -math.inf if value is None else came[field].index(str(value))

    return sorted(outcomes, key=lambda one: [place(one, field) for field in fields])


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
        values = (one.value(m) for m in metrics)
        own = (one.trial.overrides.get(f, "") for f in fields)
        writer.writerow([one.trial.index, one.trial.name, one.status, one.step, *own, *values])
    return out.getvalue()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _page(title: str, outcomes: Sequence[Outcome], metric: str) -> str:
    columns, rows = table_rows(outcomes, metric)
    stopped = [one for one in outcomes if one.status == "stopped"]
    steps = [(one.step, one.trial.config.train.steps) for one in stopped]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("sweep.html").render(
        title=title, charts=sweep_charts(outcomes, metric), columns=columns, rows=rows, metric=metric,
        stopped=len(stopped), share=percent(sum(a for a, _ in steps) / sum(b for _, b in steps)) if steps else "",
    )  # fmt: skip


def _left(spec: str, overrides: Sequence[str], workdir: epath.Path, sweep: list[Overrides]) -> list[Trial]:
    return [t for t in make_trials(spec, overrides, sweep) if outcome(workdir, t).status != "done"]


def sweep_command(
    spec: str,
    overrides: Sequence[str],
    workdir: epath.Path,
    dry_run: bool,
    jobs: int,
    emit: str | None,
    metric: str,
    journal: str = "",
) -> tuple[dict[str, Any], str]:
    """What `lacy sweep` does: list (dry run), print launch commands (emit), or run and tabulate.

    For a search, `emit` first reads the results so far, then prints the next run of each of `jobs` points; each call
    prints the next ones.

    Returns:
      The result as JSON, and as text.

    Raises:
      ConfigError: see `load_trials`, `run_trials` and `Study`.
      TrainingError: the sweep was stopped, or trials failed (then the others have run and the table is written).
    """
    sweep = load_sweep(spec, overrides)
    study = Study(sweep, spec, overrides, workdir, metric, journal) if isinstance(sweep, Search) else None
    if journal and study is None:
        raise ConfigError(f"--journal={journal}: only a search has one; {spec} lists its trials")
    if emit is not None:
        left = _left(spec, overrides, workdir, sweep) if study is None else next_trials(study, jobs)
        lines = [launch_line(emit, spec, overrides, workdir, trial) for trial in left]
        return {"commands": lines}, "\n".join(lines)
    if dry_run:
        standing = (
            study.outcomes() if study else [outcome(workdir, t) for t in make_trials(spec, overrides, sweep)]
        )
        text = "".join(f"{one.status:<8} {one.trial.name}\n" for one in standing)
        count = f"{len(standing)} trials, {sum(one.status == 'done' for one in standing)} done"
        if study is not None:
            finished = sum(point.state != "running" for point in study.points())
            count = f"{study.search.points} points of {study.search.seeds} trials, {finished} finished"
        result = {"trials": [one.to_dict() for one in standing]}
        return result, f"{text}{count}; would run in {workdir}/trials"
    if study is None:
        found = run_trials(make_trials(spec, overrides, sweep), spec, overrides, workdir, jobs)
    else:
        found = run_search(study, spec, overrides, workdir, jobs)
    paths = write_sweep(workdir, f"Sweep {experiment_name(spec)}", found, metric)
    failed = [one for one in found if one.status == "failed"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(found)} trials failed, first {failed[0].trial.name}: {failed[0].error} "
            f"(log in {failed[0].workdir}/log.txt; table of the others in {paths[-1]})"
        )
    table = trial_table(found, metric)
    return {"trials": [one.to_dict() for one in found], "files": paths}, f"{table}\n\n{' '.join(paths)}"
