"""Texts by a teacher: only what names the entity and states the fact is kept, with its origin; failures of the teacher."""

from __future__ import annotations

import json
import re

import pytest
from completions_server import CompletionsServer

from lacy_jax import cli
from lacy_jax.cascade import synthesis
from lacy_jax.corpus import World
from lacy_jax.corpus.lmlm import document_of_annotated
from lacy_jax.errors import ConfigError

ADA = ("Ada Bell (painter)", "birth_place", "Oslo")


def task_of(kind: str, fact=ADA) -> synthesis.Task:
    (task,) = synthesis.tasks_of([fact], [kind], 1)
    return task


@pytest.mark.parametrize(
    ("kind", "text", "rest"),
    [
        ("paraphrase", "Ada Bell came from Oslo.", "Oslo."),
        ("paraphrase", "The painter ADA BELL was born in oslo, in Norway.", "oslo, in Norway."),
        ("question", "Where was Ada Bell born? She was born in Oslo.", "Oslo."),
        ("question", "Was Ada Bell born in Oslo? Yes, in Oslo, Norway.", "Oslo, Norway."),
    ],
)
def test_a_text_that_names_the_entity_and_then_states_the_value(kind, text, rest):
    assert text[synthesis.accepted(task_of(kind), text) :] == rest


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("paraphrase", "Oslo is where Ada Bell was born.", "the value is not stated after the entity"),
        ("paraphrase", "Ada Bell was born in Osloville.", "the value is not stated after the entity"),
        ("paraphrase", "She was born in Oslo.", "the entity is not named"),
        ("paraphrase", "Ada Bell " * 80 + "Oslo", "more than 150 words"),
        ("paraphrase", "Fact: the birth place of Ada Bell (painter) is Oslo.", "the prompt's own words"),
        ("question", "Was Ada Bell born in Oslo? Yes.", "the value is not stated after the entity"),
        ("question", "Ada Bell was born in Oslo.", "no question"),
    ],
)
def test_other_texts_are_refused_and_it_is_said_why(kind, text, why):
    with pytest.raises(ValueError, match=why):
        synthesis.accepted(task_of(kind), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada Bell was born in Oslo. She loved it there, and I believe her.", []),
        ("Where was Ada Bell born? The answer: Oslo.", []),
        ("Ada Bell was born in Oslo, Norway, in 1956.", ["Norway", "1956"]),
        ("In 3 words: Ada Bell's Oslo.", ["3"]),
    ],
)
def test_what_a_teacher_was_not_told_is_found(text, words):
    assert synthesis.invented(task_of("paraphrase"), text) == words


def test_dates_count_in_any_order():
    task = task_of("paraphrase", ("Ada Bell", "birth_date", "7 May 1956"))
    text = "Ada Bell was born on May 7, 1956."
    assert text[synthesis.accepted(task, text) :] == "May 7, 1956."


