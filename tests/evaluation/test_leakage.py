"""Leakage: questions from the published files, containment of answers, shares, and going on after a stop."""

from __future__ import annotations

import io
import json
import tarfile
import types

import pytest

from lacy_jax.cascade.stated import states
from lacy_jax.errors import DataError
from lacy_jax.evaluation import leakage
from lacy_jax.evaluation.leakage_questions import Question, read_popqa, read_trex, seen_subjects

ITEM = {
    "id": 7, "subj": "Ada Bell", "prop": "occupation", "question": "What is Ada Bell's occupation?",
    "possible_answers": '["chemist", "natural scientist"]',
}  # fmt: skip


def _archive(path, members):
    with tarfile.open(path, "w:xz") as archive:
        for name, rows in members.items():
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_popqa_is_asked_in_both_forms(tmp_path):
    other = {**ITEM, "id": 8, "prop": "sport", "possible_answers": ["chess"]}
    (tmp_path / "popqa.json").write_text(json.dumps([ITEM, other]))
    qa, cloze, _, other_cloze = read_popqa(tmp_path / "popqa.json")
    assert qa.prompt == "Question: What is Ada Bell's occupation?\nAnswer:"
    assert cloze.prompt == "Ada Bell worked as a"
    assert other_cloze.prompt == "The sport of Ada Bell is"
    assert qa.answers == ("chemist", "natural scientist")
    assert (qa.form, cloze.form) == ("qa", "cloze")


def test_trex_uses_the_first_pattern_that_ends_with_the_object(tmp_path):
    facts = [
        {"sub_label": s, "obj_label": o, "uuid": s}
        for s, o in (("Ada", "Oslo"), ("Bea", "Hull"), ("Cy", "Bern"))
    ]
    patterns = [
        {"pattern": "[Y] is where [X] was born."},
        {"pattern": "[X] comes from [Y]."},
        {"pattern": "[X] of [Y]"},
    ]
    path = _archive(
        tmp_path / "trex.tar.xz",
        {
            "lama_trex/P19.jsonl": facts,
            "pararel_patterns/graphs_json_P19.jsonl": patterns,
            "lama_trex/P1.jsonl": facts,
        },
    )
    questions = read_trex(path)
    assert [(q.prompt, q.answers, q.relation) for q in questions] == [
        ("Ada comes from", ("Oslo",), "P19"), ("Bea comes from", ("Hull",), "P19"), ("Cy comes from", ("Bern",), "P19"),
    ]  # fmt: skip
    drawn = [{question.id for question in read_trex(path, per_relation=n)} for n in (1, 2, 3)]
    assert [len(ids) for ids in drawn] == [1, 2, 3]
    assert drawn[0] < drawn[1] < drawn[2], "a smaller sample is a part of a larger one"


def test_bad_files_are_named(tmp_path):
    (tmp_path / "popqa.json").write_text('[{"subj": "A"}]')
    with pytest.raises(DataError, match="item 0 is not a PopQA item"):
        read_popqa(tmp_path / "popqa.json")
    (tmp_path / "popqa.json").write_text("{}")
    with pytest.raises(DataError, match="PopQA"):
        read_popqa(tmp_path / "popqa.json")
    (tmp_path / "trex.tar.xz").write_bytes(b"\xfd7zXZ\x00 cut off")
    with pytest.raises(DataError, match="T-REx"):
        read_trex(tmp_path / "trex.tar.xz")
    with pytest.raises(DataError, match="no facts with a pattern"):
        read_trex(_archive(tmp_path / "empty.tar.xz", {"readme.jsonl": []}))


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        (" a famous Chemist, and", ("chemist",), True),
        (" in São Paulo.", ("Sao Paulo",), True),
        (" in Sao\nPaulo", ("São Paulo",), True),
        (" chemistry", ("chemist",), False),
        (" in the STRASSE", ("Straße",), True),
        (" in İzmir", ("Izmir",), True),
        (" some 1,300 men", ("1300",), True),
        (" some 3.5 men", ("5",), False),
        (" a science-fiction film", ("science fiction",), True),
        (" nothing", ("", "?"), False),
        (" a natural scientist", ("chemist", "natural scientist"), True),
    ],
)
def test_an_answer_counts_word_by_word(text, answers, found):
    assert states(text, answers) == found


