"""What counts as a first mention (`labels.first_mention`): the first of a document, or of each window of it.

A repeat states nothing, because it can be copied from the context (arXiv:2602.12005 §3). The paper speaks of documents; a
model sees its training window. A document's windows are counted from its first token; where rows are cut out of packed
documents they begin elsewhere, but are as long. The title is given in the first window only.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools

import numpy as np
from jaxtyping import Int32

from lacy_jax.corpus.document import Document
from lacy_jax.errors import ConfigError
from lacy_jax.labels.mentions import first_mentions
from lacy_jax.labels.spans import Labeller, Labels, Span
from lacy_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Counting:
    """One way to count first mentions; `form`: how the value is written."""

    name: str
    form: str
    description: str


FIRST_MENTIONS = Registry("first mention", (
    Counting("document", "document", "a mention is factual if it is the first in its document"),
    Counting("window", "window:TOKENS", "or if the tokens of its window, counted from the document's start, have none before it"),
))  # fmt: skip
_AGAIN = "again"
"""The reason of a repeat that is the first in its window."""


class WindowLabeller:
    """Another labeller whose first mentions are counted anew every `window` tokens (`label_pieces`)."""

    def __init__(self, labeller: Labeller, window: int):
        self._labeller, self.window = labeller, window
        # In front, because a version that another one begins with may be an older note of the same labels.
        self.name, self.version = labeller.name, f"window{window}+{labeller.version}"

    def label(self, document: Document) -> Labels:
        """The document's labels before windows are counted, for which tokens are needed."""
        return self._labeller.label(document)


def counted(labeller: Labeller, first_mention: str) -> Labeller:
    """The labeller, with first mentions counted as `labels.first_mention` says.

    Raises:
      ConfigError: it says nothing that is known, or no whole number of tokens above 0.
    """
    kind = FIRST_MENTIONS.named(first_mention).name
    if kind == "document":
        return labeller
    tokens = first_mention.partition(":")[2]
    if not tokens.isdecimal() or not int(tokens):
        raise ConfigError(
            f"config.labels.first_mention = {first_mention!r}: expected window:TOKENS, such as window:256"
        )
    return WindowLabeller(labeller, int(tokens))


def label_pieces(labeller: Labeller, document: Document, starts: Int32[np.ndarray, " n"]) -> Labels:
    """Labels of a document whose tokens begin at the characters `starts`."""
    labels = labeller.label(document)
    if not isinstance(labeller, WindowLabeller):
        return labels
    return in_windows(labels, document.text, starts[labeller.window :: labeller.window].tolist())


def in_windows(labels: Labels, text: str, begins: list[int]) -> Labels:
    """`labels` with the repeats that are first mentions in their window as facts.

    Args:
      begins: the characters at which the second window and those after it begin.
    """
    found = [*zip(labels.factual, labels.reasons or ("",) * len(labels.factual), strict=True)]
    found = sorted([*found, *((span, _AGAIN) for span in labels.repeats)])
    firsts: set[Span] = set()
    for number, group in itertools.groupby(found, lambda item: bisect.bisect_right(begins, item[0][0])):
        if number:
            firsts.update(first_mentions(text, "", ((*span, reason) for span, reason in group)).factual)
    facts = [(span, reason) for span, reason in found if reason != _AGAIN or span in firsts]
    factual = tuple(span for span, _ in facts)
    return Labels(
        factual,
        tuple(_outside(labels.nongrammatical, factual)),
        tuple(reason for _, reason in facts) if labels.reasons else (),
        tuple(span for span, reason in found if reason == _AGAIN and span not in firsts),
    )


def _outside(spans: tuple[Span, ...], others: tuple[Span, ...]) -> list[Span]:
    """The spans that overlap none of the others; both are sorted and disjoint."""
    ends = [end for _, end in others]
    kept = []
    for start, end in spans:
        at = bisect.bisect_right(ends, start)
        if at == len(others) or others[at][0] >= end:
            kept.append((start, end))
    return kept
