"""The run report: one self-contained HTML page for one or many runs. Opens from disk, loads nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.corpus import World
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation import report_figures as figures
from lacy_jax.evaluation import report_tables as tables
from lacy_jax.evaluation.charts import STYLES, number, percent
from lacy_jax.evaluation.markup import describe, render_text
from lacy_jax.evaluation.report_suites import suite_charts, suite_tables
from lacy_jax.evaluation.run_record import RESULTS_FILE, RunRecord, read_run, read_runs
from lacy_jax.evaluation.world_facts import JudgedText, as_record, judge_text
from lacy_jax.evaluation.world_facts import World as AnyWorld

# The same look in every report: the method of the paper first, the plain baseline grey.
_USUAL_STYLES = {"lacy": 0, "ntp": 6}
MOST_PROMPTS = 8
MOST_SETS = 8


def report_command(workdirs: Sequence[epath.PathLike], out: epath.PathLike | None = None) -> epath.Path:
    """`lacy report`: a page about the runs in `workdirs`, each a run directory or a folder of them.

    A results.json in the first folder (the quickstart's) adds the comparison of methods.

    Args:
      workdirs: at least one.
      out: file to write; None = report.html in the first folder.

    Returns:
      The file written.

    Raises:
      DataError: a folder does not exist or holds no run, or results.json is corrupt.
      LacyError: the page cannot be written.
    """
    runs = read_runs(workdirs)
    first = epath.Path(workdirs[0])
    results_path = first / RESULTS_FILE
    results = files.read_json(results_path, "results") if results_path.exists() else None
    path = epath.Path(out) if out else first / "report.html"
    write_report(path, results, runs)
    return path


def write_report(
    path: epath.PathLike,
    results: Mapping[str, Any] | None = None,
    runs: Sequence[RunRecord | epath.PathLike] = (),
    samples: Mapping[str, Sequence[Any]] | None = None,
    *,
    title: str = "",
    commands: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
      path: HTML file; written whole or not at all.
      results: as in results.json: "budget", "runs" {method: figures of `score_world` and "params", "tokens"},
        "by_budget" {budget: {method: figures}}; None for training runs alone.
      runs: run directories, or records read from them.
      samples: {method: generations} to show side by side; None = what the run directories hold in samples/, of
        each method at the main budget if there are results.
      title: heading; default from the runs.
      commands: shell commands that made these results; the runs' own are added.

    Raises:
      DataError: nothing to report on, `results` without "runs", or a folder that is no run.
      LacyError: the page cannot be written.
    """
    records = [run if isinstance(run, RunRecord) else read_run(run) for run in runs]
    if results is None and not records:
        raise DataError("nothing to report on: give results, or at least one run directory")
    if results is not None and not _well_formed(results):
        raise DataError(
            f'results: expected {{"runs": {{method: figures}}}}, as `make quickstart` writes {RESULTS_FILE}'
        )
    methods = list(results["runs"]) if results else []
    records.sort(key=lambda record: methods.index(record.name) if record.name in methods else len(methods))
    styles = assign_styles(methods, [record.name for record in records])
    if samples is None and results is not None:
        samples = method_samples(results, records) or None
    sets, notes = _judged_samples(records, samples)
    for label in sets:
        styles.setdefault(label, len(styles) % STYLES)
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
        training_charts=main,
        further_charts=further,
        gate_charts=figures.gate_charts(records, styles),
        suite_tables=suite_tables(records),
        suite_charts=suite_charts(records, styles),
        summaries=tables.run_summaries(records),
        sample_sets=[{"label": label, "style": styles[label]} for label in sets],
        prompts=_side_by_side(sets),
        differences=tables.config_differences(records),
        configs=[(r.name, json.dumps(r.config, indent=2, sort_keys=True)) for r in records if r.config],
        environments=tables.environments(records),
        commands=list(dict.fromkeys([*commands, *tables.commands(records)])),
        notes=[note for record in records for note in record.notes] + notes,
        percent=percent,
        number=number,
    )
    files.write_text(path, page)


