"""What a server answers: a text, or nothing that may be taken for one; and how often it was nothing.

No answer is not an answer: an empty one, a refusal, one that was cut off or that cannot be read is a `NoAnswer` with
its reason, counted apart from all that is known. Where it is the rule, `Tally` makes it an error.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lacy_jax.errors import PartnerError

_CUT = frozenset(["length", "max_tokens", "model_length"])
_WITHHELD = frozenset(["content_filter", "safety", "recitation", "refusal", "abort", "error"])
_THINKING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
FIRST_LOOK = 20
"""Answers after which a tally first asks whether having none is the rule."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class NoAnswer:
    """Stands where an answer should be; `reason` says why there is none, as "empty (finish_reason 'length')"."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a server.

    Attributes:
      text: without what a reasoning model thought aloud before it.
      finish_reason: the server's word for why the text ends, "" if it says none.
      withheld: why the server gives no text although it answered (a refusal, a filter, all tokens spent on thinking);
        "" if it gives one, which may be empty.
      usage: of tokens, as sent.
    """

    text: str
    finish_reason: str = ""
    withheld: str = ""
    usage: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether it ends because it was as long as it may be."""
        return self.finish_reason.lower() in _CUT

    @property
    def problem(self) -> str:
        """Why this is no whole answer: withheld, empty or cut; "" if it is one."""
        kind = "empty" if not self.text.strip() else "cut" if self.is_cut else ""
        return self.withheld or (kind and _with_reason(kind, self.finish_reason))

    def tokens(self, kind: str) -> int:
        """The server's count of "prompt" or "completion" tokens; 0 where it does not say."""
        return _count(self.usage.get(f"{kind}_tokens"))

    @property
    def partner_tokens(self) -> int:
        """Of a server of ours: tokens that its partner read and wrote for this answer, and the partners of that one."""
        own = self.usage.get("lacy")
        return _count(own.get("partner_tokens")) if isinstance(own, Mapping) else 0


def answer_of(value: Any, chat: bool) -> Answer:
    """The answer in the JSON that a server sent.

    Raises:
      ValueError: it is not that of a completions server, or says that it failed; in one line.
    """
    try:
        choice = value["choices"][0]
        part = choice.get("message") or {} if chat else choice
        text = part.get("content" if chat else "text")
        refusal, reason = part.get("refusal"), choice.get("finish_reason")
        failed = choice.get("error")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer is not that of a completions server") from None
    if failed:
        raise ValueError(f"the server answers with an error: {_one_line(message_of(failed))}")
    if isinstance(text, list):  # Parts, of which some are text.
        text = "".join(str(piece.get("text") or "") for piece in text if isinstance(piece, dict))
    if not isinstance(text, str | None):
        raise ValueError("the answer is not that of a completions server")
    if text is None and reason is None and not refusal and not (chat and choice.get("message")):
        raise ValueError("the answer is not that of a completions server")
    text, reason, usage = without_thinking(text or ""), str(reason or ""), value.get("usage")
    withheld = ""
    if refusal:
        withheld = f"a refusal ({_one_line(str(refusal))})"
    elif reason.lower() in _WITHHELD:
        withheld = _with_reason("withheld", reason)
    elif chat and not text and reason.lower() in _CUT:
        withheld = _with_reason("empty", reason)
    return Answer(text, reason, withheld, usage if isinstance(usage, dict) else {})


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0


def without_thinking(text: str) -> str:
    """What a reasoning model says after it thought aloud; "" if the thinking was cut before its end."""
    for opening, closing in _THINKING:
        if closing in text:
            text = text.rpartition(closing)[2].lstrip()
        elif text.lstrip().startswith(opening):
            return ""
    return text


def message_of(value: Any) -> str:
    """What an error of a server says: its `error`, `message` or `detail`, however they are nested."""
    for name in ("error", "message", "detail", "msg"):
        while isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else str(value)


class Tally:
    """Counts answers and those that are none, by reason.

    Args:
      who: is asked, for the error: "judge http://localhost:8000/v1".
    """

    def __init__(self, who: str):
        self.who, self.asked = who, 0
        self.reasons: collections.Counter[str] = collections.Counter()

    @property
    def missing(self) -> int:
        """How many were none."""
        return self.reasons.total()

    def add(self, answer: _T | NoAnswer) -> _T | NoAnswer:
        """Count one and give it back.

        Raises:
          PartnerError: more than half of at least `FIRST_LOOK` were none.
        """
        self.asked += 1
        if isinstance(answer, NoAnswer):
            self.reasons[answer.reason] += 1
            if self.asked >= FIRST_LOOK:
                self.settle()
        return answer

    def settle(self) -> None:
        """At the end, however few were asked.

        Raises:
          PartnerError: more than half were none.
        """
        if self.missing * 2 > self.asked:
            raise PartnerError(
                f"{self.who}: {self.missing} of {self.asked} answers are none: {self.summary()}; "
                "nothing can be concluded from the others: look at the server and its model"
            )

    def summary(self) -> str:
        """The reasons, the most frequent first: "3 x empty (finish_reason 'length'), 1 x ..."."""
        return ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(3))


def _with_reason(kind: str, finish_reason: str) -> str:
    return f"{kind} (finish_reason {finish_reason!r})" if finish_reason else f"{kind} (no finish_reason)"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
