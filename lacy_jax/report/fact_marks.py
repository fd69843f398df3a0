"""FActScore verdicts put where they belong in a text, so that a page can show them there.

An atomic fact is a sentence of its own; what it states last ("... was born in Oslo") is looked for in the sentence
that it was made of. A fact that cannot be placed is counted and not drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax.errors import DataError
from lacy_jax.evaluation.factscore.formats import output_path, read_entries
from lacy_jax.evaluation.world_facts import JudgedFact, JudgedText, as_record, origin_of
from lacy_jax.labels.keywords import FUNCTION_WORDS

_WORD = re.compile(r"\w[^\s]*")
Verdict = tuple[str, str, bool]
"""(sentence, atomic fact made of it, supported)."""


def read_verdicts(path: epath.PathLike) -> tuple[dict[str, list[Verdict]], str]:
    """{text: verdicts} and the judge's name, of the files that `run_factscore` wrote; texts without verdicts have none.

    Args:
      path: the texts with their atomic facts; the scores lie beside them.

    Raises:
      DataError: missing, damaged, or scores of other texts.
    """
    entries = read_entries(path)
    try:
        scores = json.loads(output_path(path).read_text())
        decisions, judge = list(scores["decisions"]), str(scores.get("judge", ""))
        supported = [[one["is_supported"] for one in decided or ()] for decided in decisions]
        if not all(value in (True, False, None) for values in supported for value in values):
            raise ValueError("a verdict that is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{output_path(path)}: no FActScore output ({error})") from None
    if len(decisions) != len(entries):
        raise DataError(f"{output_path(path)}: {len(decisions)} decisions about {len(entries)} texts")
    found = {}
    for entry, decided in zip(entries, supported, strict=True):
        atoms = [(sentence, fact.text) for sentence, facts, _ in entry.sentences or () for fact in facts]
        if decided and len(decided) == len(atoms):
            found[entry.output] = [
                (sentence, atom, bool(verdict))
                for (sentence, atom), verdict in zip(atoms, decided, strict=True)
                if verdict is not None  # No verdict is none.
            ]
    return found, judge


def mark_text(record: Mapping[str, Any] | Any, verdicts: Mapping[str, Sequence[Verdict]]) -> JudgedText:
    """One generation with the verdicts on its facts; the places of those not found are [0, 0).

    Raises:
      DataError: the record lacks a field of a generation.
    """
    item = as_record(record)
    text, given = item["prompt"] + item["text"], len(item["prompt"])
    spans = tuple((start + given, end + given, who) for start, end, who in item["spans"])
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
    origins = item["origins"]
    return JudgedText(
        unit=item["prompt"],
        text=text,
        prompt_length=given,
        facts=tuple(facts),
        spans=spans,
        tokens=len(origins),
        partner_tokens=sum(who == "partner" for who in origins),
        budget_met=bool(item.get("budget_met", True)),
        partner_failures=int(item.get("partner_failures", 0)),
    )


def place(atom: str, sentence: str, topic: str = "") -> tuple[int, int]:
    """Characters [start, end) of what a fact states, in the sentence it was made of; (0, 0) if it is not there.

    That is the longest ending of the fact, in whole words, that the sentence has: from its first name or number on
    (the topic's own name aside), or without function words where it has none.
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