def _questions(n=6):
    return [
        Question(
            f"q{i}",
            "popqa",
            "qa" if i % 2 else "cloze",
            f"S{i // 2}",
            "occupation",
            f"prompt {i}",
            (f"gold{i}",),
        )
        for i in range(n)
    ]


def test_shares_by_group_and_by_seen_subject():
    questions = _questions()
    answers = ["gold0", "gold1", "x", "gold3", "x", "x"]
    result = leakage.leakage_figures(questions, answers, {"S0", "S2"})
    assert result["all"]["share"] == pytest.approx(0.5)
    assert result["groups"]["popqa qa"]["leaked"] == 2
    assert result["groups"]["popqa qa seen"] | {"share_ci": 0} == {
        "questions": 2, "subjects": 2, "leaked": 1, "share": 0.5, "share_ci": 0,
    }  # fmt: skip
    assert result["groups"]["popqa qa unseen"]["share"] == 1.0
    low, high = result["all"]["share_ci"]
    assert low < 0.5 < high
    assert "popqa qa" in leakage.leakage_table(result)
    assert "seen" not in str(leakage.leakage_figures(questions, answers)["groups"])


def test_seen_subjects_have_an_article():
    assert seen_subjects(_questions(4), ["s0 (chemist)", "Other"]) == {"S0"}


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "AT_ONCE", 2)
    asked = []

    def write(prompts, tokens):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(prompt.text for prompt in prompts)
        return [types.SimpleNamespace(text=f"{prompt.text} {tokens}") for prompt in prompts]

    with pytest.raises(KeyboardInterrupt):
        leakage.ask(_questions(), write, out=tmp_path / "leakage")
    partial = tmp_path / "leakage.partial.jsonl"
    partial.write_text(partial.read_text()[:-3])  # Killed while writing the last line.
    asked[:] = []
    answers = leakage.ask(_questions(), write, out=tmp_path / "leakage")
    assert asked == ["prompt 3", "prompt 4", "prompt 5"]
    assert answers == [f"prompt {i} 16" for i in range(6)]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no questions"):
        leakage.ask([], write, out=tmp_path / "leakage")


def test_the_real_files(shared_data):
    folder = shared_data / "factual"
    if not folder.exists():
        pytest.skip("no PopQA or T-REx")
    popqa = read_popqa(folder / "popqa_1000_with_wikipedia_paragraphs.json")
    assert len(popqa) == 2000
    assert all(question.answers and "[" not in question.prompt for question in popqa)
    trex = read_trex(folder / "lama_trex.tar.xz", per_relation=3)
    assert len(trex) > 100
    assert not any("[X]" in question.prompt or "[Y]" in question.prompt for question in trex)


def test_questions_that_contain_their_answer_are_reported_apart():
    copying = Question(
        "c", "trex", "cloze", "University of Oslo", "P131", "University of Oslo is located in", ("Oslo",)
    )
    part_of_a_word = Question("d", "trex", "cloze", "Osloer", "P131", "Osloer Bank is located in", ("Oslo",))
    result = leakage.leakage_figures([*_questions(2), copying, part_of_a_word], ["gold0", "x", "Oslo", "x"])
    assert result["all"]["questions"] == 3
    assert result["all"]["leaked"] == 1
    assert result["groups"]["trex cloze"]["questions"] == 1
    assert result["groups"]["trex cloze, answer in the prompt"] | {"share_ci": 0} == {
        "questions": 1, "subjects": 1, "leaked": 1, "share": 1.0, "share_ci": 0,
    }  # fmt: skip
    assert "University of Oslo" not in result["by_question"]
    assert result["by_relation"]["trex P131"]["questions"] == 1
    assert leakage.leakage_figures([copying], ["Oslo"])["all"]["share"] is None
