"""Documents as partner: passages are retrieved for each text, and the next words are taken from them.

There are two ways. Extractive: find the place in the passages where the preceding words best match the text's last
words, and return what follows. Prompted: put the passages before the text and let another partner (a language model)
continue it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence

from lacy_jax.cascade.partners.base import (
    PARTNERS,
    Opening,
    Partner,
    PartnerKind,
    check_reach,
    cut,
    first_span,
    partner_behind,
)
from lacy_jax.cascade.passages import Passage, PassageIndex, open_index, words
from lacy_jax.cascade.stated import folded

_SUBJECT_WORDS = 6
_RECENT_WORDS = 20
_LONGEST_MATCH = 12
LEAST_EVIDENCE = 6.0
"""The words before the place must carry at least this much information (nats, by word frequencies in the passages
found): about two common words, or one rare one."""
_TOKEN = re.compile(r"\w+|[^\w\s]")


def query_of(text: str) -> str:
    """The search query for a text: its first words, where its subject stands, and its last ones."""
    parts = text.split()
    return " ".join([*parts[:_SUBJECT_WORDS], *parts[_SUBJECT_WORDS:][-_RECENT_WORDS:]])


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place in a passage from which a text may continue."""

    evidence: float
    rank: int  # The passage's rank; the best has 0.
    continuation: str


class DocumentPartner(Partner):
    """Answers out of a `PassageIndex`, by extraction or through another partner.

    Args:
      index: the index of the documents.
      reach: "token" (a word or a mark), "word", or "span" (`first_span`); with `through`, that partner's own counts.
      through: a partner that gets the passages before the text; None = extractive.
      count: passages used per text.
    """

    def __init__(
        self, index: PassageIndex, reach: str = "span", *, through: Partner | None = None, count: int = 5
    ):
        self.index, self.through, self.count = index, through, count
        self.reach = check_reach(reach) if through is None else through.reach
        self.name = "documents" if through is None else f"documents, {through.name}"

    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """See `Partner.complete`; "" where no passage leads up to a text's end."""
        found = [[passage for passage, _ in self.index.search(query_of(text), self.count)] for text in texts]
        if self.through is not None:
            return self.through.complete([prompted(p, t) for p, t in zip(found, texts, strict=True)])
        return [self._extract(passages, text) for passages, text in zip(found, texts, strict=True)]

    def used(self) -> tuple[int, float]:
        """As counted by the partner behind."""
        return (0, 0.0) if self.through is None else self.through.used()

    def close(self) -> None:
        """Close the partner behind."""
        if self.through is not None:
            self.through.close()

    def _extract(self, passages: Sequence[Passage], text: str) -> str:
        continuation = extract(passages, text, inside_words=self.reach == "token")
        return first_span(continuation) if self.reach == "span" else cut(continuation, self.reach)


def prompted(passages: Sequence[Passage], text: str) -> str:
    """The passages, the best one last, then the text to be continued."""
    shown = "".join(f"{passage.title}: {passage.text}\n\n" for passage in reversed(passages))
    return shown + text


def extract(passages: Sequence[Passage], text: str, *, inside_words: bool = False) -> str:
    """The words that follow the best matching place in the passages; "" if no place is good enough.

    At a place, the words before it are compared with the text's last words; the more information the equal words carry,
    the better the place. A passage with a title must be about the text's subject: half of the title's words must be
    among the text's first words. Facts about the wrong person are worse than none.

    Args:
      inside_words: the text may end inside a word; the answer then completes it.
    """
    tail = [folded(match[0]) for match in _TOKEN.finditer(text[-400:])][-_LONGEST_MATCH:]
    rarity = _rarity(passages)
    places = []
    for rank, passage in enumerate(passages):
        about = share_of_title(passage.title, text)
        if passage.title and about < 0.5:
            continue
        tokens = list(_TOKEN.finditer(passage.text))
        plain = [folded(token[0]) for token in tokens]
        for at, token in enumerate(tokens):
            evidence = _evidence(plain, at, tail, rarity, inside_words)
            if evidence >= LEAST_EVIDENCE:
                rest = passage.text[token.start() + _length_of(tail[-1], token[0]) :]
                places.append(_Place(evidence * (1.0 + about), rank, rest))
    best = max(places, key=lambda place: (place.evidence, -place.rank), default=None)
    if best is None:
        return ""
    return best.continuation.lstrip() if text[-1:].isspace() else best.continuation


def share_of_title(title: str, text: str) -> float:
    """The share of a title's words that are among a text's first words: from a half on, the text counts as about it."""
    wanted = set(words(title))
    opening = set(words(" ".join(text.split()[: 2 * _SUBJECT_WORDS])))
    return len(wanted & opening) / len(wanted) if wanted else 0.0


def _length_of(beginning: str, word: str) -> int:
    """How many characters of `word` fold to `beginning`; folding may change the number: "İ" is two, "ß" is "ss"."""
    lengths = (n for n in range(len(word) + 1) if folded(word[:n]) == beginning)
    return max(lengths, default=len(word))


def _evidence(
    passage: Sequence[str], at: int, tail: Sequence[str], rarity: dict[str, float], inside_words: bool
) -> float:
    """Information in the words up to and including passage[at] that equal the last words of `tail`.

    A word that the text has only begun adds nothing.
    """
    total = 0.0
    for back in range(min(len(tail), at + 1)):
        word, wanted = passage[at - back], tail[-1 - back]
        if word != wanted and not (back == 0 and inside_words and word.startswith(wanted)):
            break
        total += rarity[word] if word == wanted else 0.0
    return total


def _rarity(passages: Sequence[Passage]) -> dict[str, float]:
    """-log of each word's share of the words in the passages found."""
    count = Counter(folded(match[0]) for p in passages for match in _TOKEN.finditer(p.text))
    total = sum(count.values())
    return {word: math.log((total + 1.0) / number) for word, number in count.items()}


def _open(where: str, opening: Opening) -> DocumentPartner:
    path, through = partner_behind(where, opening)
    return DocumentPartner(open_index(path), opening.reach, through=through)


PARTNERS.add(PartnerKind(
    "documents", "documents:PATH[,PARTNER]",
    "BM25 over a JSONL corpus or an index folder: answers are taken from a passage, or PARTNER is shown the passages", _open,
))  # fmt: skip
