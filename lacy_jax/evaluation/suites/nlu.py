"""Suite nlu: language understanding by lm-evaluation-harness, without CALL (arXiv:2602.12005 §5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lacy_jax.evaluation.harness_tasks import TASKS
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.nlu import nlu_table, run_nlu
from lacy_jax.evaluation.suites.suite import (
    DATA,
    LIMIT,
    SUITES,
    Figures,
    Option,
    Reported,
    Request,
    Suite,
    Units,
    mapping,
    share_of,
)
from lacy_jax.formatting import Table, percent

ONLY = Option("tasks", "comma-separated")


def _run(request: Request) -> Figures:
    run, config = request.run()
    return run_nlu(
        run.model,
        run.tokenizer,
        request.need(DATA, "the folder of the test sets (ARC-Easy_test.json, blimp.tar.xz and so on)"),
        run.workdir / "nlu_tasks",
        kept=Kept(run.workdir / "nlu"),
        about=[run.step],
        tasks=tuple(request[ONLY].split(",")) if request[ONLY] else TASKS,
        limit=request[LIMIT],
        batch_size=config.generate.batch_size,
    )


def _table(reported: Reported) -> Table:
    tasks = list(dict.fromkeys(task for _, figures in reported for task in mapping(figures, "tasks")))
    rows = tuple(
        (
            name,
            percent(figures.get("acc_mean")),
            *(percent(mapping(mapping(figures, "tasks"), task).get("acc")) for task in tasks),
        )
        for name, figures in reported
    )
    note = (
        "Accuracy by lm-evaluation-harness on local test sets; mean of ARC-Easy, HellaSwag, PIQA, Social IQA."
    )
    return Table("Language understanding", ("run", "mean", *tasks), rows, note)


def _units(figures: Mapping[str, Any]) -> Units:
    found: Units = {}
    for task, row in mapping(figures, "tasks").items():
        right = row.get("right") if isinstance(row, Mapping) else None
        if isinstance(right, str) and right:
            found[f"{task}, accuracy"] = {
                str(n): {"": (float(mark == "1"), 1.0)} for n, mark in enumerate(right)
            }
    return found


SUITES.add(
    Suite(
        "nlu",
        "language understanding by lm-evaluation-harness on local test sets",
        _run,
        nlu_table,
        options=(LIMIT, DATA, ONLY),
        table=_table,
        comparable=lambda f: (f.get("harness"), f.get("limit")),
        units=_units,
        headline=("language understanding", *share_of("acc_mean")),
    )
)
