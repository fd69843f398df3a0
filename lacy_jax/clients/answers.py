"""Reading a server's answers, and counting the requests that got none.

A missing answer is never taken for an answer: an empty text, a refusal, and a text that was cut off or cannot be read
become a `NoAnswer` with its reason and are counted separately. If most answers are missing, `Tally` raises an error.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lacy_jax.errors import PartnerError, one_line

_CUT = frozenset(["length", "max_tokens", "model_length"])
_WITHHELD = frozenset(["content_filter", "safety", "recitation", "refusal", "abort", "error"])
_THINKING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
FIRST_LOOK = 20
"""Number of requests after which a tally first checks whether most answers are missing."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class NoAnswer:
    """The place of a missing answer; `reason` says why it is missing: "empty (finish_reason 'length')"."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a server.

    Attributes:
      text: the text, without a model's reasoning before it.
      finish_reason: the server's reason why the text ends; "" if it gives none.
      withheld: why the server answered without a text (a refusal, a filter, all tokens spent on reasoning); "" if it
        gave one, which may be empty.
      usage: token counts, as sent.
    """

    text: str
    finish_reason: str = ""
    withheld: str = ""
    usage: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether the text ends because it reached the longest allowed length."""
        return self.finish_reason.lower() in _CUT

    @property
    def problem(self) -> str:
        """Why this is not a complete answer: withheld, empty or cut; "" if it is one."""
        kind = "empty" if not self.text.strip() else "cut" if self.is_cut else ""
        return self.withheld or (kind and _with_reason(kind, self.finish_reason))

    def tokens(self, kind: str) -> int:
        """The server's count of "prompt" or "completion" tokens; 0 if it gives none."""
        return _count(self.usage.get(f"{kind}_tokens"))

    @property
    def partner_tokens(self) -> int:
        """If the server is one of ours: tokens that its partner, and that partner's own, read and wrote for this answer."""
        own = self.usage.get("lacy")
        return _count(own.get("partner_tokens")) if isinstance(own, Mapping) else 0


def answer_of(value: Any, chat: bool) -> Answer:
    """The answer in the JSON that a server sent.

    Raises:
      ValueError: the JSON is not that of a completions server, or reports an error; one line.
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
        raise ValueError(f"the server answers with an error: {one_line(message_of(failed), 200)}")
    if isinstance(text, list):  # Parts, of which some are text.
        text = "".join(str(piece.get("text") or "") for piece in text if isinstance(piece, dict))
    if not isinstance(text, str | None):
        raise ValueError("the answer is not that of a completions server")
    if text is None and reason is None and not refusal and not (chat and choice.get("message")):
        raise ValueError("the answer is not that of a completions server")
    text, reason, usage = without_thinking(text or ""), str(reason or ""), value.get("usage")
    withheld = ""
    if refusal:
        withheld = f"a refusal ({one_line(refusal, 200)})"
    elif reason.lower() in _WITHHELD:
        withheld = _with_reason("withheld", reason)
    elif chat and not text and reason.lower() in _CUT:
        withheld = _with_reason("empty", reason)
    return Answer(text, reason, withheld, usage if isinstance(usage, dict) else {})


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0


def without_thinking(text: str) -> str:
    """The text after a model's reasoning; "" if the reasoning was cut off before its end."""
    for opening, closing in _THINKING:
        if closing in text:
            text = text.rpartition(closing)[2].lstrip()
        elif text.lstrip().startswith(opening):
            return ""
    return text


def message_of(value: Any) -> str:
    """The message of a server's error: its `error`, `message` or `detail`, however they are nested."""
    for name in ("error", "message", "detail", "msg"):
        while isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else str(value)


class Tally:
    """Counts answers, and missing answers by reason.

    Args:
      who: names the server in the error: "judge http://localhost:8000/v1".
    """

    def __init__(self, who: str):
        self.who, self.asked = who, 0
        self.reasons: collections.Counter[str] = collections.Counter()

    @property
    def missing(self) -> int:
        """Number of missing answers."""
        return self.reasons.total()

    def add(self, answer: _T | NoAnswer) -> _T | NoAnswer:
        """Count an answer and return it.

        Raises:
          PartnerError: more than half of at least `FIRST_LOOK` answers are missing.
        """
        self.asked += 1
        if isinstance(answer, NoAnswer):
            self.reasons[answer.reason] += 1
            if self.asked >= FIRST_LOOK:
                self.settle()
        return answer

    def settle(self) -> None:
        """Check the counts; call it at the end, however few requests there were.

        Raises:
          PartnerError: more than half of the answers are missing.
        """
        if self.missing * 2 > self.asked:
            raise PartnerError(
                f"{self.who}: {self.missing} of {self.asked} answers are unusable: {self.summary()}; "
                "nothing can be concluded from the others: check the server and its model"
            )

    def summary(self) -> str:
        """The reasons, most frequent first: "3 x empty (finish_reason 'length'), 1 x ..."."""
        return ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(3))


def _with_reason(kind: str, finish_reason: str) -> str:
    return f"{kind} (finish_reason {finish_reason!r})" if finish_reason else f"{kind} (no finish_reason)"
