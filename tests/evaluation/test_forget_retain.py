"""TOFU's figures: who is asked about what, probabilities of values against plain logits, and the figures by hand."""

from __future__ import annotations

import numpy as np
import pytest
from evaluated_runs import evaluation_config, plain_document, save_run

from lacy_jax.corpus import World
from lacy_jax.dataset import build_dataset
from lacy_jax.evaluation.edit_subjects import subjects_of
from lacy_jax.evaluation.edits import make_edits
from lacy_jax.evaluation.forget_retain import (
    FALSE_VALUES,
    SETS,
    Question,
    forget_retain_figures,
    forget_retain_text,
    make_questions,
    value_probabilities,
)
from lacy_jax.training import load_run


def test_unread_people_are_asked_about_as_those_to_forget():
    subjects = subjects_of(evaluation_config("lacy", "none"), "")
    _, places = make_edits(subjects.read, 0)
    questions = make_questions(places, subjects)
    assert questions == make_questions(places, subjects)
    asked = {name: [q for q in questions if q.set == name] for name in SETS}
    assert len(asked["forget"]) == len([place for place in places if place.kind == "own"])
    assert len(asked["unread"]) == 40
    corpus, larger = World(40, 0), World(120, 0)
    for name, some in asked.items():
        assert len({question.person for question in some}) == len(some)
        for question in some:
            assert (corpus.lookup(question.person) is None) == (name == "unread")
            assert len(set(question.values)) == len(question.values) == 1 + FALSE_VALUES
            assert larger.complete(question.text) == f" {question.values[0]}"


def test_probabilities_are_those_of_plain_logits(tmp_path):
    config = evaluation_config("lacy", tmp_path / "dataset")
    build_dataset(config, tmp_path / "dataset")
    save_run(tmp_path / "run", config, 0)
    run = load_run(tmp_path / "run")
    questions = [
        Question("forget", "Mara", "Mara was born on", ("19 May 1956", "2 June 1911")),
        Question("retain", "Mara", "Mara was born in the town of", ("Ravenbridge", "Oakcliff", "Thornhaven")),
    ]
    found = value_probabilities(run, questions)
    for question, probabilities in zip(questions, found, strict=True):
        for value, probability in zip(question.values, probabilities, strict=True):
            text = f"{question.text} {value}"
            ids, _, ends = run.tokenizer.encode_with_offsets(text)
            nll = plain_document(run.model, run.tokenizer.with_prefix(ids), 64)["nll"]
            first = next(at for at, end in enumerate(ends) if text[: int(end)] > f"{question.text} ")
            assert probability == pytest.approx(np.exp(-nll[first:].mean()), rel=1e-4)


def test_figures_by_hand():
    def asked(which, count):
        return [Question(which, "Mara", "text", ("true", "false", "other"))] * count

    questions = [*asked("forget", 8), *asked("retain", 2), *asked("unread", 8)]
    knows, guesses = np.array([0.8, 0.1, 0.3]), np.array([0.2, 0.1, 0.3])
    figures = forget_retain_figures(questions, [knows] * 8 + [knows] * 2 + [guesses] * 8, 0.5)
    assert figures["forget"] == pytest.approx(
        {"facts": 8, "probability": 0.8, "truth_ratio": 0.25, "truth": 0.75}
    )
    assert figures["unread"]["truth"] == pytest.approx(0.0)
    assert figures["distance"] == 1.0
    assert figures["forget_quality"] < 0.001
    assert figures["model_utility"] == pytest.approx(3 / (1 / 0.8 + 1 / 0.75 + 1 / 0.5))
    assert "forget quality p = 0.000" in forget_retain_text(figures)
    forgotten = forget_retain_figures(questions, [guesses] * 8 + [knows] * 2 + [guesses] * 8, 0.0)
    assert forgotten["forget_quality"] == pytest.approx(1.0)
    assert forgotten["model_utility"] == 0.0
    none = forget_retain_figures([], [], None)
    assert none["forget_quality"] is none["model_utility"] is none["retain"]["truth"] is None
    assert "–" in forget_retain_text(none)
