"""Partners: who is asked when the model calls. One protocol: texts so far in, continuations out.

A partner sees text, never tokens or CALL, so it may have another tokenizer or none. It may answer "" (it has
nothing to say; the model goes on with its own token) and cannot end a text: that is the model's decision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lacy_jax.errors import ConfigError

REACHES = ("token", "word", "span")
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
_WORD = re.compile(r"\s*\S+")
CONNECTORS = frozenset("of the de del della di da du la le von van der den zu al ibn bin y e".split())
"""Words in lower case that a name may have inside."""
MARKS = ".,;:!?()"
"""Characters that end a phrase."""


@runtime_checkable
class Partner(Protocol):
    """What `generate` needs of a partner."""

    name: str

    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """Continuations, one per text (prompt and text so far), with the leading space where a word begins.

        None = no answer to this text alone (a request that failed): the model goes on, and it is recorded.

        Raises:
          PartnerError: it failed; the texts go on without it, or generation stops, as the caller chose.
        """


def cut(text: str, reach: str) -> str:
    """The part of a continuation that one call returns: the first word or mark, the first word, or all of it."""
    if reach == "span":
        return text
    match = (_TOKEN if reach == "token" else _WORD).match(text)
    return match[0] if match else text


def first_span(text: str) -> str:
    """The first phrase of a continuation: a word and those after it that begin with a capital or digit.

    "of", "von" and the like may stand between them; the phrase ends before a mark. This is the fact span of a
    partner that has no labels: " 7 May 1956 in Paris." gives " 7 May 1956".
    """
    end = 0
    for match in _WORD.finditer(text):
        word = match[0].strip()
        if end and word in CONNECTORS:
            continue
        if end and not (word[0].isupper() or word[0].isdigit()):
            break
        end = match.end()
        if word[-1] in MARKS:
            break
    return text[:end].rstrip(MARKS) or cut(text, "word")


def check_reach(reach: str) -> str:
    """Raises ConfigError unless `reach` is one of `REACHES`."""
    if reach not in REACHES:
        raise ConfigError(f"partner reach {reach!r}: expected one of {', '.join(REACHES)}")
    return reach


def only_facts(partner: Partner) -> Partner:
    """The partner as the gate "oracle" needs it: it answers where a fact is asked for, and nowhere else.

    Raises:
      ConfigError: it does not know where facts are.
    """
    silent = getattr(partner, "only_facts", None)
    if silent is None:
        raise ConfigError(
            f"gate 'oracle': partner {partner.name} does not know where facts begin; use world or database:FILE"
        )
    return silent()


def calls_anywhere(partner: Partner | None) -> bool:
    """Whether calls may be made inside a word: only of a partner that returns single tokens (the paper).

    One that returns words or spans is asked where the model is about to begin a word. Inside a word, or
    before the mark that ends it, it could only finish what the model has begun, and the gate is high exactly
    there where the model is inside a fact that it has already got wrong.
    """
    return getattr(partner, "reach", "span") == "token"
