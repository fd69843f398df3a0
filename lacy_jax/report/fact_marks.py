"""The places in a text that FActScore verdicts belong to, so that a page can show them there.

An atomic fact is a sentence of its own; its last words ("... was born in Oslo") are searched for in the sentence that
it was made from. A fact that cannot be placed is counted but not drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax.errors import DataError
from lacy_jax.evaluation.factscore.formats import output_path, read_entries
from lacy_jax.evaluation.world_facts import (
    JudgedFact,
    JudgedText,
    as_record,
    judged_text,
    origin_of,
    spans_of,
)
from lacy_jax.labels.keywords import FUNCTION_WORDS

_WORD = re.compile(r"\w[^\s]*")
Verdict = tuple[str, str, bool]
"""(sentence, atomic fact made from it, whether it is supported)."""


def read_verdicts(path: epath.PathLike) -> tuple[dict[str, list[Verdict]], str]:
    """{text: verdicts} and the judge's name, from the files of `run_factscore`; texts without verdicts are left out.

    Args:
      path: the texts with their atomic facts; the scores are in a file beside it.

    Raises:
      DataError: a file is missing or damaged, or the scores belong to other texts.
    """
    entries = read_entries(path)
    try:
        scores = json.loads(output_path(path).read_text())
        decisions, judge = list(scores["decisions"]), str(scores.get("judge", ""))
        supported = [[one["is_supported"] for one in decided or ()] for decided in decisions]
        if not all(value in (True, False, None) for values in supported for value in values):
            raise ValueError("a verdict that is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{output_path(path)}: not a FActScore output ({error})") from None
    if len(decisions) != len(entries):
        raise DataError(f"{output_path(path)}: {len(decisions)} decisions for {len(entries)} texts")
    found = {}
    for entry, decided in zip(entries, supported, strict=True):
        atoms = [(sentence, fact.text) for sentence, facts, _ in entry.sentences or () for fact in facts]
        if decided and len(decided) == len(atoms):
            found[entry.output] = [
                (sentence, atom, bool(verdict))
                for (sentence, atom), verdict in zip(atoms, decided, strict=True)
                if verdict is not None
            ]
    return found, judge


def mark_text(record: Mapping[str, Any] | Any, verdicts: Mapping[str, Sequence[Verdict]]) -> JudgedText:
    """One generation with the verdicts on its facts; facts that are not found have the place [0, 0).

    Raises:
      DataError: the record lacks a field of a generation.
    """
    item = as_record(record)
    text, spans = item["prompt"] + item["text"], spans_of(item)
    facts = []
    at = 0
    for sentence, atom, supported in verdicts.get(text, ()):
        start, end = place(atom, sentence, item["prompt"])
        begin = text.find(sentence, at)
        if begin < 0 or end <= start:
            start = end = 0
        else:
            at, start, end = begin, start + begin, end + begin
        origin = origin_of(start, end, spans) if end > start else ""
        facts.append(JudgedFact(start, end, item["prompt"], atom, atom, supported, origin, False))
    return judged_text(item, item["prompt"], facts)


def place(atom: str, sentence: str, topic: str = "") -> tuple[int, int]:
    """Characters [start, end) of what a fact states, in the sentence that it was made from; (0, 0) if not found.

    This is the longest ending of the fact, in whole words, that occurs in the sentence, from its first name or number on
    (not counting the topic's own name); if it has none, without leading function words.
    """
    words = atom.rstrip(".!? ").split()
    for first in range(len(words)):
        ending = r"\s+".join(map(re.escape, words[first:]))
        if match := re.search(rf"(?<!\w){ending}(?!\w)", sentence):
            return _value(sentence, *match.span(), set(topic.split()))
    return 0, 0


def _value(sentence: str, start: int, end: int, topic: set[str]) -> tuple[int, int]:
    words = list(_WORD.finditer(sentence, start, end))
    while len(words) > 1 and words[0][0] in topic:
        words.pop(0)
    named = next((n for n, word in enumerate(words) if word[0][0].isupper() or word[0][0].isdigit()), None)
    if named is None:
        while len(words) > 1 and words[0][0] in FUNCTION_WORDS:
            words.pop(0)
    return words[named or 0].start() if words else start, end
