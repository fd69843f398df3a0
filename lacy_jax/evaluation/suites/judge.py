"""Suite judge: a judge's verdicts compared with people's labels on the facts of published texts."""

from __future__ import annotations

import contextlib
import tempfile

from etils import epath

from lacy_jax.errors import ConfigError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import formats, pipeline
from lacy_jax.evaluation.suites.suite import (
    DATA,
    JUDGE,
    KNOWLEDGE,
    MAX_TOKENS,
    SERVER,
    SUITES,
    Figures,
    Reported,
    Request,
    Suite,
)
from lacy_jax.formatting import Table, number, percent
from lacy_jax.run_files import FACTSCORE_FOLDER

LABELLED_FOLDER = "factscore_labeled"


def _run(request: Request) -> Figures:
    data = epath.Path(request.need(DATA, f"the folder that contains {LABELLED_FOLDER}/"))
    labelled = sorted((data / LABELLED_FOLDER).glob("*.jsonl"), key=str)
    if not labelled:
        raise ConfigError(f"--data={data}: it contains no {LABELLED_FOLDER}/*.jsonl")
    given = request.need(KNOWLEDGE, "a JSONL corpus with titles, or a database")
    systems = {path.name.removesuffix(".jsonl"): formats.read_entries(path) for path in labelled}
    with contextlib.ExitStack() as stack:
        # Without a run directory, a database made from a corpus is temporary.
        folder = (
            epath.Path(request.workdir) / FACTSCORE_FOLDER
            if request.workdir
            else epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        knowledge = pipeline.open_knowledge(given, folder)
        stack.callback(knowledge.close)
        judge = factscore.get_judge(request[JUDGE], request.guard(), request[MAX_TOKENS])
        return factscore.agreement(systems, judge, knowledge)


def _table(reported: Reported) -> Table:
    rows = tuple(
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
        for _, f in reported
    )
    head = ("judge", "labelled facts", "accuracy", "constant answer", "F1 supported", "F1 not supported", "correlation per text", "order of systems")  # fmt: skip
    return Table("The judge against people", head, rows, "Facts that people labelled supported or not.")


SUITES.add(
    Suite(
        "judge",
        "a judge's verdicts against people's labels; needs no run",
        _run,
        factscore.agreement_table,
        options=(DATA, KNOWLEDGE, JUDGE, *SERVER),
        table=_table,
    )
)
