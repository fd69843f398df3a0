"""Re-DocRED as running text with the places of its human-annotated entities; as a command, its texts as JSONL.

    python benchmarks/redocred.py redocred_dev.json.xz > texts.jsonl

The annotation (MIT, tonytan48/Re-DocRED) is on lists of words. `read_redocred` writes them as a text would have them,
with no space before a comma, so that labellers see what they would see elsewhere.

`parse_texts.py` parses them, with any spaCy, for `label_quality.py --redocred-parses`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lacy_jax.corpus.compression import open_binary
from lacy_jax.labels.layout import subject_name

_NO_SPACE_BEFORE = frozenset([*",.;:!?)]%", "'s", "'", "’s", "n't", "..."])
_NO_SPACE_AFTER = frozenset("([$£€#")


@dataclasses.dataclass(frozen=True)
class AnnotatedText:
    """A text and the characters [start, end) of the first mention of each entity but its subject."""

    title: str
    text: str
    first_mentions: tuple[tuple[int, int], ...]


def read_redocred(path: pathlib.Path | str) -> Iterator[AnnotatedText]:
    """The documents of a Re-DocRED file."""
    with open_binary(str(path)) as file:
        documents = json.load(file)
    for document in documents:
        text, places = _running_text(document["sents"])
        mentions = [_first(entity, places) for entity in document["vertexSet"]]
        subject = subject_name(document["title"])
        named = [{mention["name"] for mention in entity} for entity in document["vertexSet"]]
        kept = (span for span, names in zip(mentions, named) if subject not in names and span[0] > 0)
        yield AnnotatedText(document["title"], text, tuple(sorted(kept)))


def _first(entity: list[dict[str, Any]], places: list[list[tuple[int, int]]]) -> tuple[int, int]:
    mention = min(entity, key=lambda mention: (mention["sent_id"], mention["pos"][0]))
    words = places[mention["sent_id"]][mention["pos"][0] : mention["pos"][1]]
    return words[0][0], words[-1][1]


def _running_text(sentences: Sequence[Sequence[str]]) -> tuple[str, list[list[tuple[int, int]]]]:
    """The text, and the characters of each word of each sentence."""
    text, places, glued, quoted = "", [], True, False
    for sentence in sentences:
        spans = []
        for word in sentence:
            closes = word == '"' and quoted
            if not (glued or closes or word in _NO_SPACE_BEFORE):
                text += " "
            spans.append((len(text), len(text) + len(word)))
            text += word
            quoted ^= word == '"'
            glued = word in _NO_SPACE_AFTER or (word == '"' and quoted)
        places.append(spans)
    return text, places


if __name__ == "__main__":
    for annotated in read_redocred(sys.argv[1]):
        print(json.dumps({"title": annotated.title, "text": annotated.text}))
