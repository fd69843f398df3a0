"""LMLM's annotated text (arXiv:2505.15962) as a corpus with the labels of a judge.

Before each value that should be looked up, an LLM has inserted a call and its answer, `[dblookup('Ada Bell', 'Birth
Place') -> Oslo] Oslo`, or the same with special tokens. The calls are removed; the words of the text that state the
value become the range that the judge flagged. If the text words a value differently ("12 June 1945" for "June 12,
1945"), those of its words that follow are flagged; if the text does not state the value, nothing is flagged and the
call is counted.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lacy_jax.corpus.compression import read_items
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.readers import BadRecord, Record, make_document, read_jsonl
from lacy_jax.corpus.tables import read_table

ANNOTATED = "annotated_text"
"""The field that holds the text with calls."""
_FIELDS = ("id", "title", "text", "original_dataset_ids")
_CALL = re.compile(
    r"\[\s*dblookup\(\s*(?P<q>['\"])(?P<entity>.*?)(?P=q)\s*,\s*(?P<r>['\"])(?P<relation>.*?)(?P=r)\s*\)\s*->\s*"
    r"|<\|db_entity\|>\s*(?P<entity2>.*?)<\|db_relationship\|>\s*(?P<relation2>.*?)<\|db_return\|>\s*(?P<value2>.*?)<\|db_end\|>\s?",
    re.DOTALL,
)
_BEGUN = re.compile(r"\[\s*dblookup\b|<\|db_entity\|>")
_LONGEST = 2000
"""Most characters of a call; a longer one was never closed."""
_WORD = re.compile(r"\w+")
_BESIDE = 3
"""Words that may stand between two words of a value: "Melitopol in the Russian Empire"."""
_SMALL = frozenset("a an and at by for from in of on or the to".split())


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """One call: who and what was asked for, the answer, and where in the clean text it stood."""

    entity: str
    relation: str
    value: str
    place: int


def with_lookup(text: str, lookup: Lookup) -> str:
    """A text with one call before the value at the lookup's place; what `without_lookups` reads."""
    call = f"<|db_entity|> {lookup.entity}<|db_relationship|> {lookup.relation}<|db_return|> {lookup.value}<|db_end|> "
    return text[: lookup.place] + call + text[lookup.place :]


def read_lmlm(path: str, text_field: str = ANNOTATED) -> Iterator[Record]:
    """Records of a file with annotated documents: JSON (`{"examples": [...]}` or a list), JSONL, Parquet or Arrow.

    Raises:
      DataError: it cannot be read, or has another form.
    """
    stem = re.sub(r"\.(?:gz|bz2|xz|zst)$", "", path.lower())
    make = functools.partial(document_of_annotated, text_field=text_field)
    if stem.endswith((".parquet", ".arrow")):
        yield from read_table(path, (text_field, *_FIELDS), make)
    elif stem.endswith(".jsonl"):
        yield from read_jsonl(path, text_field, make)
    else:
        name = os.path.basename(path)
        for number, example in enumerate(read_items(path, "examples")):
            yield Record(f"{path}:{number}", functools.partial(_parse, example, f"{name}:{number}", make))


def _parse(example: Any, default_id: str, make: Any) -> Document | None:
    if not isinstance(example, dict):
        raise BadRecord(f"is a JSON {type(example).__name__}, not an object")
    return make(example, default_id)


def document_of_annotated(row: Mapping[str, Any], default_id: str, text_field: str = ANNOTATED) -> Document:
    """The document of one example: clean text, its title if the source text begins with one, and what was flagged.

    Raises:
      BadRecord: there is no annotated text, or it has nothing but calls.
    """
    annotated = row.get(text_field)
    make_document(default_id, annotated, "", text_field)  # Checks that it is text.
    text, lookups, broken = without_lookups(str(annotated))
    spans: list[tuple[int, int]] = []
    unstated = 0
    for lookup in lookups:
        found = stated(text, lookup.place, lookup.value)
        unstated += not found
        spans += found
    kinds = {"looked-up values that the text does not state": unstated, "broken lookups": broken}
    document = make_document(_id_of(row, default_id), text, _title_of(row), text_field)
    dropped = tuple((kind, count) for kind, count in kinds.items() if count)
    return dataclasses.replace(document, judge=_merged(spans), dropped=dropped)


