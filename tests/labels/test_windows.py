"""First mentions of a document, or of each window of its tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.world import World
from lacy_jax.errors import ConfigError
from lacy_jax.labels import RuleLabeller, WorldLabeller, get_labeller, label_pieces
from lacy_jax.labels.inspect import label_document
from lacy_jax.labels.windows import WindowLabeller

TEXT = "Ada Bell moved to Oslo in 1990. Oslo was cold. Later Bell left Oslo for Bergen, and Oslo missed her."
DOCUMENT = Document("1", TEXT, "Ada Bell")
STARTS = np.array([match.start() for match in re.finditer(r"\S+", TEXT)], np.int32)


def labelled(window: int) -> list[str]:
    labeller = WindowLabeller(RuleLabeller(), window) if window else RuleLabeller()
    return [TEXT[start:end] for start, end in label_pieces(labeller, DOCUMENT, STARTS).factual]


@pytest.mark.parametrize(
    ("window", "facts"),
    [
        (0, ["Oslo", "1990", "Bergen"]),
        (100, ["Oslo", "1990", "Bergen"]),
        (7, ["Oslo", "1990", "Oslo", "Bell", "Bergen", "Oslo"]),  # From "Oslo was cold." on, and from "for Bergen" on.
        (10, ["Oslo", "1990", "Bell", "Oslo", "Bergen"]),
    ],
)  # fmt: skip
def test_a_repeat_is_a_fact_where_its_window_has_none_before_it(window, facts):
    assert labelled(window) == facts


def test_labels_stay_sorted_disjoint_and_whole():
    plain, windowed = (
        RuleLabeller().label(DOCUMENT),
        label_pieces(WindowLabeller(RuleLabeller(), 7), DOCUMENT, STARTS),
    )
    assert sorted([*plain.factual, *plain.repeats]) == sorted([*windowed.factual, *windowed.repeats])
    assert list(windowed.factual) == sorted(windowed.factual)
    assert len(windowed.reasons) == len(windowed.factual)
    assert "again" in windowed.reasons
    assert not set(windowed.nongrammatical) & set(windowed.factual)
    covered = [
        at for spans in (windowed.factual, windowed.nongrammatical) for a, b in spans for at in range(a, b)
    ]
    assert len(covered) == len(set(covered))


def test_the_config_chooses_and_the_version_tells():
    config = get_default_config().unlock()
    config.labels.labeller = "rules"
    plain = get_labeller(config, "jsonl")
    assert type(plain) is RuleLabeller
    config.labels.first_mention = "window:7"
    windowed = get_labeller(config, "jsonl")
    assert (windowed.name, windowed.version) == (plain.name, f"window7+{plain.version}")
    shown = label_document(DOCUMENT, windowed)
    assert [text for text, _ in shown.facts].count("Oslo") > 1
    for wrong in ("window", "window:", "window:0", "window:x", "paragraph"):
        config.labels.first_mention = wrong
        with pytest.raises(ConfigError, match=r"config\.labels\.first_mention = "):
            get_labeller(config, "jsonl")


def test_exact_labels_have_no_repeats_and_stay():
    document = World(3).text(0, 0)
    starts = np.arange(len(document.text), dtype=np.int32)
    exact = WorldLabeller()
    assert label_pieces(WindowLabeller(exact, 5), document, starts).factual == exact.label(document).factual
