"""Calls to every partner in the synthetic world: whose they are, what is right, and how it is counted."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from cascade_fakes import Scripted, make_model, make_tokenizer
from word_encoder import WordEncoder

from lacy_jax.config import get_default_config
from lacy_jax.corpus import World
from lacy_jax.studies.query_study import (
    REWORDED,
    Call,
    Remembering,
    ask_all,
    every_fact,
    figures,
    figures_table,
    own_calls,
    reworded,
)

SEEN = 20


@pytest.fixture(scope="module")
def world() -> World:
    return World(people=60, seed=3)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """An untrained model, as much of a run as is read."""
    tokenizer = make_tokenizer(world, 500)
    model = make_model(tokenizer.vocab_size, query_dim=8, context=512)
    folder = tmp_path_factory.mktemp("run")
    return types.SimpleNamespace(model=model, model_config=model.cfg, tokenizer=tokenizer, workdir=folder)


def test_every_fact_of_a_text_is_a_call(run, world):
    calls = every_fact(run, [world.text(at, 2) for at in (3, 30)], world, SEEN)
    assert len(calls) == sum(len(world.text(at, 2).facts) for at in (3, 30))
    for call in calls:
        assert call.unseen == (world.lookup(call.person).index >= SEEN)
        assert (
            world.complete(call.text).strip()
            == call.value
            == world.lookup(call.person).attributes[call.attribute]
        )
        assert np.linalg.norm(call.query) == pytest.approx(1, abs=1e-4)
    assert len({call.query.tobytes() for call in calls}) == len(calls)


def test_facts_are_asked_for_in_other_forms(run, world):
    for form in REWORDED:
        documents = list(reworded(world, [3, 30], form))
        assert len({document.text for document in documents}) == len(documents) == 24
        calls = every_fact(run, documents, world, SEEN, form)
        assert {call.kind for call in calls} == {form}
        for call, document in zip(calls, documents, strict=True):
            assert document.text.startswith(call.text)
            assert document.text[len(call.text) :].strip().startswith(call.value)
            assert call.person in call.text
            assert world.lookup(call.person).attributes[call.attribute] == call.value


def test_own_calls_are_those_that_the_model_makes(run, world):
    config = get_default_config()
    config.generate.update({"budget": 0.3, "max_new_tokens": 60, "batch_size": 4, "temperature": 0.7})
    calls = own_calls(run, config, world, [1, 2, 40], SEEN)
    assert {call.kind for call in calls} <= {"own", "idle"}
    assert len(calls) > 5
    assert {call.person for call in calls} <= {world.people[at].name for at in (1, 2, 40)}
    for call in calls:
        rest = (world.complete(call.text) or "").strip()
        assert (call.kind, call.value) == (("own", rest) if rest else ("idle", ""))
        assert call.unseen == (call.person == world.people[40].name)


def _answers(world, right, idle, seed=0):
    """Three people, two facts each: how many of each person's BM25 and we get right; and whether we are silent where nothing is asked."""
    found = []
    for at, (theirs, ours) in enumerate(right):
        person = world.people[at]
        for place, (attribute, value) in enumerate(list(person.attributes.items())[:2]):
            about = {
                "kind": "every",
                "unseen": True,
                "person": person.name,
                "attribute": attribute,
                "value": value,
            }
            other = list(person.attributes.values())[5]
            found.append(
                about | {"bm25": value if place < theirs else "", "ours": value if place < ours else other}
            )
        about = {"kind": "idle", "unseen": True, "person": person.name, "attribute": "", "value": ""}
        found.append(about | {"bm25": "", "ours": "" if at < idle else person.attributes["award"]})
    return found


def test_right_answers_are_counted_by_kind_and_compared_at_the_same_calls(world):
    seeds = [
        _answers(world, [(0, 2), (1, 2), (0, 1)], idle=1),
        _answers(world, [(0, 2), (1, 1), (0, 1)], idle=2),
    ]
    found = figures(seeds, world, "bm25")
    assert set(found) == {"every, unseen", "idle, unseen"}
    every, idle = found["every, unseen"], found["idle, unseen"]["partners"]["ours"]
    assert (every["calls"], every["people"]) == (12, 3)
    ours, theirs = every["partners"]["ours"], every["partners"]["bm25"]
    assert theirs["right"] == pytest.approx(2 / 12)
    assert ours["right"] == pytest.approx(9 / 12)
    assert ours["by_seed"] == pytest.approx([5 / 6, 4 / 6])
    assert ours["more"] == pytest.approx(7 / 12)
    assert ours["more_ci"][0] <= ours["more"] <= ours["more_ci"][1]
    assert ours["another_fact_of_the_person"] == pytest.approx(3 / 12)
    assert theirs["silent"] == pytest.approx(10 / 12)
    assert idle["right"] == idle["silent"] == pytest.approx(3 / 6)
    assert ours["nearest"] is None
    text = figures_table(found, "bm25")
    assert "every, unseen people: 12 calls about 3 people" in text
    assert "right 75.0%" in text
    assert "seeds 83.3% 66.7%" in text


def test_partners_get_the_same_calls_once_and_are_closed(world, tmp_path):
    closed, opened = [], []

    class Closing(Scripted):
        def close(self):
            closed.append(self.name)

    person = world.people[0]
    call = Call(
        "every", True, person.name, "award", "text", np.ones(4, np.float32), person.attributes["award"]
    )

    def partners(**answers):
        for name, answer in answers.items():
            yield name, lambda name=name, answer=answer: opened.append(name) or Closing(answer)

    ask_all([call], partners(a=f" {call.value}"), tmp_path / "answers.json")
    [record] = ask_all([call], partners(a="another", b=None), tmp_path / "answers.json")
    assert record == {
        "kind": "every", "unseen": True, "person": person.name, "attribute": "award", "value": call.value, "a": call.value,
        "b": "",
    }  # fmt: skip
    assert opened == ["a", "b"]
    assert len(closed) == 2
    other = dataclasses.replace(call, value="of another call")
    [record] = ask_all([other], partners(c=""), tmp_path / "answers.json")
    assert "a" not in record


def test_a_remembering_encoder_encodes_each_text_once():
    class Counting(WordEncoder):
        texts = 0

        def encode(self, texts):
            self.texts += len(texts)
            return super().encode(texts)

    counting = Counting()
    encoder = Remembering(counting)
    first = encoder.encode(["one", "two", "one"])
    np.testing.assert_array_equal(encoder.encode(["two", "one"]), first[1:])
    assert counting.texts == 2
