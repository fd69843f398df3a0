"""The suite edit: which facts are edited, what counts as stating them, and the suite on a small run."""

from __future__ import annotations

import json

import pytest
from evaluated_runs import evaluation_config, save_run

from lacy_jax import cli
from lacy_jax.cascade.fact_database import FactDatabase, edit_facts, learn_cues
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.corpus import World
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import DataError
from lacy_jax.evaluation.edit_subjects import subjects_of
from lacy_jax.evaluation.edits import (
    AUDIT,
    COLUMNS,
    PLACES,
    Place,
    answers_of,
    audit_figures,
    edit_figures,
    make_edits,
    spelled_otherwise,
    states_at_once,
)
from lacy_jax.report.page import report_command


@pytest.fixture(scope="module")
def world() -> World:
    return World(40, 0)


@pytest.fixture(scope="module")
def people():
    return subjects_of(evaluation_config("lacy", "none"), "").read


def test_every_other_person_gets_the_value_of_somebody_else(world, people):
    edits, places = make_edits(people, 0)
    assert 15 <= len(edits) <= 20
    edited = {name: (attribute, new) for name, attribute, new in edits}
    for name, (attribute, new) in edited.items():
        person = world.lookup(name)
        assert person.attributes[attribute] != new
        assert any(other.attributes[attribute] == new for other in world.people)
    assert {place.kind for place in places} == set(PLACES)
    for place in places:
        assert (place.person in edited) == (place.kind != "others")
        assert place.old == world.lookup(place.person).attributes[place.attribute]
        if place.kind in ("own", "reworded"):
            assert (place.attribute, place.new) == edited[place.person]
        else:
            assert place.old == place.new
        assert place.text.startswith(place.person)
    corpus = [world.text(at, variant).text for at in range(40) for variant in (0, 1)]
    for place in places:
        assert (
            any(text.startswith(f"{place.text} {place.old}") for text in corpus) or place.kind == "reworded"
        )
    assert make_edits(people, 0) == (edits, places)
    assert len(make_edits(people, 3)[0]) <= 3


def test_people_without_a_fact_to_edit_are_refused(people):
    with pytest.raises(DataError, match="no fact to edit"):
        make_edits(people[:1], 0)


@pytest.mark.parametrize(
    ("answer", "value", "stated"),
    [
        (" Oslo, where she", "Oslo", True),
        (" oslo", "Oslo", True),
        ("Osloby", "Oslo", False),
        (" in Oslo", "Oslo", False),
        ("", "Oslo", False),
        (" 19 May 1956", "19 May 195", False),
    ],
)
def test_a_value_is_stated_at_once(answer, value, stated):
    assert states_at_once(answer, value) is stated


class Knowing(Partner):
    """Says the same wherever it is asked but for texts about Bea."""

    name = "knowing"

    def complete(self, texts):
        return ["" if text.startswith("Bea") else " Rome" for text in texts]


def test_shares_by_hand():
    places = [
        Place("own", "Ada", "birthplace", "Ada was born in", "Oslo", "Rome"),
        Place("own", "Bea", "birthplace", "Bea was born in", "Oslo", "Rome"),
        Place("own", "Cy", "birthplace", "Cy was born in", "Oslo", "Rome"),
        Place("same", "Ada", "residence", "Ada died in", "Hull", "Hull"),
    ]
    alone = [" Oslo.", " Oslo.", " Kiel.", " Hull."]
    found = answers_of(places, alone, [True, True, False, False], Knowing())
    assert found == [(" Rome", True), (" Oslo.", False), (" Kiel.", False), (" Hull.", False)]
    assert answers_of(places, alone, [False] * 4, Knowing()) == [(answer, False) for answer in alone]
    before = [(" Oslo", True), (" Oslo.", False), (" Oslo", True), (" Hull.", False)]
    shares = edit_figures(places, {"full": before, "changed": found})["changed"]
    assert shares["own"]["places"] == 3
    assert (shares["own"]["new"], shares["own"]["old"], shares["own"]["partner"]) == pytest.approx(
        (1 / 3, 1 / 3, 1 / 3)
    )
    assert shares["same"]["old"] == shares["same"]["kept"] == 1.0
    assert shares["own"]["kept"] == pytest.approx(1 / 3)
    assert shares["others"]["old"] is None  # Not asked is no answer.


