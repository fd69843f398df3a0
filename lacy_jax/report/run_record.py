"""Reading run directories for a report.

Reading is tolerant, because runs may be old: missing files are missing in the report, corrupt ones are skipped and named.
Only a folder that is not a run directory at all is an error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax.errors import ConfigError, DataError, one_line
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.json_lines import parse_object, split_lines
from lacy_jax.registry import load_plugins
from lacy_jax.report.fact_marks import Verdict, read_verdicts
from lacy_jax.run_files import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVENTS_FILE,
    FACTSCORE_FOLDER,
    METRICS_FILE,
    METRICS_FOLDER,
    SAMPLES_FOLDER,
    STUDY_FILE,
    suite_file,
)
from lacy_jax.training.goodput import run_goodput
from lacy_jax.training.metrics_files import current_names, metrics_sessions

ALONE = "alone"
"""Gate and partner of a model that writes alone."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, its gate and its partner; the latter two are `ALONE` if the model writes alone."""

    model: str
    gate: str = ALONE
    partner: str = ALONE

    @property
    def name(self) -> str:
        """The setting's name in file names."""
        return self.model if self.partner == ALONE else f"{self.model}-{self.gate}-{self.partner}"


@dataclasses.dataclass(frozen=True)
class SampleFile:
    """Generated texts of one setting.

    Attributes:
      lines: generations as JSON objects.
      verdicts: FActScore verdicts by text, if there are any.
      judge: the judge that gave them.
    """

    lines: Sequence[Any]
    verdicts: Mapping[str, Sequence[Verdict]] = dataclasses.field(default_factory=dict)
    judge: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A gate study (`gate_study`): its figures, and its texts by (group, setting)."""

    result: dict[str, Any]
    texts: dict[tuple[str, Setting], SampleFile]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run directory.

    Attributes:
      name: label in the report, unique among its runs.
      path: the run directory.
      config: config.json, or {}.
      sessions: environment.json, one entry per start or resume.
      goodput: shares of the wall time over all sessions (`run_goodput`); {} if the run has no record of it.
      train, valid: rows of metrics.jsonl by split, in order of step.
      samples: generated texts by file stem.
      suites: figures of `lacy evaluate` by suite.
      notes: what was skipped and why, one line each.
    """

    name: str
    path: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    sessions: tuple[dict[str, Any], ...] = ()
    goodput: dict[str, float] = dataclasses.field(default_factory=dict)
    train: tuple[dict[str, Any], ...] = ()
    valid: tuple[dict[str, Any], ...] = ()
    samples: dict[str, SampleFile] = dataclasses.field(default_factory=dict)
    suites: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """Figures of the suite calls, if there are any."""
        return self.suites.get("calls")

    @property
    def policy(self) -> str:
        """The delegation policy, or "" if the config is missing."""
        return str(self.config.get("objective", {}).get("policy", ""))


def find_runs(paths: Sequence[epath.PathLike]) -> list[epath.Path]:
    """The run directories in `paths`, each of which is one or contains some.

    Raises:
      DataError: a path does not exist or contains no run.
    """
    found: list[epath.Path] = []
    for given in paths:
        path = epath.Path(given)
        if not path.exists():
            raise DataError(f"run directory not found: {path}")
        inside = (
            sorted((p for p in path.iterdir() if p.is_dir() and _is_run(p)), key=str) if path.is_dir() else []
        )
        here = [path] if _is_run(path) else []
        if not here and not inside:
            raise DataError(
                f"no run found in {path}: neither it nor a folder in it has config.json or metrics.jsonl; "
                "give a --workdir of `lacy train`"
            )
        found += [p for p in here + inside if p not in found]
    if not found:
        raise DataError("no run directory given: use --workdir=DIR or --runs DIR ...")
    return found


def read_runs(paths: Sequence[epath.PathLike]) -> list[RunRecord]:
    """All runs of `find_runs`; their names are made unique by the parent folder or a number."""
    folders = find_runs(paths)
    last = [path.name for path in folders]
    names = [n if last.count(n) == 1 else f"{p.parent.name}/{n}" for p, n in zip(folders, last, strict=True)]
    unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    return [read_run(path, name) for path, name in zip(folders, unique, strict=True)]