@pytest.fixture(scope="module")
def world_facts(tmp_path_factory):
    """All facts of four people of a world, as JSONL."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        dict(zip(("entity", "attribute", "value"), fact, strict=True)) for fact in World(4, seed=3).table()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, len(rows)


def synthesise(capsys, path, out, teacher, *more):
    code = cli.main(
        ["synthesise", f"--facts={path}", f"--teacher={teacher}", f"--out={out}", "--json", *more]
    )
    return code, *capsys.readouterr()


def test_the_world_is_always_right_and_its_texts_are_a_labelled_corpus(world_facts, tmp_path, capsys):
    facts, count = world_facts
    code, out, err = synthesise(capsys, facts, tmp_path / "t.jsonl", "world:4,3", "--per-fact=2")
    assert code == 0, err
    report = json.loads(out)
    assert report["asked"] == 2 * 3 * count
    assert set(report["refused"]) <= {"written before"}
    assert report["kept"] == report["asked"] - report["refused"].get("written before", 0) > 5 * count
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(rows) == report["kept"] == len({row["id"] for row in rows})
    assert {row["kind"] for row in rows} == set(synthesis.CONTEXT_KINDS)
    for row in rows:
        document = document_of_annotated(row, "x")
        assert document.text == row["text"]
        assert [document.text[start:end] for start, end in document.judge] == [row["value"]]
    again = tmp_path / "again.jsonl"
    synthesise(capsys, facts, again, "world:4,3", "--per-fact=2")
    assert again.read_bytes() == (tmp_path / "t.jsonl").read_bytes()


def test_a_world_knows_only_its_own_people(world_facts, tmp_path, capsys):
    code, _, err = synthesise(capsys, world_facts[0], tmp_path / "t.jsonl", "world:4,4")
    assert code != 0
    assert "not a fact of this world" in err.splitlines()[-1]
    code, _, err = synthesise(capsys, world_facts[0], tmp_path / "t.jsonl", "world:4,3", "--max-tokens=0")
    assert code != 0
    says = "--max-tokens: only for the chat model of a server; --teacher=world:4,3 is the synthetic world"
    assert says in err.splitlines()[-1]
    assert not (tmp_path / "t.jsonl").exists()


def liar(prompt: str) -> str:
    """States every second fact, and says the same of everything else."""
    _, entity, value = re.search(r"Fact: the (.+?) of (.+?) is (.+)\.\n", prompt).groups()
    if len(value) % 2:
        return "Nothing is known about that."
    more = ", a Nobel laureate" if len(entity) % 2 else ""
    return f"Who was {entity}? {entity}{more} is remembered for {value}."


def test_a_served_teacher_is_checked_and_its_answers_are_kept(world_facts, tmp_path, capsys):
    facts = world_facts[0]
    with CompletionsServer(liar) as server:
        spec, more = f"chat+{server.url}#m", ("--kinds=question,paraphrase", "--limit=20")
        code, out, err = synthesise(capsys, facts, tmp_path / "t.jsonl", spec, *more, "--dry-run")
        assert (code, json.loads(out), server.requests) == (0, {"texts": 40}, []), err
        code, out, err = synthesise(capsys, facts, tmp_path / "t.jsonl", spec, *more)
        assert code == 0, err
        report, asked = json.loads(out), len(server.requests)
        assert report["asked"] == asked == 40
        assert report["kept"] + sum(report["refused"].values()) == 40
        whys = {"the entity is not named", "names or numbers that were not told", "written before"}
        assert set(report["refused"]) == whys
        (tmp_path / "t.jsonl").rename(tmp_path / "first.jsonl")
        code, out, _ = synthesise(capsys, facts, tmp_path / "t.jsonl", spec, *more)
        assert (code, len(server.requests)) == (0, asked)
        assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()


def test_empty_answers_are_an_error_that_says_so(world_facts, tmp_path, capsys):
    with CompletionsServer(lambda prompt: "") as server:
        code, _, err = synthesise(capsys, world_facts[0], tmp_path / "t.jsonl", f"chat+{server.url}#m")
    assert code != 0
    assert "answers are unusable" in err.splitlines()[-1]
    assert "teacher m at http" in err.splitlines()[-1]
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--teacher=world:many", "--teacher=world:many: expected world:PEOPLE or world:PEOPLE,SEED"),
        ("--teacher=http://x/v1#m", "--teacher=http://x/v1#m: needs a chat model"),
        ("--kinds=poem", "--kinds=poem: expected one of question, paraphrase, sentences"),
        ("--per-fact=0", "--per-fact=0: must be at least 1"),
        ("--facts=absent.jsonl", "absent.jsonl"),
    ],
)
def test_errors_are_one_line(option, message, world_facts, tmp_path, capsys):
    code, _, err = synthesise(capsys, world_facts[0], tmp_path / "t.jsonl", "world:4,3", option)
    assert code != 0
    assert message in err.splitlines()[-1]


def test_what_is_there_is_not_overwritten(world_facts, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text("mine")
    code, _, err = synthesise(capsys, world_facts[0], tmp_path / "t.jsonl", "world:4,3")
    assert code != 0
    assert "it exists" in err
    assert (tmp_path / "t.jsonl").read_text() == "mine"


def test_kinds_are_a_registry():
    with pytest.raises(ConfigError, match="question"):
        list(synthesis.tasks_of([ADA], ["questions"], 1))
