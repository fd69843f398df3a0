"""What becomes of a fact that is changed or deleted in the partner's database: does the cascade follow, and what does the
model still know by itself? On the synthetic world, where the right answer of every place is known.

A place is a text cut before a fact. There the cascade calls if the gate is among the highest scores of validation text (as many
as the call budget), and then states the partner's answer; without a call or an answer the model writes on by itself. That is one
step of generation, asked at each fact, so that no earlier word decides whether a fact is reached.

Conditions, as in the audits of deletion of arXiv:2607.00605: `alone` is the model with CALL off (DEL-OFF: what it says is in its
parameters), `full` has the database as it was, `changed` and `deleted` (DEL-ON) have it edited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lacy_jax.cascade import Partner
from lacy_jax.cascade.fact_database import Row
from lacy_jax.cascade.stated import folded
from lacy_jax.corpus import World
from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
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
      kind: one of `PLACES`. person: whom the text is about.
      text: it ends before the space in front of the value.
      old, new: the value in the corpus, and after the edit (the same where the fact is not edited).
    """

    kind: str
    person: str
    text: str
    old: str
    new: str


def make_edits(
    world: World, texts_per_person: int, limit: int, seed: int = 0
) -> tuple[list[Row], list[Place]]:
    """The edits, and the places to ask at: one attribute of every other person gets the value of somebody else.

    Args:
      texts_per_person: biographies of each person in the corpus; the next is in new words.
      limit: most people edited; 0 = every other one. The others are those not to be touched.

    Returns:
      The changed rows (person, attribute, new value), and the places.

    Raises:
      DataError: the world is too small: no fact can be edited.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(world.size).tolist()
    half = min(limit or world.size, world.size // 2)
    edits: list[Row] = []
    places: list[Place] = []
    for index, neighbour in zip(order[:half], order[half:], strict=False):
        own, other = world.text(index, 0), world.text(index, texts_per_person)
        both = sorted({fact.attribute for fact in own.facts} & {fact.attribute for fact in other.facts})
        values = world.people[index].attributes
        if not both:
            continue
        attribute = both[int(rng.integers(len(both)))]
        pool = sorted({person.attributes[attribute] for person in world.people} - set(values.values()))
        if not pool:
            continue
        new = pool[int(rng.integers(len(pool)))]
        edits.append((own.title, attribute, new))
        for kind, document in (("own", own), ("reworded", other), ("others", world.text(neighbour, 0))):
            for fact in document.facts:
                text = document.text[: fact.start].rstrip()
                edited = kind != "others" and fact.attribute == attribute
                if edited:
                    places.append(Place(kind, own.title, text, fact.value, new))
                elif kind == "own":
                    places.append(Place("same", own.title, text, fact.value, fact.value))
                elif kind == "others":
                    places.append(Place("others", document.title, text, fact.value, fact.value))
    if not edits:
        raise DataError("no fact to edit: the world has too few people, or texts that share no attribute")
    return edits, places


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
    """Shares of the places, JSON-safe: {condition: {kind: {"places", "old", "new", "partner", "old_ci", "new_ci"}}}.

    "old" and "new" are the shares that state the value of the corpus and of the edit, with 95 % bootstrap intervals over people;
    "partner" is the share that the partner answered.

    Args:
      answers: {condition: `answers_of`, or (the model's answer, False), for each place}.
    """
    return {
        condition: {
            kind: _shares([(p, a) for p, a in zip(places, found, strict=True) if p.kind == kind])
            for kind in PLACES
        }
        for condition, found in answers.items()
    }


def _shares(answered: Sequence[tuple[Place, tuple[str, bool]]]) -> dict[str, Any]:
    people = {name: at for at, name in enumerate(dict.fromkeys(place.person for place, _ in answered))}
    asked = np.zeros(len(people))
    stated = {"old": np.zeros(len(people)), "new": np.zeros(len(people))}
    for place, (answer, _) in answered:
        asked[people[place.person]] += 1
        for which, value in (("old", place.old), ("new", place.new)):
            stated[which][people[place.person]] += states_at_once(answer, value)
    figures: dict[str, Any] = {"places": len(answered)}
    figures["partner"] = sum(by for _, (_, by) in answered) / len(answered) if answered else None
    for which, counts in stated.items():
        share = bootstrap_ratio(counts, asked)
        figures |= {which: finite(share.estimate), f"{which}_ci": share.ends}
    return figures


COLUMNS: dict[str, tuple[str, str, str]] = {
    "follows": ("changed", "own", "new"),
    "follows, new words": ("changed", "reworded", "new"),
    "same person kept": ("changed", "same", "old"),
    "others kept": ("changed", "others", "old"),
    "knew before": ("full", "own", "old"),
    "deleted, still stated": ("deleted", "own", "old"),
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
    return "\n".join(lines)
