"""From verdicts to FActScore (arXiv:2305.14251 §3): means over entities, with intervals."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite

GAMMA = 10
"""Number of facts above which a text has no length penalty."""
_APOLOGIES = re.compile(
    r"\b(?:i'm|i am|we're|we are) sorry\b|\b(?:i|we) apologi[sz]e\b|\bi (?:could not|couldn't) find\b"
    r"|\b(?:could|can) you (?:please )?(?:provide|share|clarify)\b|\bplease provide\b"
)
_DECLINES = re.compile(
    r"^(?:[^.!?]*\? )?(?:(?:unfortunately|however|regrettably|currently|sorry),? )?"
    r"(?:i|we)(?: (?:do|did|could|can|have)(?: not|n't)| ca(?:nnot|n't)| have no|(?: am|'m|'re| are| was)(?: not| unable))\b"
    r"[^.!?]{0,80}?\b(?:information|details|data|records?|knowledge|anything|find|know|aware|familiar|provide|bio|biography|verify)\b"
    r"|^(?:(?:there|here) (?:is|was|are|were) )?(?:no|not enough|insufficient)(?: [\w-]+){0,3} (?:information|records?|data|details|results)\b"
    r"|^(?:the )?(?:information|details) (?:about|on|regarding|for) [^.!?]{0,80}?\b(?:not|unavailable|no)\b"
    r"|^(?:the )?(?:search results|context|passages?|text) (?:do|does|did)(?: not|n't)\b"
    r"|^as an? (?:ai|artificial|(?:large )?language model)\b"
)
_QUOTED = re.compile(
    '["\N{LEFT DOUBLE QUOTATION MARK}][^"\N{RIGHT DOUBLE QUOTATION MARK}]*["\N{RIGHT DOUBLE QUOTATION MARK}]'
)
_LOOKED_AT = 200
"""Characters at the start of a text that are searched for an abstention."""


@dataclasses.dataclass(frozen=True)
class JudgedTopic:
    """One text with its verdicts.

    Attributes:
      topic: the entity.
      title: its article, or "" if the knowledge source has none; then there are no verdicts.
      facts: atomic facts in text order; empty if the system abstained.
      supported: a verdict per fact, None = no verdict; empty if the system abstained.
      unsplit: sentences without facts because the splitter gave no answer.
    """

    topic: str
    title: str
    facts: tuple[str, ...]
    supported: tuple[bool | None, ...]
    unsplit: int = 0

    @property
    def abstained(self) -> bool:
        """Whether the text says nothing about its topic."""
        return not self.facts and not self.unsplit

    @property
    def verdicts(self) -> list[bool]:
        """The verdicts, without the missing ones."""
        return [verdict for verdict in self.supported if verdict is not None]

    @property
    def decisions(self) -> list[dict[str, Any]] | None:
        """The verdicts in the original's format, with `is_supported` None where there is none; None if nothing was decided."""
        if not self.facts or not self.title:
            return None
        return [
            {"atom": fact, "is_supported": verdict}
            for fact, verdict in zip(self.facts, self.supported, strict=True)
        ]


def abstains(text: str) -> bool:
    """Whether a text or a sentence abstains: it is empty, apologises, or says that it has no information."""
    start = " ".join(text[:_LOOKED_AT].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    start = _QUOTED.sub(" ", start)  # Titles may contain such words.
    return not text.strip() or any(pattern.search(start) for pattern in (_APOLOGIES, _DECLINES))


def length_penalty(facts: int, gamma: int = GAMMA) -> float:
    """exp(1 - gamma / n) for n <= gamma facts, else 1; gamma = 0 means no penalty."""
    return 1.0 if facts > gamma else math.exp(1.0 - gamma / facts)


def factscore_figures(
    topics: Sequence[JudgedTopic], *, judge: str, splitter: str, knowledge: str, gamma: int = GAMMA
) -> dict[str, Any]:
    """Figures of one system, JSON-safe; None if there is nothing to count.

    Returns:
      "judge", "splitter", "knowledge_source": names, without which a score means nothing;
      "score", "score_ci": the supported share times the length penalty, averaged over covered topics that were
      answered, with a 95 % bootstrap interval over entities; "init_score", "init_score_ci": the same without the
      penalty; "gamma";
      "respond_ratio", "abstention_rate": over the decided covered topics; "facts_per_text": over the answered ones;
      "texts", "covered", "answered", "facts", "supported": counts; only facts with a verdict are counted;
      "undecided": covered topics that neither abstained nor have a verdict; "no_verdict": facts without a verdict;
      "unsplit": sentences that the splitter gave no answer on. These three are in no other figure.

    Raises:
      DataError: there are no texts.
    """
    if not topics:
        raise DataError("no texts to score: generate some first (`lacy generate`)")
    covered = [topic for topic in topics if topic.title]
    answered = [topic for topic in covered if topic.verdicts]
    undecided = sum(not topic.verdicts and not topic.abstained for topic in covered)
    decided = len(covered) - undecided
    share = np.array([np.mean(topic.verdicts) for topic in answered])
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
        "score_ci": score.ends,
        "init_score": finite(init.estimate),
        "init_score_ci": init.ends,
        "respond_ratio": len(answered) / decided if decided else None,
        "abstention_rate": 1.0 - len(answered) / decided if decided else None,
        "facts_per_text": facts / len(answered) if answered else None,
        "texts": len(topics),
        "covered": len(covered),
        "answered": len(answered),
        "facts": sum(len(topic.verdicts) for topic in answered),
        "supported": sum(sum(topic.verdicts) for topic in answered),
        "undecided": undecided,
        "no_verdict": sum(topic.supported.count(None) for topic in covered),
        "unsplit": sum(topic.unsplit for topic in covered),
    }


def score_line(figures: dict[str, Any]) -> str:
    """One line for people, which always names the judge."""
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
    if figures["no_verdict"] or figures["unsplit"]:
        body += f", no verdict on {figures['no_verdict']} facts, no facts of {figures['unsplit']} sentences"
        body += f" ({figures['why_none']})" if figures.get("why_none") else ""
    return (
        f"{body}; {figures['covered']} of {figures['texts']} topics covered; judge: {figures['judge']}; "
        f"splitter: {figures['splitter']}; knowledge: {figures['knowledge_source']}"
    )