def without_lookups(annotated: str) -> tuple[str, list[Lookup], int]:
    """(text without calls, the calls, how many broken calls were left out)."""
    kept: list[str] = []
    lookups: list[Lookup] = []
    at = length = broken = 0
    for begun in _BEGUN.finditer(annotated):
        if begun.start() < at:
            continue
        before = annotated[at : begun.start()]
        kept.append(before)
        length += len(before)
        call = _CALL.match(annotated, begun.start(), begun.start() + _LONGEST)
        if call is not None and call["entity2"] is not None:
            lookups.append(
                Lookup(call["entity2"].strip(), call["relation2"].strip(), call["value2"].strip(), length)
            )
            at = call.end()
            continue
        end = _closed(annotated, call.end() if call else begun.end())
        if call is not None and end is not None:
            value = annotated[call.end() : end].strip()
            lookups.append(Lookup(_plain(call["entity"]), _plain(call["relation"]), _plain(value), length))
        else:
            broken += 1
        at = len(annotated) if end is None else end + 1
        # The space after a call belongs to it: "an [...] American painter".
        at += annotated[at : at + 1] == " "
    kept.append(annotated[at:])
    return "".join(kept), lookups, broken


def _closed(text: str, start: int) -> int | None:
    """Position of the bracket that closes the call with the value at `start`; values may contain brackets, too."""
    depth = 0
    for place in range(start, min(start + _LONGEST, len(text))):
        if text[place] == "[":
            depth += 1
        elif text[place] == "]":
            if not depth:
                return place
            depth -= 1
    place = text.find("]", start, start + _LONGEST)
    return None if place < 0 else place


def _plain(text: str) -> str:
    return text.replace("\\'", "'").replace('\\"', '"').strip().strip("\"'").strip()


def stated(text: str, place: int, value: str) -> list[tuple[int, int]]:
    """Character ranges of the words at `place` that state the value: all its words, or those that follow soon."""
    if value and text[place : place + len(value)].casefold() == value.casefold():
        return [(place, place + len(value))]
    words = {word.casefold() for word in _WORD.findall(value)}
    content = words - _SMALL or words
    following = [match for match, _ in zip(_WORD.finditer(text, place), range(len(words) + 3 * _BESIDE))]
    line = text.find("\n", place)
    following = [match for match in following if line < 0 or match.start() < line]
    hits = [index for index, match in enumerate(following) if match[0].casefold() in content]
    hits = [hit for number, hit in enumerate(hits) if not number or hit - hits[number - 1] <= _BESIDE + 1]
    if (
        not hits
        or hits[0] > 2 * _BESIDE
        or len({following[hit][0].casefold() for hit in hits}) * 2 < len(content)
    ):
        return []
    return [following[hit].span() for hit in hits]


def _merged(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def _id_of(row: Mapping[str, Any], default_id: str) -> str:
    """The example's own id, or that of the document it was made from."""
    given = row.get("id") or row.get("original_dataset_ids")
    return str(given) if isinstance(given, (str, int)) else default_id


def _title_of(row: Mapping[str, Any]) -> str:
    """The given title, or the source's first line if an empty line follows, as in the Wikipedia part of dolmino."""
    title, text = row.get("title"), row.get("text")
    if isinstance(title, str) and title:
        return title
    first, blank, _ = text.partition("\n\n") if isinstance(text, str) else ("", "", "")
    return first.strip() if blank and "\n" not in first and len(first) <= 200 else ""
