"""What a labeller returns for a document: the characters that state a fact."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from lacy_jax.corpus.document import Document

Span = tuple[int, int]
"""Half-open character range [start, end) of a text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one document, as sorted, disjoint character spans.

    Attributes:
      factual: characters that state a fact for the first time in the document (arXiv:2602.12005 §3).
      nongrammatical: characters that are neither factual nor grammatical; feeds the `lacy_ignore` policy.
      reasons: for each span of `factual`, the name of the rule that fired ("PERSON", "DATE", "noun_chunk").
      repeats: characters where a rule fired on something the document (or its title) had stated before. Only
        `lacy inspect` shows them; no policy uses them.
    """

    factual: tuple[Span, ...]
    nongrammatical: tuple[Span, ...] = ()
    reasons: tuple[str, ...] = ()
    repeats: tuple[Span, ...] = ()


class Labeller(Protocol):
    """Turns documents into labels. Implementations are picklable or rebuilt per process by name."""

    @property
    def name(self) -> str:
        """Recorded in the dataset metadata, for example "spacy:en_core_web_sm"."""

    @property
    def version(self) -> str:
        """Version of rules and model together, for example "1+3.8.0"."""

    def label(self, document: Document) -> Labels:
        """Labels of one document; deterministic."""
