"""The entries of a small dense index, for the tests of it."""

from __future__ import annotations

from lacy_jax.cascade.entries import Entry

FACTS = [
    Entry("Ada Bell", "birth_place", value="Oslo"),
    Entry("Ada Bell", "award", value="Orkla Medal"),
    Entry("Ada Bell", "award", value="Polar Prize"),
    Entry("Bea Crane", "birth_place", value="New York City"),
]
SPAN = Entry("Cy Dent", context="Cy Dent was a painter who lived in", value="Hull")
PASSAGE = Entry("Bea Crane", context="Bea Crane was a painter. She worked at Orkla Works in spring.")
