"""Questions about facts that a model should delegate: PopQA, and T-REx facts with ParaRel patterns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import re
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.cascade.fact_database import normal_name
from lacy_jax.errors import DataError, one_line
from lacy_jax.json_lines import objects, split_lines

_CLOZE = {"occupation": "{} worked as a", "place of birth": "{} was born in the city of"}
"""Beginnings of sentences for PopQA's relations."""
_CLOZE_OTHERWISE = "The {relation} of {subject} is"


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about one fact, in one form.

    Attributes:
      id: unique.
      source: "popqa" or "trex".
      form: "qa" (question and "Answer:") or "cloze" (the beginning of a sentence).
      subject, relation: the fact asked for.
      prompt: the text that the model continues.
      answers: the right answer and its aliases.
    """

    id: str
    source: str
    form: str
    subject: str
    relation: str
    prompt: str
    answers: tuple[str, ...]


def read_popqa(path: epath.PathLike) -> list[Question]:
    """Both forms of every PopQA item: objects with `question`, `subj`, `prop`, `possible_answers` (a JSON list in a string).

    Raises:
      DataError: the file is missing or has another format.
    """
    questions = []
    items = files.read_json(path, "PopQA")
    if not items:
        raise DataError(f"PopQA {path}: no questions in it")
    for number, item in enumerate(items if isinstance(items, list) else [None]):
        try:
            subject, relation, question = (_text(item, name) for name in ("subj", "prop", "question"))
            answers = item["possible_answers"]
            answers = json.loads(answers) if isinstance(answers, str) else answers
            if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
                raise ValueError("no list of answers")
            name = f"popqa-{item.get('id', number)}"
            begun = _CLOZE.get(relation, "").format(subject) or _CLOZE_OTHERWISE.format(
                relation=relation, subject=subject
            )
            asked = f"Question: {question}\nAnswer:"
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"PopQA {path}: item {number} is not a PopQA item ({error})") from None
        for form, prompt in (("qa", asked), ("cloze", begun)):
            questions.append(
                Question(f"{name}-{form}", "popqa", form, subject, relation, prompt, tuple(answers))
            )
    return questions


def read_trex(path: epath.PathLike, per_relation: int = 0) -> list[Question]:
    """T-REx facts as beginnings of sentences, from the relation's first ParaRel pattern that ends with the object.

    Args:
      path: tar archive (also .xz) with lama_trex/P*.jsonl (`sub_label`, `obj_label`, `uuid`) and
        pararel_patterns/graphs_json_P*.jsonl (`pattern` with [X] and [Y]).
      per_relation: number of facts of each relation, 0 = all. They are chosen by hash, so the choice is the same for
        every run, and a smaller number gives a part of a larger one.

    Raises:
      DataError: the archive is missing, damaged, or without facts.
    """
    facts: dict[str, list[dict[str, Any]]] = {}
    patterns: dict[str, list[dict[str, Any]]] = {}
    try:
        with tarfile.open(str(path)) as archive:
            for member in archive:
                match = re.search(r"(lama_trex/|pararel_patterns/graphs_json_)(P\d+)\.jsonl$", member.name)
                file = archive.extractfile(member) if match else None
                if match is None or file is None:
                    continue
                rows = [row for _, row in objects(split_lines(file.read()), member.name)]
                (facts if match[1] == "lama_trex/" else patterns)[match[2]] = rows
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise DataError(f"T-REx {path}: {one_line(error)}") from None
    questions = []
    for relation in sorted(facts, key=lambda name: int(name[1:])):
        begun = _open_pattern(patterns.get(relation, ()))
        rows = [
            row
            for row in facts[relation]
            if _is_text(row.get("sub_label")) and _is_text(row.get("obj_label"))
        ]
        if begun is None:
            continue
        own = []
        for row in rows:
            subject, answer = row["sub_label"], row["obj_label"]
            name = f"trex-{relation}-{row.get('uuid') or subject}"
            prompt = begun.replace("[X]", subject)
            own.append(Question(name, "trex", "cloze", subject, relation, prompt, (answer,)))
        order = sorted(own, key=lambda question: hashlib.sha256(question.id.encode()).digest())
        drawn = {question.id for question in order[: per_relation or None]}
        questions += [question for question in own if question.id in drawn]
    if not questions:
        raise DataError(f"T-REx {path}: no facts with a pattern that ends with the object")
    return questions


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text(item: dict[str, Any], name: str) -> str:
    if not _is_text(item[name]):
        raise ValueError(f"`{name}` is no text")
    return str(item[name])


def seen_subjects(questions: Iterable[Question], titles: Iterable[str]) -> set[str]:
    """Subjects with an article of their name among `titles`."""
    known = {normal_name(title) for title in titles}
    return {question.subject for question in questions if normal_name(question.subject) in known}


def _open_pattern(patterns: Sequence[dict[str, Any]]) -> str | None:
    """The first pattern that ends with the object, cut before it."""
    for row in patterns:
        match = re.fullmatch(r"(.*\[X\].*?)\s*\[Y\]\s*\.?\s*", str(row.get("pattern", "")))
        if match:
            return match[1]
    return None
