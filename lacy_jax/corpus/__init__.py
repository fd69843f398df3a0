"""Where text comes from: files, TFDS datasets, and an embedded world whose every fact is known."""

from lacy_jax.corpus.document import Document, Fact
from lacy_jax.corpus.grammar import Statement
from lacy_jax.corpus.open import Corpus, open_corpus
from lacy_jax.corpus.world import Person, World

__all__ = ["Corpus", "Document", "Fact", "Person", "Statement", "World", "open_corpus"]
