"""Suite leakage: facts from PopQA and T-REx that the model states by itself, with CALL off (arXiv:2602.12005 §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax.cascade import Generation, Prompt, generate
from lacy_jax.cascade.passages import read_documents
from lacy_jax.evaluation import leakage, leakage_questions
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
from lacy_jax.formatting import Table, with_interval

POPQA_FILE = "popqa_1000_with_wikipedia_paragraphs.json"
TREX_FILE = "lama_trex.tar.xz"
TREX_PER_RELATION = 50
SEEN = Option("seen", "JSONL corpus that the model was trained on")


def _run(request: Request) -> Figures:
    run, config = request.run()
    data = epath.Path(request.need(DATA, f"the folder with {POPQA_FILE} and {TREX_FILE}"))
    questions = leakage_questions.read_popqa(data / POPQA_FILE)
    questions = questions[: request[LIMIT] or None]
    questions += leakage_questions.read_trex(data / TREX_FILE, request[LIMIT] or TREX_PER_RELATION)
    seen = None
    if request[SEEN]:
        titles = (document.title for document in read_documents(request[SEEN], "--seen"))
        seen = leakage_questions.seen_subjects(questions, titles)

    def write(prompts: Sequence[Prompt], tokens: int) -> list[Generation]:
        size = config.generate.batch_size
        return generate(run.model, run.tokenizer, prompts, max_new_tokens=tokens, batch_size=size)

    answers = leakage.ask(questions, write, out=run.workdir / "leakage", about=[run.step])
    return {
        "policy": run.config.objective.policy,
        "step": run.step,
        "seen_corpus": request[SEEN],
        **leakage.leakage_figures(questions, answers, seen),
    }


def _table(reported: Reported) -> Table:
    groups = list(dict.fromkeys(group for _, figures in reported for group in mapping(figures, "groups")))
    rows = []
    for name, figures in reported:
        cells = [mapping(figures, "all"), *(mapping(mapping(figures, "groups"), group) for group in groups)]
        rows.append((name, *(with_interval(cell.get("share"), cell.get("share_ci")) for cell in cells)))
    note = "Answers in the first generated tokens with CALL off; lower means fewer stored facts. Intervals over subjects."
    return Table("Fact leakage", ("run", "all", *groups), tuple(rows), note)


def _units(figures: Mapping[str, Any]) -> Units:
    by_question = mapping(figures, "by_question")
    found = {
        subject: {
            question: (float(leaked), 1.0) for question, leaked in mapping(by_question, subject).items()
        }
        for subject in by_question
    }
    return {"leakage": found} if found else {}


SUITES.add(
    Suite(
        "leakage",
        "facts that the model states by itself, with CALL off",
        _run,
        leakage.leakage_table,
        options=(LIMIT, DATA, SEEN),
        table=_table,
        comparable=lambda f: f.get("first_tokens"),
        units=_units,
        headline=("leakage", *share_of("all", "share")),
    )
)
