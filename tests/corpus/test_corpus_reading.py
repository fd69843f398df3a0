"""The world reads texts back: statements, open slots, continuations, also of texts a model wrote."""

from __future__ import annotations

import itertools
import re

import pytest

from lacy_jax.corpus import World
from lacy_jax.corpus.grammar import parse_template
from lacy_jax.corpus.templates import ATTRIBUTES, FACT_SENTENCES, FILLERS, LEADS


@pytest.fixture(scope="module")
def world():
    return World(3000, seed=1)


def test_statements_of_thousands_of_texts_are_their_facts(world):
    for i, variant in itertools.product(range(1000), range(2)):
        document = world.text(i, variant)
        found = world.statements(document.text)
        assert [(s.start, s.end, s.subject, s.attribute, s.stated) for s in found] == [
            (f.start, f.end, f.subject, f.attribute, f.value) for f in document.facts
        ], document.text
        assert all(s.true for s in found)


def test_completion_at_every_character_of_a_text(world):
    # The reference is the text itself: from the space before a value to its last character but one the rest
    # of the value is due, elsewhere nothing.
    for i in range(15):
        document = world.text(i, 4)
        due = {}
        for fact in document.facts:
            for k in range(fact.start - 1, fact.end):
                due[k] = document.text[k : fact.end]
        for k in range(len(document.text) + 1):
            assert world.complete(document.text[:k]) == due.get(k), document.text[:k]


def test_another_persons_values_are_false(world):
    for i in range(80):
        document, other = world.text(i), world.people[i + 1]
        for fact in document.facts:
            wrong = other.attributes[fact.attribute]
            if wrong == fact.value:
                continue
            text = document.text[: fact.start] + wrong + document.text[fact.end :]
            judged = {s.attribute: s for s in world.statements(text)}
            assert len(judged) == len(document.facts)
            assert judged[fact.attribute].stated == wrong
            assert [a for a, s in judged.items() if not s.true] == [fact.attribute]


def _about(world, sentence):
    """A text about person 0 whose second sentence is `sentence`."""
    return f"{world.people[0].name} is remembered by friends as a proud weaver. {sentence}"


def test_values_no_pool_holds_are_stated_and_false(world):
    cases = {
        "She was born on 31 Junely 19xx in Nowhere-on-Sea.": ["31 Junely 19xx", "Nowhere-on-Sea"],
        "Foo studied the art of juggling knives at Harvard.": ["the art of juggling knives", "Harvard"],
        "He glimmeringly married ohn.": ["ohn"],
        "They wrote The Glass in 18.": ["The Glass", "18"],
    }
    for sentence, stated in cases.items():
        found = world.statements(_about(world, sentence))[1:]
        assert [s.stated for s in found] == stated
        assert not any(s.true for s in found)


def test_unfinished_and_unknown_sentences_state_nothing(world):
    spouse = world.people[0].attributes["spouse"]
    assert world.statements(_about(world, f"She married {spouse}"))[1:] == []
    assert world.statements(_about(world, "She felt blue about it. Rain fell."))[1:] == []
    assert world.statements("") == []
    assert world.statements("Nobody We Know was born on 1 May 1950 in Oakgate.") == []


def test_repeated_attributes_are_each_reported(world):
    place = world.people[0].attributes["residence"]
    text = _about(world, f"She quietly moved to {place}. She kept a shady home in Oxford.")
    assert [(s.attribute, s.true) for s in world.statements(text)[1:]] == [
        ("residence", True),
        ("residence", False),
    ]


def _skeleton(source):
    """A template as words, with free words and references by kind, as they look to a reader from the left."""
    words = source.rstrip(".").replace(",", " ,").split()
    return [re.sub(r"<\w+>", "<>", re.sub(r"\{(?:S|N)\}", "{S}", word)) for word in words]


def test_words_before_a_slot_lead_to_one_attribute_only():
    ways = {}
    for source in (*LEADS, *FACT_SENTENCES, *FILLERS):
        words = _skeleton(source)
        for n, word in enumerate(words):
            ways.setdefault(tuple(words[:n]), set()).add(word)
    slots = {"{" + attribute + "}" for attribute in ATTRIBUTES}
    for prefix, following in ways.items():
        if following & slots:
            assert len(following) == 1, f"after {' '.join(prefix)!r}: {sorted(following)}"


def test_completion_of_text_a_model_wrote(world):
    person = world.people[0]
    spouse, work = person.attributes["spouse"], person.attributes["work"]
    half = spouse[:4]
    assert (
        world.complete(_about(world, "She quirkily married")) == " " + spouse
    )  # no such adverb in the lists
    assert world.complete(_about(world, "She quietly married ")) == spouse
    assert world.complete(_about(world, f"Wrongname quietly married {half}")) == spouse[4:]
    assert world.complete(_about(world, "She quietly married Zzz")) is None  # already wrong
    assert world.complete(_about(world, f"She quietly married {spouse}")) is None  # already complete
    assert world.complete(_about(world, f"Her grand first book was {work[:6]}")) == work[6:]
    assert world.complete(_about(world, "She earned a shady living as a gift")) is None  # of "gifted"
    assert (
        world.complete(_about(world, "She earned a shady living as a gifted"))
        == " " + person.attributes["occupation"]
    )
    assert world.complete("Nobody We Know was born on") is None
    assert world.complete("") is None
    assert world.complete(person.name + " was born on") == " " + person.attributes["birth_date"]


def test_second_value_of_a_sentence_is_completed_after_a_wrong_first(world):
    residence = world.people[0].attributes["residence"]
    assert world.complete(_about(world, "She quietly married Xu Li and settled in")) == " " + residence


def test_next_text_is_never_empty_and_leads_to_sentences_that_are_true(world):
    for i in range(25):
        text = world.prompt(i)
        for _ in range(60):
            piece = world.complete(text) or world.next_text(text)
            assert piece.strip()
            text += piece
        statements = world.statements(text)
        assert len(statements) >= 3
        assert all(s.true for s in statements), text


def test_next_text_copes_with_any_text(world):
    name = world.people[0].name
    for text in (
        "",
        " ",
        ".",
        name,
        name + " was a gift",
        name + " xyzzy plugh",
        _about(world, "Qqq"),
        "no\nname",
    ):
        assert world.next_text(text).strip()
    assert world.next_text(_about(world, "He earned a shady living as a gift")) == "ed"


def test_unknown_notation_in_a_template_is_refused():
    for source in ("{S} saw {nothing}.", "{S} saw <nothing>."):
        with pytest.raises(ValueError, match="unknown name 'nothing'"):
            parse_template(source)
