"""Where a run's metrics are stored, and how to read them.

On a disk: metrics.jsonl, to which lines are appended. In a bucket, where nothing can be appended:
metrics/SESSION-after-STEP-PART.jsonl; a session begins after STEP, so the lines of earlier sessions for later steps no
longer count. Runs of earlier versions have metrics.jsonl there, too.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import re
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.json_lines import objects, split_lines
from lacy_jax.run_files import METRICS_FILE, METRICS_FOLDER

_PART = re.compile(r"(\d+)-after-(\d+)-(\d+)\.jsonl")
_READERS = 16


def part_path(workdir: epath.Path, session: int, after: int, part: int) -> epath.Path:
    """Path of one part of the metrics in a bucket; parts sort by their names."""
    return workdir / METRICS_FOLDER / f"{session:04d}-after-{after}-{part:05d}.jsonl"


def metrics_sessions(workdir: epath.PathLike) -> list[tuple[int, list[epath.Path]]]:
    """(step after which it begins, its files) for each session, in order; sessions on a disk share one file."""
    workdir = epath.Path(workdir)
    found: list[tuple[int, list[epath.Path]]] = []
    if (workdir / METRICS_FILE).exists():
        found.append((0, [workdir / METRICS_FILE]))
    for _, parts in itertools.groupby(_parts(workdir), key=lambda part: part[0]):
        _, afters, _, paths = zip(*parts, strict=True)
        found.append((afters[0], list(paths)))
    return found


def last_session(workdir: epath.Path) -> int:
    """Number of the last session that wrote parts; 0 = none."""
    return max((session for session, *_ in _parts(workdir)), default=0)


def _parts(workdir: epath.Path) -> list[tuple[int, int, int, epath.Path]]:
    folder = workdir / METRICS_FOLDER
    files.forget_listing(folder)  # A run may be writing there.
    matches = [(_PART.fullmatch(path.name), path) for path in (folder.iterdir() if folder.exists() else ())]
    return sorted((int(m[1]), int(m[2]), int(m[3]), path) for m, path in matches if m)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of a run's metrics, in order, under their current names; empty if there are none. A line that was cut
    off by a kill is left out.

    Raises:
      DataError: a line does not hold a step's metrics; the error names it.
    """
    return [current_names(row) for _, row in metrics_lines(workdir)]


def metrics_lines(workdir: epath.PathLike) -> list[tuple[str, dict[str, Any]]]:
    """(unchanged line, its object) for each line. Raises as `read_metrics`."""
    found: list[tuple[str, dict[str, Any]]] = []
    for after, paths in metrics_sessions(workdir):
        found = [(line, row) for line, row in found if row["step"] <= after]
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # In a bucket each file is a request.
            found += itertools.chain.from_iterable(pool.map(_whole_lines, paths))
    return found


def _whole_lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    data = path.read_bytes()
    # A kill can cut the last line, never one before it.
    lines = [line for line in split_lines(data[: data.rfind(b"\n") + 1]) if line.strip()]
    found = []
    for line, (where, row) in zip(lines, objects(lines, str(path)), strict=True):
        if type(row.get("step")) is not int or not isinstance(row.get("split"), str):
            raise DataError(f"{where}: no `step` and `split` of a line of metrics")
        found.append((line.decode("utf-8-sig") + "\n", row))
    return found


_EARLIER_NAMES = {"call_rate": "realised_call_rate", "n_valid": "weight_sum"}


def current_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the metrics under their current names; `_EARLIER_NAMES` lists the names in earlier runs."""
    return {_EARLIER_NAMES.get(name, name): value for name, value in row.items()}


def last_metrics(workdir: epath.Path) -> dict[str, dict[str, float]]:
    """The last metrics of each split, by name; empty if there are none."""
    last: dict[str, dict[str, float]] = {"train": {}, "valid": {}}
    for line in read_metrics(workdir):
        last[line["split"]] = {name: value for name, value in line.items() if name not in ("step", "split")}
    return last
