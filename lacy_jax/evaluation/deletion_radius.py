"""What a deletion by likeness takes from a dense index: everything near a question, the deleted fact and its neighbours.

A fact is deleted by name where entries say whom they are about and what they state. Where they do not, the entries
nearest to the question can be deleted instead, all whose cosine to it is at least a radius: the geometric closure that the
audits of raeesiarya/HALOCoLMLM sweep. As there: only facts count that are answered while nothing is deleted (FULL); efficacy is the
share of the deleted ones that are then not answered, collateral the share of their neighbours that are not; the gap is (1 - efficacy)
+ collateral at the radius where it is least, for each fact. Entries are hidden while searching, the index is as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from lacy_jax.cascade.dense_index import SEARCHES, DenseIndex, Found
from lacy_jax.cascade.entries import context_of
from lacy_jax.cascade.fact_database import normal_name
from lacy_jax.cascade.partners.index import LEAST_SIMILARITY, value_for
from lacy_jax.cascade.stated import folded
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
from lacy_jax.evaluation.edits import states_at_once

RADII = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
NEIGHBOURS = {
    "same": "other facts of the same person",
    "near": "the facts of other people whose questions are most like it",
}
NEAR = 10
"""So many of the latter a fact."""
_LOOKED_AT, _DEPTH = 32, 256
"""A partner looks at so many entries; so many are found, that others move up where some are hidden."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A fact that an index is asked for.

    Attributes:
      person, value: the fact. text: ends before the space in front of the value.
    """

    person: str
    value: str
    text: str


class _Asked:
    """Questions with what an index finds for them, so that entries can be hidden from them."""

    def __init__(
        self,
        index: DenseIndex,
        questions: Sequence[Question],
        by: str,
        vectors: Float32[np.ndarray, "n dim"] | None,
    ):
        queries = [context_of(question.text) for question in questions]
        self.questions = questions
        self.vectors = index.encoder.encode(queries) if vectors is None else vectors
        self.least = -1.0 if SEARCHES[by].vectors == "head" else LEAST_SIMILARITY
        numbers, self.entries = zip(*index.entries(), strict=True)
        self.cosines = self.vectors @ index.vectors(numbers).T
        self.facts = [(normal_name(entry.title), folded(entry.value)) for entry in self.entries]
        places = {entry: at for at, entry in enumerate(self.entries)}
        self.found: list[list[tuple[int, Found]]] = [
            [(places[one.entry], one) for one in near]
            for near in index.search(queries, _DEPTH, by, self.vectors)
        ]
        nothing = np.zeros(len(self.entries), bool)
        self.answered = [self.right(at, nothing) for at in range(len(questions))]

    def right(self, at: int, hidden: Bool[np.ndarray, " entries"]) -> bool:
        """Whether a question is answered without the hidden entries."""
        question = self.questions[at]
        seen = [one for place, one in self.found[at] if not hidden[place]][:_LOOKED_AT]
        return states_at_once(value_for(question.text, seen, self.least), question.value)

    def named(self, at: int) -> Bool[np.ndarray, " entries"]:
        """The entries that state a question's fact, by name."""
        question = self.questions[at]
        fact = (normal_name(question.person), folded(question.value))
        return np.array([one == fact for one in self.facts])

    def neighbours(self, at: int) -> dict[str, list[int]]:
        """The answered questions about the same person, and the most similar ones about others."""
        own = self.questions[at].person
        alike = np.argsort(-(self.vectors @ self.vectors[at]), kind="stable").tolist()
        others = [other for other in alike if self.questions[other].person != own][:NEAR]
        same = [other for other, q in enumerate(self.questions) if q.person == own and other != at]
        return {
            "same": [other for other in same if self.answered[other]],
            "near": [other for other in others if self.answered[other]],
        }


def deletion_figures(
    index: DenseIndex,
    questions: Sequence[Question],
    targets: Iterable[int],
    by: str,
    vectors: Float32[np.ndarray, "n dim"] | None = None,
    radii: Sequence[float] = RADII,
) -> dict[str, Any]:
    """What deleting each of some facts does, by radius and by name, JSON-safe.

    Args:
      questions: facts of many people, the targets and what may be their neighbours.
      targets: which of them are deleted, one at a time.
      by: how the index is asked, one of `SEARCHES`. vectors: unit vectors of the questions; None = the encoder's.

    Returns:
      "answered": the share of all questions that are; "targets": how many of them are (only these count); "gap": the mean over
      targets of the least (1 - efficacy) + mean collateral; "curve": a row for each radius, and "named": one for deletion by
      name, with "efficacy", "entries" (mean number deleted), and for each of `NEIGHBOURS` the share lost, all with NAME_ci.
    """
    asked = _Asked(index, questions, by, vectors)
    chosen = [at for at in targets if asked.answered[at]]
    near = {at: asked.neighbours(at) for at in chosen}
    curve = [
        (radius, [_deleted(asked, near[at], at, asked.cosines[at] >= radius) for at in chosen])
        for radius in radii
    ]
    gaps = [
        min(1.0 - of[at]["efficacy"][0] + _collateral(of[at]) for _, of in curve) for at in range(len(chosen))
    ]
    return {
        "questions": len(questions),
        "answered": float(np.mean(asked.answered)) if questions else None,
        "targets": len(chosen),
        "gap": finite(np.mean(gaps)) if gaps else None,
        "curve": [{"radius": radius, **_means(of)} for radius, of in curve],
        "named": _means([_deleted(asked, near[at], at, asked.named(at)) for at in chosen]),
    }


_Counts = dict[str, tuple[float, float]]
"""Name -> (how often it happened, of how many)."""


def _deleted(
    asked: _Asked, near: dict[str, list[int]], at: int, hidden: Bool[np.ndarray, " entries"]
) -> _Counts:
    """What happens to one fact and to its neighbours."""
    counts = {"efficacy": (float(not asked.right(at, hidden)), 1.0), "entries": (float(hidden.sum()), 1.0)}
    for kind, others in near.items():
        counts[kind] = (float(sum(not asked.right(other, hidden) for other in others)), float(len(others)))
    return counts


def _collateral(counts: _Counts) -> float:
    lost, total = np.sum([counts[kind] for kind in NEIGHBOURS], axis=0)
    return float(lost / total) if total else 0.0


def _means(rows: Sequence[_Counts]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("efficacy", "entries", *NEIGHBOURS):
        pairs = np.array([row[name] for row in rows]).reshape(-1, 2)
        share = bootstrap_ratio(pairs[:, 0], pairs[:, 1])
        found |= {name: finite(share.estimate), f"{name}_ci": share.ends}
    return found
