"""First mentions: what counts as a repeat of an earlier mention."""

from __future__ import annotations

import time

import pytest

from lacy_jax.labels.mentions import Mentions, normalise

NEW, REPEAT = True, False


@pytest.mark.parametrize(
    ("earlier", "later", "first"),
    [
        (["Jay Hayden"], "Hayden", REPEAT),  # surname after full name
        (["Jay Hayden"], "Jay", REPEAT),
        (["Jay Michael Hayden"], "Jay Hayden", REPEAT),
        (["Jay Hayden"], "Hayden's", REPEAT),  # possessive
        (["the Bass"], "Bass’s", REPEAT),
        (["OSLO"], "Oslo", REPEAT),  # case
        (["Malmö"], "Malmo", REPEAT),  # diacritics
        (["the United States"], "United States", REPEAT),  # article
        (["Jay", "Hayden"], "Jay Hayden", REPEAT),  # mentions end to end
        (["Hayden"], "Jay Hayden", NEW),  # it tells the given name
        (["New York"], "New York University", NEW),
        (["New Zealand", "Duke of York"], "New York", NEW),
        (["7 June", "March 2018"], "7 March", NEW),  # dates are distinct
        (["7 March 2018"], "7 March 2018", REPEAT),
        (["7 March 2018"], "March 7, 2018", NEW),
        (["1984"], "1985", NEW),
        (["1984"], "1984", REPEAT),
        ([], "?!", REPEAT),  # nothing is said
    ],
)
def test_first_mention(earlier, later, first):
    mentions = Mentions()
    for surface in earlier:
        assert mentions.is_first(surface)
    assert mentions.is_first(later) is first
    assert not mentions.is_first(later)


def test_the_subject_is_known_from_the_start():
    mentions = Mentions("Jay Hayden")
    assert not mentions.is_first("Hayden")
    assert mentions.is_first("Oslo")


@pytest.mark.parametrize(
    ("surface", "words"),
    [
        ("The University of Malmö's", ("university", "malmo")),
        ("of the", ("of", "the")),
        ("Łódź-based", ("łodz", "based")),
        ("—", ()),
    ],
)
def test_normalise(surface, words):
    assert normalise(surface) == words


def test_a_very_long_mention_costs_little():
    began = time.process_time()
    mentions = Mentions("a " * 5000, " ".join(map(chr, range(0x4E00, 0x6000))))
    assert mentions.is_first(" ".join(map(chr, range(0x4E00, 0x5000))))
    assert time.process_time() - began < 5