def test_the_audit_by_hand():
    """Ada's fact is forgotten, Bea's is in the model, Cy's is found under another attribute, Dee's only from elsewhere; a wrong
    answer hides what the model knows of Eve."""
    people = ("Ada", "Bea", "Cy", "Dee", "Eve")
    places = [Place("own", name, "birthplace", f"{name} was born in", "Oslo", "Rome") for name in people]
    yes, no = (" Oslo", True), (" Hull", True)
    answers = {
        "full": [yes, yes, yes, yes, no],
        "deleted": [(" Kiel", False), (" Oslo", False), yes, yes, no],
        "alone": [(" Kiel", False), (" Oslo", False), (" Kiel", False), (" Kiel", False), (" Oslo", False)],
    }
    found = audit_figures(places, answers, [("CY", "residence", "oslo"), ("Dee", "birthplace", "Rome")])
    own = found["own"]
    assert (own["facts"], own["unsupported"]) == (5, 4)
    assert {name: own[name] for name in AUDIT} == pytest.approx(
        {
            "correct": 4 / 5,
            "survival": 3 / 4,
            "leakage": 2 / 5,
            "leakage_given_full": 1 / 4,
            "retrieval": 2 / 5,
            "interference": 1 / 5,
            "artifact": 2 / 5,  # Bea's comes from the model, Dee's from nowhere.
        }
    )
    assert found["reworded"]["correct"] is None


def test_a_deletion_reaches_every_spelling(world, tmp_path):
    rows = list(world.table())[:24]
    path = tmp_path / "facts.db"
    texts = [world.text(at, variant) for at in (0, 1) for variant in range(4)]
    more = [*rows, *spelled_otherwise(rows[:3])]
    assert learn_cues(more, texts) == learn_cues(
        rows, texts
    )  # Facts count once, however many names they have.
    database = FactDatabase.build(path, more, texts)
    assert edit_facts(path, delete=rows[:3])["deleted"] == 9
    assert database.rows() == rows[3:]
    database.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    config = evaluation_config("lacy", folder / "dataset")
    build_dataset(config, folder / "dataset")
    save_run(folder / "lacy", config, 0)
    return folder / "lacy"


def lacy(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else None, out.err


def test_the_suite_on_a_run_that_always_calls(run, capsys):
    """Untrained, it knows nothing by itself: what is stated, the database states."""
    arguments = ("evaluate", "--suite=edit", f"--workdir={run}", "--limit=12")
    code, figures, error = lacy(capsys, *arguments, "--config.generate.budget=1.0")
    assert code == 0, error
    shares = figures["shares"]
    assert figures["call_share"] == 1.0
    assert shares["changed"]["own"]["new"] > 0.6
    assert shares["changed"]["own"]["old"] == 0.0
    assert shares["full"]["own"]["old"] == pytest.approx(shares["changed"]["own"]["new"], abs=0.1)
    assert shares["restored"] == shares["full"]
    for kind in ("same", "others"):  # What was not edited is as it was.
        assert shares["changed"][kind] == shares["deleted"][kind] == shares["full"][kind]
    edits = figures["edits"]
    assert figures["rows"] == {
        "deleted": 3 * edits,
        "added": edits,
        "changed": edits,
    }  # Each under three names.
    for audit in figures["audit"].values():
        assert audit["unsupported"] == audit["facts"]
        assert audit["correct"] > 0.6
        assert audit["survival"] == audit["leakage"] == audit["retrieval"] == audit["artifact"] == 0.0
    assert figures["tofu"]["unread"]["facts"] > 0
    assert figures["tofu"]["forget_quality"] > 0.001  # It has read nothing about anybody.
    for condition in ("alone", "deleted"):
        assert shares[condition]["own"]["old"] == shares[condition]["own"]["new"] == 0.0
    report_command([run], None)
    page = (run / "report.html").read_text()
    assert "Edited and deleted facts" in page
    assert all(name in page for name in COLUMNS)


def test_what_the_suite_needs_is_said_in_one_line(run, capsys, tmp_path):
    for override, says in (
        ("--config.corpus.kind=jsonl", "the suite edit needs 'world'"),
        ("--config.generate.gate=oracle", "needs a gate with scores of its own"),
        (f"--config.dataset.path={tmp_path}/none", "needs validation text"),
    ):
        code, _, error = lacy(capsys, "evaluate", "--suite=edit", f"--workdir={run}", override)
        assert code == 2
        assert says in error.splitlines()[-1]