def read_run(path: epath.PathLike, name: str = "") -> RunRecord:
    """Read one run directory; `name` defaults to the folder's name.

    Raises:
      DataError: it is not a run directory.
    """
    path = epath.Path(path)
    if not _is_run(path):
        raise DataError(f"not a run directory: {path} has neither config.json nor metrics.jsonl")
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    for after, parts in metrics_sessions(path):
        read = [row for part in parts for row in _read_lines(part, ("step", "split"), notes)]
        rows = [row for row in rows if row["step"] <= after]
        rows += [current_names(row) for row in read if isinstance(row["step"], int)]
    sessions = _read_object(path / ENVIRONMENT_FILE, notes)
    samples = {}
    if (path / SAMPLES_FOLDER).is_dir():
        for file in sorted((path / SAMPLES_FOLDER).glob("*.jsonl"), key=str):
            samples[file.name.removesuffix(".jsonl")] = _read_samples(
                file, path / FACTSCORE_FOLDER / file.name, notes
            )
    config = _read_object(path / CONFIG_FILE, notes)
    _load_plugins(config, notes)
    suites = {suite: _read_object(path / suite_file(suite), notes) for suite in SUITES}
    goodput: dict[str, float] | None = None
    try:
        goodput = run_goodput(path)
    except (DataError, KeyError, TypeError) as error:
        notes.append(f"{path / EVENTS_FILE}: {one_line(error)}")
    by_step = sorted(rows, key=lambda row: row["step"])
    return RunRecord(
        name=name or path.name,
        path=str(path),
        config=config if isinstance(config, dict) else {},
        sessions=tuple(s for s in sessions if isinstance(s, dict)) if isinstance(sessions, list) else (),
        goodput=goodput or {},
        train=tuple(row for row in by_step if row["split"] == "train"),
        valid=tuple(row for row in by_step if row["split"] == "valid"),
        samples={stem: file for stem, file in samples.items() if file.lines},
        suites={suite: found for suite, found in suites.items() if isinstance(found, dict)},
        notes=tuple(notes),
    )


def _load_plugins(config: Any, notes: list[str]) -> None:
    """Load the plugins of a run, which may define suites with their tables."""
    plugins = config.get("plugins") if isinstance(config, dict) else None
    try:
        load_plugins(plugins or ())
    except ConfigError as error:
        notes.append(str(error))


def read_study(folder: epath.PathLike) -> Study | None:
    """The gate study of a folder; None if there is none."""
    folder = epath.Path(folder)
    notes: list[str] = []
    result = _read_object(folder / STUDY_FILE, notes)
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        return Study({}, {}, tuple(notes)) if notes else None
    texts = {}
    for row in result["rows"]:
        try:
            group, setting = str(row["group"]), Setting(row["model"], row["gate"], row["partner"])
        except (KeyError, TypeError):
            notes.append(f"{folder / STUDY_FILE}: a row without group, model, gate or partner; left out")
            continue
        name = f"{setting.name}.jsonl"
        file = _read_samples(folder / "texts" / group / name, folder / FACTSCORE_FOLDER / group / name, notes)
        if file.lines:
            texts[group, setting] = file
    return Study(result, texts, tuple(notes))


def _read_samples(path: epath.Path, judged: epath.Path, notes: list[str]) -> SampleFile:
    """Texts with the verdicts of the suite factscore, or else of the suite cost."""
    lines = _read_lines(path, ("prompt", "text"), notes)
    if not judged.exists():
        judged = judged.parent / f"cost-{judged.name}"
    if not judged.exists():
        return SampleFile(lines)
    try:
        return SampleFile(lines, *read_verdicts(judged))
    except DataError as error:
        notes.append(f"{error}; left out")
        return SampleFile(lines)


def _is_run(path: epath.Path) -> bool:
    return any((path / name).exists() for name in (CONFIG_FILE, METRICS_FILE, METRICS_FOLDER))


def _read_object(path: epath.Path, notes: list[str]) -> Any:
    """The JSON value of a file; None if it is missing or corrupt (with a note)."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        notes.append(f"{path}: not readable as JSON ({one_line(error, 160)}); left out")
        return None


def _read_lines(path: epath.Path, fields: Sequence[str], notes: list[str]) -> list[dict[str, Any]]:
    """Objects of a JSONL file that have all `fields`; other lines are skipped, the first few with a note each."""
    if not path.exists():
        return []
    try:
        lines = split_lines(path.read_bytes())
    except OSError as error:
        notes.append(f"{path}: not readable ({one_line(error, 160)}); left out")
        return []
    rows, bad = [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            if any(field not in row for field in fields):
                raise ValueError(f"expected an object with {', '.join(fields)}")
            rows.append(row)
        except ValueError as error:
            bad += 1
            if bad <= 3:
                notes.append(f"{path}:{number}: {one_line(error, 160)}; line skipped")
    if bad > 3:
        notes.append(f"{path}: {bad - 3} more lines skipped")
    return rows
