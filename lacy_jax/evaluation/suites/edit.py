"""Suite edit: after a fact is deleted, put back or changed in the database, does the cascade follow, and what does the model still
know?"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from lacy_jax.cascade import DatabasePartner, FactDatabase, Prompt, generate
from lacy_jax.cascade.fact_database import edit_facts
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation import edits, forget_retain
from lacy_jax.evaluation.edit_subjects import subjects_of
from lacy_jax.evaluation.run_texts import SAMPLING_SEED, gate_calibration, gate_of
from lacy_jax.evaluation.suites.suite import (
    FACTS,
    LIMIT,
    SUITES,
    Figures,
    Reported,
    Request,
    Suite,
    nested,
    share_of,
)
from lacy_jax.formatting import Table, with_interval
from lacy_jax.objectives import GATES
from lacy_jax.objectives.scoring import score_documents, scorer
from lacy_jax.training.run import Run


def _run(request: Request) -> Figures:
    run, config = request.run()
    gate, budget = gate_of(run, config), config.generate.budget
    if not GATES[gate].formula:
        raise ConfigError(
            f"config.generate.gate = {gate!r}: the suite edit needs a gate with scores of its own"
        )
    scores = gate_calibration(run, config, gate)
    if scores is None:
        raise ConfigError(
            "the suite edit needs validation text, by which the gate is set: restore the run's dataset"
        )
    subjects = subjects_of(config, request[FACTS])
    changes, places = edits.make_edits(subjects.read, request[LIMIT], SAMPLING_SEED)
    room = run.model.cfg.max_seq_len - edits.FIRST_TOKENS - 1

    def fits(one: edits.Place | forget_retain.Question) -> bool:
        return len(run.tokenizer.encode(one.text)) < room  # Longer ones cannot be asked.

    places = list(filter(fits, places))
    texts = [place.text for place in places]
    own = generate(
        run.model,
        run.tokenizer,
        [Prompt(text, f"place-{at}") for at, text in enumerate(texts)],
        max_new_tokens=edits.FIRST_TOKENS,
        batch_size=config.generate.batch_size,
    )
    alone = [written.text for written in own]
    # A score of them, not one between two: many are -inf, where no call may be made.
    calls = _scores_after(run, gate, texts) >= np.quantile(scores, 1.0 - budget, method="lower")
    answers: dict[str, Sequence[tuple[str, bool]]] = {"alone": [(answer, False) for answer in alone]}
    values = {subject.name: subject.values for subject in subjects.read}
    old = [(name, attribute, values[name][attribute]) for name, attribute, _ in changes]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "facts.db"
        rows = [*subjects.rows, *edits.spelled_otherwise(old)]
        partner = DatabasePartner(FactDatabase.build(path, rows, subjects.texts))
        try:
            answers["full"] = edits.answers_of(places, alone, calls, partner)
            counts = edit_facts(path, delete=old)
            answers["deleted"] = edits.answers_of(places, alone, calls, partner)
            left = partner.database.rows()
            counts |= {"added": edit_facts(path, add=old)["added"]}
            answers["restored"] = edits.answers_of(places, alone, calls, partner)
            counts |= {"changed": edit_facts(path, change=changes)["changed"]}
            answers["changed"] = edits.answers_of(places, alone, calls, partner)
        finally:
            partner.close()
    shares = edits.edit_figures(places, answers)
    questions = list(filter(fits, forget_retain.make_questions(places, subjects, SAMPLING_SEED)))
    kept = [shares["alone"][kind] for kind in ("same", "others") if shares["alone"][kind]["places"]]
    stated = sum(row["old"] * row["places"] for row in kept) / max(sum(row["places"] for row in kept), 1)
    return {
        "policy": run.config.objective.policy,
        "step": run.step,
        "gate": gate,
        "budget": budget,
        "call_share": float(np.mean(calls)),
        "edits": len(changes),
        "rows": counts,
        "shares": shares,
        "audit": edits.audit_figures(places, answers, left),
        "tofu": forget_retain.forget_retain_figures(
            questions, forget_retain.value_probabilities(run, questions), stated if kept else None
        ),
    }


def _text(figures: Figures) -> str:
    return f"{edits.edit_table(figures)}\n{forget_retain.forget_retain_text(figures['tofu'])}"


def _scores_after(run: Run, gate: str, texts: Sequence[str]) -> np.ndarray:
    """The gate's score at the end of each text, float32 [n]."""
    tokenizer = run.tokenizer
    # A target is needed, and any will do: no gate looks at it.
    documents = [np.append(tokenizer.with_prefix(tokenizer.encode(text)), 0) for text in texts]
    found = score_documents(
        scorer(run.model, run.config.objective.chunk), documents, run.model.cfg.max_seq_len, title="edit"
    )
    noise = np.random.default_rng(SAMPLING_SEED).random(len(texts))
    scores = (
        GATES[gate].score(one, np.full(one.lse.shape, drawn)) for one, drawn in zip(found, noise, strict=True)
    )
    return np.array([score[-1] for score in scores], np.float32)


def _table(reported: Reported) -> Table:
    rows = []
    for name, figures in reported:
        cells = [nested(figures, "shares", condition, kind) for condition, kind, _ in edits.COLUMNS.values()]
        shown = [
            with_interval(cell.get(which), cell.get(f"{which}_ci")) if isinstance(cell, Mapping) else "–"
            for cell, (_, _, which) in zip(cells, edits.COLUMNS.values(), strict=True)
        ]
        rows.append((name, *shown))
    note = (
        "Shares of places where a fact of the world is due. The fact is deleted from the database, put back, then changed, while the run reads it; kept: "
        "where the same is said as before. Alone: CALL off, so what is stated is stored in the model. 95 % intervals over people."
    )
    return Table("Edited and deleted facts", ("run", *edits.COLUMNS), tuple(rows), note)


SUITES.add(
    Suite(
        "edit",
        "a fact is deleted, put back, changed in the database: does the cascade follow, and what does the model still know?",
        _run,
        _text,
        options=(LIMIT, FACTS),
        table=_table,
        comparable=lambda f: (f.get("budget"), f.get("edits")),
        headline=("edits followed", *share_of("shares", "changed", "own", "new")),
    )
)
