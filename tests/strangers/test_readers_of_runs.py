"""Readers of runs and datasets: configs, metrics, metadata, notes. See tests/support/reader_checks.py."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import ClassVar

import dataset_fakes
from reader_checks import Reader, ReaderChecks, folder_of, lines

from lacy_jax import config as run_config
from lacy_jax.config import get_default_config
from lacy_jax.dataset.metadata import SplitCounts, read_metadata
from lacy_jax.dataset.shard import read_result
from lacy_jax.report.run_record import read_run
from lacy_jax.run_files import CONFIG_FILE, ENVIRONMENT_FILE, METADATA_FILE, METRICS_FILE
from lacy_jax.training.metrics_files import read_metrics
from lacy_jax.training.reference import _read as read_note


def _dataset(path: pathlib.Path) -> None:
    records = dataset_fakes.make_records(4)
    dataset_fakes.write_dataset(path.parent, {"train": records, "valid": records[:1]})


def _built(path: pathlib.Path) -> None:
    counts = dataclasses.asdict(SplitCounts(1, 2, 1, 0, (1,), (10,)))
    path.write_text(json.dumps({"splits": {"train": counts}, "skipped": 0, "dropped": {}, "judged": False}))


def _run(path: pathlib.Path) -> None:
    (path.parent / "samples").mkdir(parents=True)
    (path.parent / CONFIG_FILE).write_text(run_config.to_json(get_default_config()))
    (path.parent / METRICS_FILE).write_bytes(lines({"step": 1, "split": "train", "loss": 1.0}))
    (path.parent / ENVIRONMENT_FILE).write_text('[{"git": null, "lacy_jax": "1", "devices": "cpu"}]')


class TestReaders(ReaderChecks):
    readers: ClassVar[dict[str, Reader]] = {
        "dataset metadata": Reader(
            f"d/{METADATA_FILE}",
            _dataset,
            lambda path: (read_metadata(path.parent).summary(), read_metadata(path.parent).fingerprint),
            json=True,
            names=folder_of,
        ),
        "run config": Reader(
            f"r/{CONFIG_FILE}",
            _run,
            lambda path: run_config.validate(run_config.read_run_config(path.parent)) or "good",
            json=True,
            names=lambda path: "config",
        ),
        "run config in a report": Reader(
            f"r/{CONFIG_FILE}", _run, lambda path: read_run(path.parent), json=True
        ),
        "metrics": Reader(
            f"r/{METRICS_FILE}", _run, lambda path: read_metrics(path.parent) or "none", json=True
        ),
        "metrics in a report": Reader(
            f"r/{METRICS_FILE}", _run, lambda path: read_run(path.parent), json=True
        ),
        "environment": Reader(f"r/{ENVIRONMENT_FILE}", _run, lambda path: read_run(path.parent), json=True),
        "build state": Reader(
            "d/.build/00000.json",
            _built,
            lambda path: read_result(path.parent.parent, 0),
            json=True,
            names=lambda path: ".build",
        ),
        "note on an extra": Reader("n.json", b'{"model": "x"}', lambda path: [read_note(path)], json=True),
    }
