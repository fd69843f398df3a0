"""Two people with articles, and a text about one of them, for tests of FActScore."""

from __future__ import annotations

import pathlib

from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore import KnowledgeSource

ADA = (
    "Ada Bell (7 May 1956 – 3 June 2001) was a Norwegian chemist. She studied at Heron University. "
    "Bell joined Orkla Works in 1980, where she led the paint laboratory. She won the Polar Prize in 1990."
)
BEA = "Bea Crane is a British painter from Hull. Her portraits hang in the York Gallery."
TEXT = "Ada Bell was a Norwegian chemist. She was born on 7 May 1956 and won the Nobel Prize in 1999."


def knowledge_of_people(folder: pathlib.Path) -> KnowledgeSource:
    """A database of the two articles, in a folder."""
    documents = [Document("1", ADA, "Ada Bell"), Document("2", BEA, "Bea Crane (painter)")]
    return KnowledgeSource.build(folder / "facts.db", documents)
