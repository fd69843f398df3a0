"""Deletion by radius and by name, on an index small enough to see what each takes."""

from __future__ import annotations

import pytest
from word_encoder import WordEncoder

from lacy_jax.cascade import index_writer
from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.entries import Entry
from lacy_jax.evaluation.deletion_radius import Question, deletion_figures

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")

ENCODER = WordEncoder(dim=1024)  # Words are nearly at right angles.
FACTS = [
    Entry("Ada Bell", "birth_place", value="Oslo"),
    Entry("Ada Bell", "home_place", value="Rome"),
    Entry("Bea Crane", "birth_place", value="Hull"),
    Entry("Cy Dent", "height", value="2 m"),
]
QUESTIONS = [Question(e.title, e.value, f"{e.title}, {e.attribute.replace('_', ' ')}") for e in FACTS]


@pytest.fixture
def index(tmp_path):
    index_writer.build(tmp_path / "index", FACTS, ENCODER)
    opened = DenseIndex(tmp_path / "index", ENCODER)
    yield opened
    opened.close()


def test_a_radius_takes_the_neighbours_once_it_is_wide(index):
    figures = deletion_figures(index, QUESTIONS, [0], "dense", radii=(1.1, 0.999, 0.3, -1.0))
    assert (figures["answered"], figures["targets"]) == (1.0, 1)
    nothing, exact, wide, everything = figures["curve"]
    assert (nothing["efficacy"], nothing["entries"], nothing["same"], nothing["near"]) == (0.0, 0.0, 0.0, 0.0)
    assert (exact["efficacy"], exact["entries"], exact["same"], exact["near"]) == (1.0, 1.0, 0.0, 0.0)
    assert wide["efficacy"] == wide["same"] == 1.0  # Three of four words are the same.
    assert wide["near"] == 0.5  # Bea's birth place, not Cy's height.
    assert everything["entries"] == 4.0
    assert everything["near"] == 1.0
    assert figures["gap"] == 0.0
    assert figures["named"]["efficacy"] == figures["named"]["entries"] == 1.0
    assert figures["named"]["same"] == figures["named"]["near"] == 0.0
    assert len(index) == 4


def test_a_gap_that_no_radius_closes(tmp_path):
    """Two people's entries stand nearer to the question than the one that answers it, which only the title tells."""
    entries = [
        Entry("Ada Bell", context="lived long in", value="Oslo"),
        Entry("Bea Crane", context="Ada Bell lived in", value="Hull"),
    ]
    index_writer.build(tmp_path / "spans", entries, ENCODER)
    index = DenseIndex(tmp_path / "spans", ENCODER)
    questions = [
        Question("Ada Bell", "Oslo", "Ada Bell lived in"),
        Question("Bea Crane", "Hull", "Bea Crane, Ada Bell lived in"),
    ]
    figures = deletion_figures(index, questions, [0], "dense", radii=(0.99, 0.2))
    assert figures["answered"] == 1.0
    assert [row["efficacy"] for row in figures["curve"]] == [0.0, 1.0]
    assert [row["near"] for row in figures["curve"]] == [1.0, 1.0]
    assert figures["gap"] == 1.0
    assert (figures["named"]["efficacy"], figures["named"]["near"]) == (1.0, 0.0)
    index.close()


def test_what_is_not_answered_is_not_deleted(index):
    unknown = Question("Dee Eck", "Bergen", "Dee Eck, shoe size")
    figures = deletion_figures(index, [*QUESTIONS, unknown], [4], "dense")
    assert figures["targets"] == 0
    assert figures["answered"] == 4 / 5
    assert figures["gap"] is figures["named"]["efficacy"] is figures["curve"][0]["same"] is None
