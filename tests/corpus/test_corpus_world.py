"""The embedded world: what it generates, and that what it says of its texts is exact."""

from __future__ import annotations

import collections
import hashlib
import pickle
import tracemalloc

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus import World, open_corpus
from lacy_jax.corpus.people import NAMES
from lacy_jax.corpus.templates import ATTRIBUTES, FACT_SENTENCES
from lacy_jax.errors import ConfigError


@pytest.fixture(scope="module")
def world():
    return World(3000, seed=1)


def test_same_seed_same_world_and_other_seeds_differ():
    first, again, other = World(50, seed=3), World(50, seed=3), World(50, seed=4)
    assert [first.text(i, 2) for i in range(50)] == [again.text(i, 2) for i in range(50)]
    assert not {p.name for p in first.people} & {p.name for p in other.people}
    assert first.people[7].attributes != other.people[7].attributes
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_world_does_not_change_between_releases():
    # Golden: datasets, checkpoints and reported figures refer to worlds by (people, seed). If this fails, the
    # templates, word lists or the drawing changed: legitimate only together with new reported figures.
    document = World(2000, seed=0).text(4, 0)
    assert document.id == "world-0-4-0"
    assert document.title == "Zofia Sage Quilden"
    assert document.text.startswith("Zofia Sage Quilden was a methodical marine engineer from Winterhaven. ")
    assert hashlib.sha256(document.text.encode()).hexdigest()[:16] == "b177c412c45d2009"


def test_person_does_not_depend_on_the_size_of_the_world():
    assert World(10, seed=5).people[9] == World(100_000, seed=5).people[9]


def test_names_are_unique_and_found_again_without_a_table():
    big = World(100_000, seed=2)
    names = [big.name(index) for index in range(100_000)]
    assert len(set(names)) == 100_000
    for index in (0, 1, 17, 99_999):
        assert big.lookup(names[index]) == big.people[index]
        assert big.people[index].name == names[index]
    outside = World(100_001, seed=2).people[100_000].name
    assert big.lookup(outside) is None
    for wrong in ("", "Mara", "Nobody At All", names[0] + " Jr", names[0].lower()):
        assert big.lookup(wrong) is None


def test_people_act_as_a_sequence(world):
    assert len(world.people) == 3000
    assert world.people[-1] == world.people[2999]
    assert world.people[2:4] == [world.people[2], world.people[3]]
    with pytest.raises(IndexError, match="3000 people"):
        world.people[3000]


@pytest.mark.parametrize("people", [0, -1, NAMES + 1])
def test_impossible_number_of_people_is_refused(people):
    with pytest.raises(ConfigError, match=r"config\.corpus\.people"):
        World(people)


def test_facts_are_the_table(world):
    table = set(world.table())
    assert len(table) == 3000 * len(ATTRIBUTES)
    for i in range(300):
        document = world.text(i, i % 5)
        assert [f.start for f in document.facts] == sorted(f.start for f in document.facts)
        for fact in document.facts:
            assert document.text[fact.start : fact.end] == fact.value
            assert (fact.subject, fact.attribute, fact.value) in table


def test_every_attribute_is_stated_at_most_once_and_its_value_stands_nowhere_else(world):
    for i in range(300):
        document = world.text(i, 1)
        attributes = [fact.attribute for fact in document.facts]
        assert len(attributes) == len(set(attributes)) >= len(ATTRIBUTES) - 1
        for fact in document.facts:
            assert document.text.count(fact.value) == 1, (fact, document.text)


def test_values_are_hard_to_guess(world):
    values = collections.defaultdict(collections.Counter)
    for _, attribute, value in world.table():
        values[attribute][value] += 1
    assert set(values) == set(ATTRIBUTES)
    for attribute, counts in values.items():
        assert len(counts) >= 75, attribute
        assert counts.most_common(1)[0][1] / 3000 < 0.05, attribute
    assert len(values["birth_date"]) > 2700


def test_every_attribute_has_at_least_six_wordings():
    for attribute in ATTRIBUTES:
        assert sum(f"{{{attribute}}}" in sentence for sentence in FACT_SENTENCES) >= 6, attribute


def test_texts_have_the_length_and_the_share_of_facts_that_make_a_test_bed(world):
    words = facts = 0
    for i in range(400):
        document = world.text(i)
        count = len(document.text.split())
        assert 70 <= count <= 150
        words += count
        facts += sum(len(fact.value.split()) for fact in document.facts)
    assert 85 <= words / 400 <= 125
    assert 0.17 <= facts / words <= 0.28  # Of words; more of tokens, since names and digits are split.


def test_wordings_of_a_person_differ(world):
    assert len({world.text(0, variant).text for variant in range(50)}) == 50
    openings = {world.prompt(i, 0).removeprefix(world.people[i].name) for i in range(200)}
    assert len(openings) >= 4


def test_prompt_begins_the_text_and_states_nothing(world):
    for i in range(300):
        prompt, document = world.prompt(i, 3), world.text(i, 3)
        assert document.text.startswith(prompt)
        assert prompt.startswith(world.people[i].name)
        assert len(prompt.split()) <= 4
        assert all(fact.start >= len(prompt) for fact in document.facts)
        assert world.statements(prompt) == []


def test_world_takes_no_memory_per_person():
    World(1).text(0)  # Templates are compiled once per process.
    tracemalloc.start()
    huge = World(1_500_000, seed=0)
    for i in range(0, 1_500_000, 150_000):
        huge.text(i)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_world_travels_to_other_processes(world):
    assert pickle.loads(pickle.dumps(world)).text(5, 5) == world.text(5, 5)


def test_world_corpus_streams_every_text_once():
    config = get_default_config().corpus
    config.people, config.texts_per_person = 20, 3
    corpus = open_corpus(config)
    documents = list(corpus)
    assert len({document.id for document in documents}) == 60
    assert documents[20] == World(20).text(0, 1)
    shares = dict(pair for i in range(3) for pair in corpus.shard(i, 3))
    assert [shares[k] for k in range(60)] == documents
    config.max_documents = 25
    limited = open_corpus(config)
    assert list(limited) == documents[:25]
    assert limited.fingerprint != corpus.fingerprint
