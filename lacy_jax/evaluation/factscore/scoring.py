"""From verdicts to FActScore (arXiv:2305.14251 §3): means over entities, with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite

GAMMA = 10
"""Facts from which on a text pays no length penalty."""
APOLOGIES = ("i'm sorry", "i am sorry", "i apologize", "i could not find", "i couldn't find", "could you provide", "please provide")  # fmt: skip
"""Beginnings (first 200 characters) of texts that say nothing of their topic."""


@dataclasses.dataclass(frozen=True)
class JudgedTopic:
    """One text with its verdicts.

    Attributes:
      topic: entity. title: its article, or "" if the knowledge source has none: nothing is decided then.
      facts: atomic facts in text order. supported: verdicts, [len(facts)]; both empty where the system abstained.
      abstained: the text says nothing of its topic.
    """

    topic: str
    title: str
    facts: tuple[str, ...]
    supported: tuple[bool, ...]
    abstained: bool

    @property
    def decisions(self) -> list[dict[str, Any]] | None:
        """In the original's format; None where nothing was decided."""
        if self.abstained or not self.title:
            return None
        return [
            {"atom": fact, "is_supported": verdict}
            for fact, verdict in zip(self.facts, self.supported, strict=True)
        ]


def abstains(text: str) -> bool:
    """Whether a text is an apology instead of an answer."""
    start = text[:200].lower().replace("’", "'")
    return not text.strip() or any(apology in start for apology in APOLOGIES)


def length_penalty(facts: int, gamma: int = GAMMA) -> float:
    """exp(1 - gamma / n) for n <= gamma facts, else 1; gamma = 0 means none."""
    return 1.0 if facts > gamma else math.exp(1.0 - gamma / facts)


def summarise(
    topics: Sequence[JudgedTopic], *, judge: str, splitter: str, knowledge: str, gamma: int = GAMMA
) -> dict[str, Any]:
    """Figures of one system, JSON-safe; None where there is nothing to count.

    Returns:
      "judge", "splitter", "knowledge_source": names, without which a score means nothing;
      "score", "score_ci": mean over the topics that were answered and are covered, of the supported share
      times the length penalty, with its 95 % bootstrap interval over entities; "init_score",
      "init_score_ci": without the penalty; "gamma";
      "respond_ratio", "abstention_rate": of the covered topics; "facts_per_text": of the answered ones;
      "texts", "covered", "answered", "facts", "supported": counts.

    Raises:
      DataError: no texts.
    """
    if not topics:
        raise DataError("no texts to score: generate some first (`lacy generate`)")
    covered = [topic for topic in topics if topic.title]
    answered = [topic for topic in covered if not topic.abstained]
    share = np.array([np.mean(topic.supported) for topic in answered])
    penalty = np.array([length_penalty(len(topic.facts), gamma) for topic in answered])
    ones = np.ones(len(answered))
    score, init = bootstrap_ratio(share * penalty, ones), bootstrap_ratio(share, ones)
    facts = sum(len(topic.facts) for topic in answered)
    return {
        "judge": judge,
        "splitter": splitter,
        "knowledge_source": knowledge,
        "gamma": gamma,
        "score": finite(score.estimate),
        "score_ci": _ends(score.low, score.high),
        "init_score": finite(init.estimate),
        "init_score_ci": _ends(init.low, init.high),
        "respond_ratio": len(answered) / len(covered) if covered else None,
        "abstention_rate": 1.0 - len(answered) / len(covered) if covered else None,
        "facts_per_text": facts / len(answered) if answered else None,
        "texts": len(topics),
        "covered": len(covered),
        "answered": len(answered),
        "facts": facts,
        "supported": int(sum(sum(topic.supported) for topic in answered)),
    }


def score_line(figures: dict[str, Any]) -> str:
    """One line for people; it always names the judge."""
    if figures["score"] is None:
        body = "no score (no answered text about a covered topic)"
    else:
        ends = figures["score_ci"]
        interval = "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        body = (
            f"FActScore {100 * figures['score']:.1f}{interval}, unpenalised {100 * figures['init_score']:.1f}"
        )
        body += f", {figures['facts_per_text']:.1f} facts per text"
    abstained = figures["abstention_rate"]
    body += "" if abstained is None else f", abstained {100 * abstained:.0f} %"
    return (
        f"{body}; {figures['covered']} of {figures['texts']} topics covered; judge: {figures['judge']}; "
        f"splitter: {figures['splitter']}; knowledge: {figures['knowledge_source']}"
    )


def _ends(low: float, high: float) -> list[float] | None:
    left, right = finite(low), finite(high)
    return None if left is None or right is None else [left, right]