def assign_styles(methods: Sequence[str], runs: Sequence[str]) -> dict[str, int]:
    """A style per name, the same all over the page; a run and the method of that name share one."""
    styles = dict(_USUAL_STYLES)
    free = itertools.cycle(style for style in range(STYLES) if style not in _USUAL_STYLES.values())
    for name in [*methods, *runs]:
        if name not in styles:
            styles[name] = next(free)
    return styles


def method_samples(
    results: Mapping[str, Any], records: Sequence[RunRecord]
) -> dict[str, list[dict[str, Any]]]:
    """{method: its texts at the main budget}, from the samples/GATE-BUDGET.jsonl of the run it is made of.

    A method "RUN" or "RUN+..." belongs to the run of that name; its gate is the "gate" of its figures.
    """
    found = {}
    for method, row in results["runs"].items():
        gate, budget = row.get("gate"), results.get("budget")
        stem = f"{gate}-{100 * budget:g}" if gate and budget is not None else "alone-0"
        for record in records:
            if method.split("+")[0] == record.name and stem in record.samples:
                found[method] = record.samples[stem]
    return found


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


class _NoWorld:
    """Texts whose truth is not known: nothing is judged."""

    def subject(self, text: str) -> None:
        return None

    def statements(self, text: str) -> Sequence[Any]:
        return []


def _judged_samples(
    records: Sequence[RunRecord], samples: Mapping[str, Sequence[Any]] | None
) -> tuple[dict[str, list[JudgedText]], list[str]]:
    """{label: texts}, judged where they are about a synthetic world; and notes on what could not be shown."""
    notes: list[str] = []
    sets: dict[str, list[JudgedText]] = {}
    world = next((w for record in records if (w := _world(record)) is not None), _NoWorld())
    if samples is None:
        for record in records:
            for stem, lines in record.samples.items():
                label = f"{record.name}: {stem}" if len(records) > 1 else stem
                sets[label] = _judge(lines, _world(record) or _NoWorld(), label, notes)
    else:
        sets = {label: _judge(texts, world, label, notes) for label, texts in samples.items()}
    sets = {label: texts for label, texts in sets.items() if texts}
    if len(sets) > MOST_SETS:
        left_out = list(sets)[MOST_SETS:]
        notes.append(f"samples not shown, to keep the page small: {', '.join(left_out)}")
        sets = {label: sets[label] for label in list(sets)[:MOST_SETS]}
    return sets, notes


def _judge(texts: Sequence[Any], world: AnyWorld, label: str, notes: list[str]) -> list[JudgedText]:
    judged, bad = [], 0
    for text in texts:
        try:
            judged.append(text if isinstance(text, JudgedText) else judge_text(as_record(text), world))
        except (DataError, TypeError, ValueError, AttributeError):
            bad += 1
    if bad:
        notes.append(f"samples {label}: {bad} of {len(texts)} lines are not generations; left out")
    return judged


def _world(record: RunRecord) -> World | None:
    """The synthetic world of a run, or None for other text (or a config that no longer reads)."""
    try:
        corpus = config_lib.from_json(json.dumps(record.config)).corpus
        return World(corpus.people, corpus.world_seed) if corpus.kind == "world" else None
    except (LacyError, TypeError, ValueError, AttributeError):
        return None


@dataclasses.dataclass(frozen=True)
class _Card:
    """One text of one method in the page."""

    set: int
    html: Any
    summary: str


def _side_by_side(sets: Mapping[str, Sequence[JudgedText]]) -> list[dict[str, Any]]:
    """Cards by prompt, prompts that most sets have first, in order of appearance."""
    by_prompt: dict[str, list[_Card]] = {}
    for index, texts in enumerate(sets.values()):
        seen = set()
        for text in texts:
            prompt = text.text[: text.prompt_length]
            if prompt not in seen:  # One text per method and prompt.
                seen.add(prompt)
                card = _Card(index, render_text(text), describe(text))
                by_prompt.setdefault(prompt, []).append(card)
    order = sorted(by_prompt, key=lambda prompt: -len(by_prompt[prompt]))
    return [{"prompt": prompt, "cards": by_prompt[prompt]} for prompt in order[:MOST_PROMPTS]]
