"""The linear probe: it finds what is there, across people, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from evaluated_runs import evaluation_config, save_run

from lacy_jax.corpus import World
from lacy_jax.dataset import build_dataset
from lacy_jax.evaluation.query_probe import Sample, fact_vectors, probe_figures
from lacy_jax.training import load_run

TOWNS = ("Oslo", "Rome", "Hull", "Kiel", "Bergen", "Turin", "Leeds", "Lima", "Quito", "Perth")


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(0)
    return [
        Sample(f"Person {at}", attribute, TOWNS[int(draw.integers(len(TOWNS)))])
        for at in range(60)
        for attribute in ("birthplace", "residence")
    ]


def test_a_value_that_the_vectors_hold_is_found_and_no_other(samples):
    draw = np.random.default_rng(1)
    of_value = {town: draw.standard_normal(32) for town in TOWNS}
    holding = np.stack([of_value[s.value] + 0.1 * draw.standard_normal(32) for s in samples])
    found = probe_figures(samples, holding)
    assert found["first"] > 0.95
    assert found["chance"] == pytest.approx(0.1)
    assert (found["samples"], found["people"]) == (120, 60)
    nothing = probe_figures(samples, draw.standard_normal((120, 32)))
    assert nothing["first"] < 0.3
    assert nothing["first"] <= nothing["among_5"]


def test_a_person_is_not_remembered_from_the_fit(samples):
    """Vectors that tell who it is, but not what: with the person's other fact in the fit, one could look it up."""
    draw = np.random.default_rng(2)
    twice = [*samples, *samples]
    of_person = {s.group: draw.standard_normal(64) for s in samples}
    found = probe_figures(twice, np.stack([of_person[s.group] for s in twice]))
    assert found["first"] < 0.3


def test_too_few_people_are_refused(samples):
    with pytest.raises(ValueError, match="a probe needs 5 people or more, got 2"):
        probe_figures(samples[:4], np.ones((4, 3)))


def test_vectors_are_those_before_and_after_the_value(tmp_path):
    config = evaluation_config("lacy", tmp_path / "dataset")
    config.input.seq_len = 640
    build_dataset(config, tmp_path / "dataset")
    save_run(tmp_path / "run", config, 0)
    run = load_run(tmp_path / "run")
    documents = [World(40, 0).text(at, 0) for at in range(3)]
    samples, vectors = fact_vectors(run, documents, rows=2)
    facts = [(document, fact) for document in documents for fact in document.facts]
    assert [(s.group, s.attribute, s.value) for s in samples] == [
        (fact.subject, fact.attribute, fact.value) for _, fact in facts
    ]
    assert set(vectors) == {"before", "after"}
    document, fact = facts[-1]
    for name, end in (("before", fact.start), ("after", fact.end)):
        text = document.text[:end].rstrip()
        tokens = run.tokenizer.with_prefix(run.tokenizer.encode(text))[None]
        if name == "before" and fact.value[0].isdigit():
            continue  # A piece of its own for the space stands between.
        hidden = run.model(tokens, np.arange(tokens.shape[1])[None], np.ones_like(tokens))
        np.testing.assert_allclose(vectors[name][-1], np.asarray(hidden)[0, -1], rtol=1e-4, atol=1e-5)
