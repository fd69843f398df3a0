"""Where text comes from: files, TFDS datasets, and an embedded world whose every fact is known."""

from lacy_jax.corpus.document import Document, Fact
from lacy_jax.corpus.grammar import Statement
from lacy_jax.corpus.open import READERS, Corpus, Reader, from_files, open_corpus, world_of
from lacy_jax.corpus.world import Person, World

__all__ = [
    "READERS",
    "Corpus",
    "Document",
    "Fact",
    "Person",
    "Reader",
    "Statement",
    "World",
    "from_files",
    "open_corpus",
    "world_of",
]
