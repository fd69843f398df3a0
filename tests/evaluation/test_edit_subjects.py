"""People of a corpus of real text, by a table of their facts."""

from __future__ import annotations

import json

import pytest
from evaluated_runs import evaluation_config, save_run

from lacy_jax import cli
from lacy_jax.corpus import World
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import DataError
from lacy_jax.evaluation.edit_subjects import subjects_of

TEXTS = {
    "Ada Bell (painter)": "Ada Bell (7 May 1956 – 2 June 1999) was a painter of Hull. She was born on 7 May 1956 in Oslo.",
    "Bea Crane": "Bea Crane, who won in 1956, was born on May 7, 1956.",
    "Cy Dent": "Cy Dent is a composer.",
}
FACTS = [
    ("Ada Bell", "birth_date", "7 May 1956"),
    ("Ada Bell", "death_date", "2 June 1999"),
    ("ADA BELL", "birth_year", "1956"),
    ("Ada Bell", "birth_place", "Oslo"),
    ("Ada Bell", "birth_place", "Bergen"),
    ("Bea Crane", "birth_date", "7 May 1956"),
    ("Bea Crane", "win", "1956"),
    ("Dee Eck", "birth_place", "Rome"),
]


def write(folder, texts, facts):
    with (folder / "people.jsonl").open("w") as out:
        out.writelines(json.dumps({"id": t, "title": t, "text": text}) + "\n" for t, text in texts.items())
    with (folder / "facts.jsonl").open("w") as out:
        rows = (dict(zip(("entity", "attribute", "value"), fact, strict=True)) for fact in facts)
        out.writelines(json.dumps(row) + "\n" for row in rows)


def jsonl_config(folder, valid_fraction):
    config = evaluation_config("lacy", folder / "dataset")
    config.corpus.kind, config.corpus.path = "jsonl", str(folder / "people.jsonl")
    config.dataset.valid_fraction = valid_fraction
    return config


def test_facts_are_where_a_text_states_them_letter_by_letter(tmp_path):
    write(tmp_path, TEXTS, FACTS)
    subjects = subjects_of(jsonl_config(tmp_path, 0.0), str(tmp_path / "facts.jsonl"))
    ada, bea = subjects.read
    assert ada.name == "Ada Bell (painter)"
    assert ada.own == {  # The year is in the date.
        "birth_date": "Ada Bell (",
        "death_date": "Ada Bell (7 May 1956 –",
        "birth_place": f"{TEXTS['Ada Bell (painter)'].partition(' Oslo')[0]}",
    }
    assert ada.values["birth_place"] == "Oslo"
    assert ada.reworded["birth_place"] == "Ada Bell was born in"
    assert bea.own == {"win": "Bea Crane, who won in"}  # Her date is written otherwise.
    assert bea.reworded == {}
    assert len(subjects.rows) == 7
    assert subjects.unread == []


def test_nobody_in_common_is_refused(tmp_path):
    write(tmp_path, TEXTS, FACTS[-1:])
    with pytest.raises(DataError, match="no text of the corpus states a fact"):
        subjects_of(jsonl_config(tmp_path, 0.0), str(tmp_path / "facts.jsonl"))


def test_the_suite_on_such_a_corpus(tmp_path, capsys):
    names = [
        f"{first} {last}"
        for first in ("Ada", "Bea", "Cy", "Dee")
        for last in ("Bell", "Crane", "Dent", "Eck")
    ]
    facts = [(name, "birth_place", f"{name.split()[0]}ville{len(name)}") for name in names]
    more = World(len(names), 0)  # Sentences enough for a tokenizer.
    texts = [
        f"{name} was raised in {value} for years. {more.text(at, 0).text}"
        for at, (name, _, value) in enumerate(facts)
    ]
    write(tmp_path, dict(zip(names, texts, strict=True)), facts)
    config = jsonl_config(tmp_path, 0.3)
    build_dataset(config, tmp_path / "dataset")
    save_run(tmp_path / "run", config, 0)
    arguments = ("evaluate", "--suite=edit", f"--workdir={tmp_path}/run", f"--facts={tmp_path}/facts.jsonl")
    assert cli.main([*arguments, "--config.generate.budget=1.0", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["edits"] > 2
    assert figures["shares"]["full"]["own"]["old"] == figures["shares"]["changed"]["own"]["new"] == 1.0
    assert figures["audit"]["own"]["survival"] == 0.0
    assert figures["tofu"]["unread"]["facts"] > 0
