"""Suite acceptability: would the model's own next token keep the statement true? (arXiv:2602.12005 §3)"""

from __future__ import annotations

from collections.abc import Mapping

from lacy_jax.clients import ChatClient
from lacy_jax.config import dataset_folder
from lacy_jax.dataset import open_split
from lacy_jax.evaluation import acceptability
from lacy_jax.evaluation.acceptability import bin_name
from lacy_jax.evaluation.suites.suite import (
    JUDGE,
    LIMIT,
    MAX_TOKENS,
    SERVER,
    SUITES,
    Figures,
    Reported,
    Request,
    Suite,
    rows_of,
)
from lacy_jax.formatting import Table, number, percent, with_interval
from lacy_jax.run_files import ACCEPTABILITY_CACHE_FOLDER


def _run(request: Request) -> Figures:
    guard = request.guard()
    run, config = request.run()
    cache = run.workdir / ACCEPTABILITY_CACHE_FOLDER
    client = ChatClient(request[JUDGE], cache, key=None, guard=guard, max_tokens=request[MAX_TOKENS])
    source = open_split(dataset_folder(config, run.workdir), "valid")
    figures = acceptability.run_acceptability(run, source, client, guard=guard, limit=request[LIMIT])
    return {"judge": client.model, **figures}


def _table(reported: Reported) -> Table:
    rows = []
    for name, f in reported:
        whole = [
            {"kind": kind, **f[kind]} for kind in ("factual", "other") if isinstance(f.get(kind), Mapping)
        ]
        for row in [*rows_of(f), *whole]:
            if row.get("positions"):
                rows.append(
                    (
                        name,
                        bin_name(row) if "low" in row else "any",
                        str(row.get("kind")),
                        number(row["positions"]),
                        percent(row.get("right", 0) / row["positions"]),
                        with_interval(row.get("share"), row.get("share_ci")),
                        f"{f.get('no_answer', f.get('malformed'))} of {f.get('requests')}",
                        str(f.get("judge")),
                    )
                )
    head = ("run", "loss (nats)", "tokens", "positions", "top-1 right", "acceptable", "no answer", "judge")  # fmt: skip
    note = (
        "Share of top-1 tokens that keep the statement true to the document; 95 % intervals over documents."
    )
    return Table("Acceptability", head, tuple(rows), note)


SUITES.add(
    Suite(
        "acceptability",
        "would the model's top-1 token keep the statement true? judged by a chat model",
        _run,
        acceptability.acceptability_table,
        options=(LIMIT, JUDGE, *SERVER),
        table=_table,
    )
)
