"""Fact leakage (arXiv:2602.12005 §5): facts that a model states by itself although it should have delegated them.

CALL is off: there is no partner, and the CALL logit is ignored. The model continues a question or the beginning of a
sentence greedily, and leaks a fact if one of the answers is in its first tokens. Lower is better, for the same quality of
language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from lacy_jax.cascade import Generation, Prompt
from lacy_jax.cascade.stated import states
from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
from lacy_jax.evaluation.kept import Kept, key_of
from lacy_jax.evaluation.leakage_questions import Question
from lacy_jax.formatting import percent

FIRST_TOKENS = 16
"""An answer counts if it is in so many generated tokens."""
COPIED = "answer in the prompt"
AT_ONCE = 256
"""Questions answered between two saves."""

Write = Callable[[Sequence[Prompt], int], list[Generation]]
"""(prompts, most new tokens) -> texts written without a partner."""


def ask(
    questions: Sequence[Question],
    write: Write,
    *,
    out: epath.PathLike,
    about: Any = "",
) -> list[str]:
    """The model's answer to each question; answers are stored beside `out`, so that an interrupted run can go on.

    Args:
      write: makes the model write alone.
      about: what else the answers depend on (run, step); JSON-safe.

    Raises:
      DataError: there are no questions.
    """
    if not questions:
        raise DataError("no questions to ask about leakage: the data set is empty")
    kept = Kept(out)
    keys = [key_of(question.prompt, FIRST_TOKENS, about) for question in questions]
    open_ = {k: question for k, question in zip(keys, questions, strict=True) if kept.get(k) is None}
    for start in range(0, len(open_), AT_ONCE):
        part = list(open_.items())[start : start + AT_ONCE]
        texts = write([Prompt(question.prompt, question.id) for _, question in part], FIRST_TOKENS)
        for (key, _), text in zip(part, texts, strict=True):
            kept.put(key, {"text": text.text})
    records = [kept.get(key) or {} for key in keys]
    kept.done()
    return [str(record["text"]) for record in records]


def leakage_figures(
    questions: Sequence[Question], answers: Sequence[str], seen: set[str] | None = None
) -> dict[str, Any]:
    """Shares of answered questions, JSON-safe.

    Args:
      seen: subjects that have an article in the training text; None = unknown.

    Returns:
      "first_tokens"; "all" and "groups": {"popqa qa", "trex cloze", ... and, if `seen` is given, "popqa qa seen",
      "... unseen": {"questions", "subjects", "leaked", "share", "share_ci"}}, with a 95 % bootstrap interval over
      subjects; "by_relation": {"popqa occupation": {"questions", "share"}}; "by_question": {subject: {question id: 0 or
      1}}, for comparisons paired over common questions. Questions whose prompt contains the answer measure copying, not
      stored facts: they are left out everywhere and have a group of their own, "popqa qa, answer in the prompt".

    Raises:
      ValueError: the numbers of questions and answers differ.
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions but {len(answers)} answers")
    leaked = np.array([states(a, q.answers) for q, a in zip(questions, answers, strict=True)], bool)
    groups: dict[str, list[int]] = {}
    relations: dict[str, list[int]] = {}
    by_question: dict[str, dict[str, int]] = {}
    copied = [states(question.prompt, question.answers) for question in questions]
    for index, question in enumerate(questions):
        if copied[index]:
            groups.setdefault(f"{question.source} {question.form}, {COPIED}", []).append(index)
            continue
        by_question.setdefault(question.subject, {})[question.id] = int(leaked[index])
        name = f"{question.source} {question.form}"
        groups.setdefault(name, []).append(index)
        if seen is not None:
            known = "seen" if question.subject in seen else "unseen"
            groups.setdefault(f"{name} {known}", []).append(index)
        relations.setdefault(f"{question.source} {question.relation}", []).append(index)
    return {
        "first_tokens": FIRST_TOKENS,
        "all": _share(questions, leaked, [index for index, known in enumerate(copied) if not known]),
        "groups": {name: _share(questions, leaked, groups[name]) for name in sorted(groups)},
        "by_relation": {
            name: {"questions": len(rows), "share": float(leaked[rows].mean())}
            for name, rows in sorted(relations.items())
        },
        "by_question": by_question,
    }


def leakage_table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"answers within the first {result['first_tokens']} tokens, CALL off (lower = less stored)"]
    for name, row in [("all", result["all"]), *result["groups"].items()]:
        low, high = row["share_ci"] or (None, None)
        interval = "" if low is None else f"  [{percent(low)}, {percent(high)}]"
        lines.append(f"{name:24}{percent(row['share']):>9}{interval}  of {row['questions']} questions")
    return "\n".join(lines)


def _share(questions: Sequence[Question], leaked: np.ndarray, rows: Sequence[int]) -> dict[str, Any]:
    subjects = {name: i for i, name in enumerate(dict.fromkeys(questions[i].subject for i in rows))}
    hit, asked = np.zeros(len(subjects)), np.zeros(len(subjects))
    for index in rows:
        hit[subjects[questions[index].subject]] += leaked[index]
        asked[subjects[questions[index].subject]] += 1
    share = bootstrap_ratio(hit, asked)
    return {
        "questions": len(rows),
        "subjects": len(subjects),
        "leaked": int(hit.sum()),
        "share": finite(share.estimate),
        "share_ci": share.ends,
    }
