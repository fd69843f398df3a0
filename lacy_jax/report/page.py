"""The run report: one self-contained HTML page for one or many runs. It opens from disk and loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.formatting import number, percent
from lacy_jax.report import figures, tables
from lacy_jax.report.charts import STYLES
from lacy_jax.report.run_record import RunRecord, Study, read_run, read_runs, read_study
from lacy_jax.report.seeds import paired_tables, seed_tables
from lacy_jax.report.suites import study_tables, suite_charts, suite_tables
from lacy_jax.report.texts import collect_texts, text_section
from lacy_jax.run_files import REPORT_FILE, RESULTS_FILE

# The same style in every report: the first for the paper's method, grey for the plain baseline.
_USUAL_STYLES = {"lacy": 0, "ntp": 6}


def report_command(workdirs: Sequence[epath.PathLike], out: epath.PathLike | None = None) -> epath.Path:
    """`lacy report`: a page about the runs in `workdirs`, each a run directory or a folder of run directories.

    The first results.json (written by the quickstart) in these folders adds the comparison of methods, further ones of
    other seeds add the spread over seeds, and gates.json adds the study of gates.

    Args:
      workdirs: at least one folder.
      out: file to write; None = report.html in the first folder.

    Returns:
      The file written.

    Raises:
      DataError: a folder does not exist or holds no run, or results.json is corrupt.
      LacyError: the page cannot be written.
    """
    runs = read_runs(workdirs)
    folders = [epath.Path(workdir) for workdir in workdirs]
    found = [files.read_json(f / RESULTS_FILE, "results") for f in folders if (f / RESULTS_FILE).exists()]
    study = next((study for folder in folders if (study := read_study(folder)) is not None), None)
    path = epath.Path(out) if out else folders[0] / REPORT_FILE
    write_report(path, found[0] if found else None, runs, study=study, more_results=found[1:])
    return path


def write_report(
    path: epath.PathLike,
    results: Mapping[str, Any] | None = None,
    runs: Sequence[RunRecord | epath.PathLike] = (),
    samples: Mapping[str, Sequence[Any]] | None = None,
    *,
    title: str = "",
    commands: Sequence[str] = (),
    study: Study | None = None,
    more_results: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page.

    Args:
      path: HTML file, written completely or not at all.
      results: the content of results.json: "budget", "runs" {method: figures of `score_world` and "params", "tokens"},
        "by_budget" {budget: {method: figures}}; None for training runs only.
      runs: run directories, or records read from them.
      samples: {method: generations} to show side by side; None = the texts in the run directories' samples/.
      title: heading; default from the runs.
      commands: shell commands that made these results; those of the runs are added.
      study: a gate study with its texts.
      more_results: like `results`, for other seeds.

    Raises:
      DataError: there is nothing to report on, `results` has no "runs", or a folder is not a run directory.
      LacyError: the page cannot be written.
    """
    records = [run if isinstance(run, RunRecord) else read_run(run) for run in runs]
    if results is None and not records:
        raise DataError("nothing to report on: give results, or at least one run directory")
    all_results = [*([] if results is None else [results]), *more_results]
    if not all(map(_well_formed, all_results)):
        raise DataError(
            f'results: expected {{"runs": {{method: figures}}}}, as `make quickstart` writes {RESULTS_FILE}'
        )
    methods = list(results["runs"]) if results else []
    records.sort(key=lambda record: methods.index(record.name) if record.name in methods else len(methods))
    styles = assign_styles(methods, [record.name for record in records])
    sets, notes = collect_texts(records, results, samples, study)
    for one in sets:
        styles.setdefault(one.facets["method"], len(styles) % STYLES)
    budget = results.get("budget") if results else None
    main, further = figures.training_charts(records, styles)
    page = _template().render(
        title=title or _title(results, records),
        results=results,
        headline=tables.headline(results) if results else "",
        headline_chart=figures.headline_chart(results, styles) if results else "",
        comparison=tables.comparison(results) if results else [],
        reference=(results.get("differences") or {}).get("reference") if results else None,
        budgets=tables.by_budget(results) if results else None,
        attributes=tables.by_attribute(results) if results else None,
        budget_charts=figures.budget_charts(results, styles) if results else [],
        losses=tables.losses(records),
        kinds=tables.by_kind(records),
        loss_chart=figures.loss_chart(records, styles),
        training_charts=main,
        further_charts=further,
        gate_charts=figures.gate_charts(records, styles),
        suite_tables=[
            *(study_tables(study.result) if study else []),
            *suite_tables(records),
            *paired_tables(records),
        ],
        seed_tables=seed_tables(records, all_results),
        suite_charts=suite_charts(records, styles),
        summaries=tables.run_summaries(records),
        texts=text_section(sets, styles, budget if isinstance(budget, int | float) else None),
        differences=tables.config_differences(records),
        configs=[(r.name, json.dumps(r.config, indent=2, sort_keys=True)) for r in records if r.config],
        environments=tables.environments(records),
        commands=list(dict.fromkeys([*commands, *tables.commands(records)])),
        notes=[
            *(note for record in records for note in record.notes),
            *(study.notes if study else ()),
            *notes,
        ],
        script=_script(),
        script_hash=base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode(),
        percent=percent,
        number=number,
    )
    files.write_text(path, page)


def assign_styles(methods: Sequence[str], runs: Sequence[str]) -> dict[str, int]:
    """A style for each name on the page; a run and the method of that name share one."""
    styles = dict(_USUAL_STYLES)
    free = itertools.cycle(style for style in range(STYLES) if style not in _USUAL_STYLES.values())
    for name in [*methods, *runs]:
        if name not in styles:
            styles[name] = next(free)
    return styles


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


@functools.cache
def _script() -> Markup:
    """The page's only script; the content security policy allows it by its hash, and no other script."""
    return Markup((pathlib.Path(__file__).parent / "report.js").read_text(encoding="utf-8"))


def _title(results: Mapping[str, Any] | None, records: Sequence[RunRecord]) -> str:
    names = ", ".join(dict.fromkeys(str(r.config.get("name") or r.name) for r in records))
    return f"lacy_jax: {names}" if names else "lacy_jax: comparison"


def _well_formed(results: Any) -> bool:
    return (
        isinstance(results, Mapping)
        and isinstance(results.get("runs"), Mapping)
        and all(isinstance(row, Mapping) for row in results["runs"].values())
        and isinstance(results.get("by_budget") or {}, Mapping)
        and all(isinstance(row, Mapping) for row in (results.get("by_budget") or {}).values())
    )
