"""The classes that the bundled tagger predicts, one per word, and how a `Parse` for the full rules is built from them.

The rules (`spacy_rules`) read tags, entities and noun chunks of a whole English pipeline. A small network need not
predict all of that: a word begins (`B-GPE`) or continues (`I-GPE`) an entity that a rule knows, or has one of the
`OUTSIDE` classes, which are the part of the tag that the rules look at.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from lacy_jax.labels.parse import Entity, Parse, Token
from lacy_jax.labels.spans import Span
from lacy_jax.labels.table import FACTUAL_ENTITIES

OUTSIDE = ("-", "NN", "JJ", "VB", "RB", "CD", "NNP")
"""Classes of words outside entities: grammar and punctuation, then content words by tag; `NNP` is a proper noun in a noun chunk."""

CLASSES: tuple[str, ...] = OUTSIDE + tuple(
    f"{place}-{label}" for label in sorted(FACTUAL_ENTITIES) for place in "BI"
)
"""All classes; the index is what the network predicts."""

_INDEX = {name: index for index, name in enumerate(CLASSES)}
_NOMINAL = frozenset(_INDEX[name] for name in ("NN", "JJ", "CD", "NNP"))
_GRAMMAR, _PROPER = _INDEX["-"], _INDEX["NNP"]
_FIRST_ENTITY = len(OUTSIDE)
_KINDS = np.array(
    ["N" if name == "NNP" else "O" for name in OUTSIDE] + [name[0] for name in CLASSES[_FIRST_ENTITY:]]
)
"""Of each class: begins an entity, continues one, a proper noun outside them, or none of these."""

CHOICE_VERSION = "2"
"""Of `most_likely`; part of the version of every label that is made by it."""


def most_likely(scores: Float[np.ndarray, "n classes"]) -> list[int]:
    """The class of each word, chosen from the general to the particular, each time by the sum of probabilities: a name
    (an entity or a proper noun) or not; which of the two; the entity's begin or not; and of what is left the best one.

    The best of all classes would miss names whose probability is spread over several labels, and F1 would be 0.001 lower (docs/labels.md).
    """
    odds = np.exp(scores - scores.max(1, keepdims=True))
    begin, inside, proper, other = (odds[:, kind == _KINDS].sum(1) for kind in "BINO")
    entity = begin + inside
    kind = np.where(begin > inside, "B", "I")
    kind = np.where(entity >= proper, kind, "N")
    kind = np.where(entity + proper > other, kind, "O")
    return np.where(kind[:, None] == _KINDS, scores, -np.inf).argmax(1).tolist()


def classes_of_parse(parse: Parse, spans: Sequence[Span]) -> list[int]:
    """The class of each word in `spans` (text order) according to a full parse, which may split tokens differently."""
    starts = [token.start for token in parse.tokens]
    entities = [entity for entity in parse.entities if entity.label in FACTUAL_ENTITIES]
    found, e, c = [], 0, 0
    begun = -1  # The entity that the last word belonged to.
    for start, end in spans:
        while e < len(entities) and entities[e].end <= start:
            e += 1
        while c < len(parse.chunks) and parse.chunks[c][1] <= start:
            c += 1
        if e < len(entities) and entities[e].start < end:
            found.append(_INDEX[("I-" if begun == e else "B-") + entities[e].label])
            begun = e
            continue
        token = parse.tokens[max(bisect.bisect_right(starts, start) - 1, 0)]
        name = next((name for name in OUTSIDE[1:6] if token.tag.startswith(name)), "-")
        chunk = c < len(parse.chunks) and parse.chunks[c][0] <= start
        if token.tag.startswith("NNP") and chunk and not parse.text[start:end].islower():
            name = "NNP"
        found.append(_INDEX[name])
    return found


def parse_of_classes(text: str, spans: Sequence[Span], classes: Sequence[int]) -> Parse:
    """The parse that the rules read, from one class per word: the inverse of `classes_of_parse`."""
    tokens = tuple(
        Token(start, end, CLASSES[index] if index < _FIRST_ENTITY else "NNP")
        for (start, end), index in zip(spans, classes)
    )
    return Parse(text, tokens, tuple(_entities(spans, classes)), tuple(_chunks(spans, classes)))


def _entities(spans: Sequence[Span], classes: Sequence[int]) -> Iterator[Entity]:
    """Runs of B-X I-X I-X. An I continues the entity before it, whatever its label, or begins a new one."""
    start = end = 0
    label = ""
    for span, index in zip(spans, classes):
        inside = index >= _FIRST_ENTITY
        if label and inside and CLASSES[index][0] == "I":
            end = span[1]
            continue
        if label:
            yield Entity(start, end, label)
        (start, end), label = span, CLASSES[index][2:] if inside else ""
    if label:
        yield Entity(start, end, label)


def _chunks(spans: Sequence[Span], classes: Sequence[int]) -> Iterator[Span]:
    """Noun chunks without their articles: runs of nominal words and entities, with modifiers between them."""
    start = end = -1
    for span, index in zip(spans, classes):
        if index in _NOMINAL or index >= _FIRST_ENTITY:
            start = span[0] if start < 0 else start
            end = span[1]
        elif index == _GRAMMAR:
            if end > 0:
                yield start, end
            start = end = -1
        elif start < 0:
            start = span[0]
    if end > 0:
        yield start, end
