"""What becomes of a fact that is deleted, put back or changed in the partner's database: does the cascade follow, and what does
the model still know by itself? On people of whom the right answer of every place is known (`edit_subjects`).

A place is a text cut before a fact. There the cascade calls if the gate is among the highest scores of validation text (as many
as the call budget), and then states the partner's answer; without a call or an answer the model writes on by itself. That is one
step of generation, asked at each fact, so that no earlier word decides whether a fact is reached.

Conditions, as in the audits of deletion of arXiv:2607.00605: `alone` is the model with CALL off (DEL-OFF: what it says is in its
parameters), `full` (FULL) has the database as it was, `deleted` (DEL-ON) is without every entry that states an edited fact, under
whatever spelling of the name; `restored` has the facts back, `changed` has others in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lacy_jax.cascade import Partner
from lacy_jax.cascade.fact_database import Row, normal_name
from lacy_jax.cascade.stated import folded
from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
from lacy_jax.evaluation.edit_subjects import Subject
from lacy_jax.formatting import percent

PLACES = {
    "own": "the edited fact, in a text of the corpus",
    "reworded": "the edited fact, in words that the corpus does not have",
    "same": "other facts of the same person",
    "others": "facts of people who are not edited",
}
FIRST_TOKENS = 16
"""The model's own answer is what it writes in so many tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A text cut before a fact.

    Attributes:
      kind: one of `PLACES`. person: whom the text is about. attribute: what it is about to state of them.
      text: it ends before the space in front of the value.
      old, new: the value in the corpus, and after the edit (the same where the fact is not edited).
    """

    kind: str
    person: str
    attribute: str
    text: str
    old: str
    new: str


def make_edits(people: Sequence[Subject], limit: int, seed: int = 0) -> tuple[list[Row], list[Place]]:
    """The edits, and the places to ask at: one attribute of every other person gets the value of somebody else.

    Args:
      limit: most people edited; 0 = every other one. The others are those not to be touched.

    Returns:
      The changed rows (person, attribute, new value), and the places.

    Raises:
      DataError: no fact can be edited.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(people)).tolist()
    half = min(limit or len(people), len(people) // 2)
    edits: list[Row] = []
    places: list[Place] = []
    for person, neighbour in zip(order[:half], order[half:], strict=False):
        own, other = people[person], people[neighbour]
        both = sorted(own.own.keys() & own.reworded.keys())
        if not both:
            continue
        attribute = both[int(rng.integers(len(both)))]
        values = {one.values[attribute] for one in people if attribute in one.values}
        pool = sorted(values - set(own.values.values()))
        if not pool:
            continue
        old, new = own.values[attribute], pool[int(rng.integers(len(pool)))]
        edits.append((own.name, attribute, new))
        places.append(Place("own", own.name, attribute, own.own[attribute], old, new))
        places.append(Place("reworded", own.name, attribute, own.reworded[attribute], old, new))
        for kind, subject in (("same", own), ("others", other)):
            for which, text in subject.own.items():
                if kind == "others" or which != attribute:
                    value = subject.values[which]
                    places.append(Place(kind, subject.name, which, text, value, value))
    if not edits:
        raise DataError("no fact to edit: too few people, or texts that share no attribute")
    return edits, places


def spelled_otherwise(rows: Sequence[Row]) -> list[Row]:
    """The same facts under other spellings of the name, all of which a deletion has to reach."""
    return [
        (name, attribute, value)
        for entity, attribute, value in rows
        for name in (entity.upper(), f"{entity.partition(' (')[0]} (person)")
    ]


def answers_of(
    places: Sequence[Place], alone: Sequence[str], calls: Sequence[bool], partner: Partner
) -> list[tuple[str, bool]]:
    """(what the cascade states, whether the partner said it) at each place."""
    asked = [place.text for place, called in zip(places, calls, strict=True) if called]
    given = iter(partner.complete(asked) if asked else [])
    found = []
    for own, called in zip(alone, calls, strict=True):
        answer = next(given) if called else ""
        found.append((answer, True) if answer else (own, False))
    return found


def states_at_once(answer: str, value: str) -> bool:
    """Whether an answer begins with a value, as whole words; case and accents do not matter."""
    said, wanted = folded(answer.strip()), folded(value.strip())
    return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()


def edit_figures(
    places: Sequence[Place], answers: Mapping[str, Sequence[tuple[str, bool]]]
) -> dict[str, Any]:
    """Shares of the places, JSON-safe: {condition: {kind: {"places", "partner", and NAME, NAME_ci for NAME in old, new, kept}}}.

    "old" and "new" are the shares that state the value of the corpus and of the edit, "kept" is the share where the same is said
    as under `full`, each with a 95 % bootstrap interval over people; "partner" is the share that the partner answered.

    Args:
      answers: {condition: `answers_of`, or (the model's answer, False), for each place}; `full` is one of them.
    """
    found: dict[str, Any] = {}
    for condition, said in answers.items():
        found[condition] = {}
        for kind in PLACES:
            chosen = [at for at, place in enumerate(places) if place.kind == kind]
            people = [places[at].person for at in chosen]
            stated = {
                "old": [states_at_once(said[at][0], places[at].old) for at in chosen],
                "new": [states_at_once(said[at][0], places[at].new) for at in chosen],
                "kept": [said[at] == answers["full"][at] for at in chosen],
            }
            shares: dict[str, Any] = {"places": len(chosen)}
            shares["partner"] = sum(said[at][1] for at in chosen) / len(chosen) if chosen else None
            for which, events in stated.items():
                shares |= _share(which, people, events)
            found[condition][kind] = shares
    return found


def _share(
    name: str, people: Sequence[str], events: Sequence[bool], among: Sequence[bool] = ()
) -> dict[str, Any]:
    """{name: share of the places with the event, name_ci: its interval}; `among`: of these places only."""
    numbers = {person: at for at, person in enumerate(dict.fromkeys(people))}
    counted, happened = np.zeros((2, len(numbers)))
    for person, event, counts in zip(people, events, among or [True] * len(people), strict=True):
        counted[numbers[person]] += counts
        happened[numbers[person]] += event and counts
    share = bootstrap_ratio(happened, counted)
    return {name: finite(share.estimate), f"{name}_ci": share.ends}


AUDIT = {
    "correct": "FULL states the fact",
    "survival": "of those: DEL-ON states it",
    "leakage": "DEL-OFF states it: L, in the parameters",
    "leakage_given_full": "of those that FULL states: L",
    "retrieval": "DEL-ON states it and DEL-OFF does not: R, by the database",
    "interference": "DEL-OFF states it and DEL-ON does not",
    "artifact": "DEL-ON states it and no entry left supports it",
}
"""What `audit_figures` counts, in the terms of arXiv:2607.00605 and its code."""


def audit_figures(
    places: Sequence[Place], answers: Mapping[str, Sequence[tuple[str, bool]]], left: Sequence[Row]
) -> dict[str, Any]:
    """Each deleted fact under FULL, DEL-ON and DEL-OFF: {"own", "reworded": {"facts", and each of `AUDIT` with NAME_ci}}.

    Args:
      answers: as of `edit_figures`, with `full`, `deleted` and `alone`.
      left: the rows of the database after the deletion. A row supports a fact if it gives that person that value, whatever the
        spelling of the name and the attribute.
    """
    support = {(normal_name(entity), folded(value)) for entity, _, value in left}
    found: dict[str, Any] = {}
    for kind in ("own", "reworded"):
        chosen = [at for at, place in enumerate(places) if place.kind == kind]
        people = [places[at].person for at in chosen]
        full, on, off = (
            [states_at_once(answers[condition][at][0], places[at].old) for at in chosen]
            for condition in ("full", "deleted", "alone")
        )
        bare = [(normal_name(places[at].person), folded(places[at].old)) not in support for at in chosen]
        shares = (
            _share("correct", people, full)
            | _share("survival", people, on, full)
            | _share("leakage", people, off)
            | _share("leakage_given_full", people, off, full)
            | _share("retrieval", people, [a and not b for a, b in zip(on, off, strict=True)])
            | _share("interference", people, [b and not a for a, b in zip(on, off, strict=True)])
            | _share("artifact", people, [a and b for a, b in zip(on, bare, strict=True)])
        )
        found[kind] = {"facts": len(chosen), "unsupported": sum(bare), **shares}
    return found


COLUMNS: dict[str, tuple[str, str, str]] = {
    "follows": ("changed", "own", "new"),
    "follows, new words": ("changed", "reworded", "new"),
    "same person kept": ("changed", "same", "kept"),
    "others kept": ("changed", "others", "kept"),
    "knew before": ("full", "own", "old"),
    "deleted, still stated": ("deleted", "own", "old"),
    "put back": ("restored", "own", "old"),
    "model alone knows": ("alone", "own", "old"),
    "alone, new words": ("alone", "reworded", "old"),
}
"""The figures that a table shows: name -> (condition, kind of place, which value)."""


def edit_table(figures: Mapping[str, Any]) -> str:
    """The figures as text."""
    head = (
        f"{figures['edits']} facts edited; the gate {figures['gate']} calls at {percent(figures['call_share'])} of all places"
        f" (call budget {percent(figures['budget'])} of validation text)"
    )
    lines = [head]
    for name, (condition, kind, which) in COLUMNS.items():
        row = figures["shares"][condition][kind]
        low, high = row[f"{which}_ci"] or (None, None)
        interval = "" if low is None else f"  [{percent(low)}, {percent(high)}]"
        lines.append(f"{name:24}{percent(row[which]):>9}{interval}  of {row['places']}: {PLACES[kind]}")
    audit = figures["audit"]["own"]
    lines.append(f"audit of {audit['facts']} deleted facts ({audit['unsupported']} without any entry left):")
    lines += [f"  {name:22}{percent(audit[name]):>9}  {about}" for name, about in AUDIT.items()]
    return "\n".join(lines)
