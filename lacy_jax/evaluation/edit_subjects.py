"""Whom the suite edit asks about: people with the facts that texts state of them, from the synthetic world or from a table of facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import ml_collections

from lacy_jax.cascade.fact_database import Row, normal_name, read_facts
from lacy_jax.cascade.stated import Said
from lacy_jax.corpus import Document, World, open_corpus, world_of
from lacy_jax.dataset.shard import choose_split
from lacy_jax.errors import ConfigError, DataError

IN_OTHER_WORDS = {
    "birth_date": "{} was born on",
    "birth_place": "{} was born in",
    "death_date": "{} died on",
    "death_place": "{} died in",
    "alma_mater": "{} studied at",
    "spouse": "{} was married to",
    "occupation": "{} worked as a",
    "party": "{} was a member of the",
}
"""How a fact of a table is asked for in words of our own. Only facts of these attributes are edited."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One person.

    Attributes:
      name: the title of their text.
      values: attribute -> value, of all their facts.
      own: attribute -> the text of the corpus up to where it states the value; without the space before it.
      reworded: the same in words that the corpus does not have.
    """

    name: str
    values: Mapping[str, str]
    own: Mapping[str, str]
    reworded: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Subjects:
    """Everybody whom the suite asks about.

    Attributes:
      read: people whom texts of the training are about. unread: others, whom none is about.
      false_values: attribute -> values of people whom none is about.
      rows: the facts of all of `read`, for a database. texts: for its cues.
    """

    read: Sequence[Subject]
    unread: Sequence[Subject]
    false_values: Mapping[str, Sequence[str]]
    rows: Sequence[Row]
    texts: Iterable[Document]


def subjects_of(config: ml_collections.ConfigDict, facts: str) -> Subjects:
    """The people of a run's corpus, by a table of facts if one is named, else by the table of its world.

    Args:
      config: of the run. facts: fact database, JSONL or LMLM's JSON; "" = the world.

    Raises:
      ConfigError: neither. DataError: the table or the corpus cannot be read, or they have nobody in common.
    """
    if facts:
        return _of_table(config, facts)
    world = world_of(config.corpus)
    if world is None:
        raise ConfigError(
            f"config.corpus.kind = {config.corpus.kind!r}: the suite edit needs 'world', where every answer is known, "
            "or --facts=FILE with facts about the people of the corpus"
        )
    # The first people of a larger world are the same; the others are drawn alike.
    larger = World(3 * world.size, world.seed)

    def subject(at: int) -> Subject:
        own, other = larger.text(at, 0), larger.text(at, config.corpus.texts_per_person)
        return Subject(own.title, larger.people[at].attributes, _before(own), _before(other))

    return Subjects(
        [subject(at) for at in range(world.size)],
        [subject(at) for at in range(world.size, 2 * world.size)],
        _values(person.attributes for person in larger.people[2 * world.size :]),
        list(world.table()),
        open_corpus(config.corpus),
    )


def _before(document: Document) -> dict[str, str]:
    return {fact.attribute: document.text[: fact.start].rstrip() for fact in document.facts}


def _values(people: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for attributes in people:
        for attribute, value in attributes.items():
            found.setdefault(attribute, set()).add(value)
    return {attribute: sorted(values) for attribute, values in found.items()}


def _of_table(config: ml_collections.ConfigDict, facts: str) -> Subjects:
    known: dict[str, list[Row]] = {}
    for row in read_facts(facts):
        known.setdefault(normal_name(row[0]), []).append(row)
    split: dict[str, list[Subject]] = {"train": [], "valid": []}
    rows: list[Row] = []
    texts = []
    for document in open_corpus(config.corpus):
        about = known.pop(
            normal_name(document.title), []
        )  # Another text of that name may be about somebody else.
        own = dict(_stated(document.text, about))
        if not own:
            continue
        values: dict[str, str] = {}
        for _, attribute, value in about:
            values.setdefault(attribute, value)  # The first is stated first.
        which = choose_split(document.id, config.dataset.valid_fraction)
        name = document.title.partition(" (")[0]
        asked = {a: words.format(name) for a, words in IN_OTHER_WORDS.items() if a in own}
        split[which].append(Subject(document.title, values, own, asked))
        if which == "train":
            rows += about
            texts.append(document)
    if not split["train"]:
        raise DataError(
            f"--facts={facts}: no text of the corpus states a fact of them; titles are their names"
        )
    return Subjects(
        split["train"], split["valid"], _values(subject.values for subject in split["valid"]), rows, texts
    )


def _stated(text: str, about: Sequence[Row]) -> Iterable[tuple[str, str]]:
    """(attribute, the text before) of the facts that a text states letter by letter, each where it does so first; a value inside
    another, as a year in a date, belongs to the longer one."""
    said = Said(text)
    first: dict[str, str] = {}
    for _, attribute, value in about:
        first.setdefault(attribute, value)
    places = [
        (start, -end, attribute)
        for attribute, value in first.items()
        for start, end in said.wholes(value)
        if text[start:end] == value and text[:start].strip()
    ]
    taken, done = 0, set[str]()
    for start, negative_end, attribute in sorted(places):
        if start >= taken and attribute not in done:
            yield attribute, text[:start].rstrip()
            done.add(attribute)
            taken = -negative_end
