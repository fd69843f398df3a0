"""A judge's verdicts compared with people's labels on the facts of human-annotated texts."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from lacy_jax.clients import NoAnswer, Tally
from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import finite
from lacy_jax.evaluation.factscore.formats import Entry
from lacy_jax.evaluation.factscore.judging import Judge, kind_of_fact
from lacy_jax.evaluation.factscore.knowledge import KnowledgeSource

_WHO = {
    (True, True): "both",
    (True, False): "judge_only",
    (False, True): "people_only",
    (False, False): "neither",
}
"""(judge, people) say that a fact is supported."""


def agreement(
    systems: Mapping[str, Sequence[Entry]], judge: Judge, knowledge: KnowledgeSource
) -> dict[str, Any]:
    """Agreement on facts labelled S or NS (IR says nothing about truth) whose topic has an article of exactly that title.

    Args:
      systems: {name: annotated texts}.

    Returns:
      "judge", "knowledge_source"; "topics", "facts", "labelled_supported" (share); "no_verdict", "why_none": facts
      without a verdict, which are in no other figure;
      "accuracy"; "f1_supported", "f1_not_supported" (the paper's measure); "always": accuracy of the better constant
      answer;
      "score_mae", "score_correlation": mean absolute difference and Pearson's r between the judge's and people's
      supported share per text; "systems": {name: {"human", "judge", "texts"}}; "ranking_correlation": Kendall's tau
      of the systems' order (None with fewer than two);
      "kinds": {kind of fact (`judging.kind_of_fact`): {"both", "judge_only", "people_only", "neither"}}, who calls how
      many supported.

    Raises:
      DataError: no labelled fact is covered.
      PartnerError: a served judge failed, or most of its answers are unusable.
    """
    said: list[bool] = []
    truth: list[bool] = []
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    texts: list[tuple[str, float, float]] = []
    topics = set()
    tally = Tally(f"judge {judge.name}")
    for system, entries in systems.items():
        for entry in entries:
            title = knowledge.title(entry.topic, exact=True)
            facts = [fact for fact in entry.human_facts if fact.label in ("S", "NS")]
            if title is None or not facts:
                continue
            passages = [knowledge.retrieve(title, fact.text) for fact in facts]
            answers = judge.supported(entry.topic, [fact.text for fact in facts], passages)
            pairs = []
            for said_of, fact in zip(map(tally.add, answers), facts, strict=True):
                if not isinstance(said_of, NoAnswer):
                    pairs.append((bool(said_of), fact.label == "S"))
                    kinds[kind_of_fact(entry.topic, fact.text)][_WHO[pairs[-1]]] += 1
            if not pairs:
                continue
            verdicts, labels = zip(*pairs, strict=True)
            said += verdicts
            truth += labels
            texts.append((system, float(np.mean(labels)), float(np.mean(verdicts))))
            topics.add(entry.topic)
    tally.settle()
    if not truth:
        raise DataError(f"{knowledge.name} has no article on the topic of any labelled fact")
    verdict, label = np.array(said), np.array(truth)
    human, judged = np.array([row[1] for row in texts]), np.array([row[2] for row in texts])
    table = {
        name: {
            "texts": len(rows),
            "human": float(np.mean([row[1] for row in rows])),
            "judge": float(np.mean([row[2] for row in rows])),
        }
        for name in systems
        if (rows := [row for row in texts if row[0] == name])
    }
    return {
        "judge": judge.name,
        "knowledge_source": knowledge.name,
        "topics": len(topics),
        "facts": len(label),
        "labelled_supported": float(label.mean()),
        "no_verdict": tally.missing,
        "why_none": tally.summary(),
        "accuracy": float((verdict == label).mean()),
        "always": float(max(label.mean(), 1.0 - label.mean())),
        "f1_supported": _f1(verdict, label),
        "f1_not_supported": _f1(~verdict, ~label),
        "score_mae": float(np.abs(human - judged).mean()),
        "score_correlation": _correlation(human, judged),
        "systems": table,
        "ranking_correlation": _ranking(table),
        "kinds": {
            kind: {who: counts[who] for who in _WHO.values()} for kind, counts in sorted(kinds.items())
        },
    }


def agreement_table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    correlation, ranking = result["score_correlation"], result["ranking_correlation"]
    lines = [
        f"judge: {result['judge']}; knowledge: {result['knowledge_source']}; {result['facts']} labelled facts about "
        f"{result['topics']} covered topics, {100 * result['labelled_supported']:.0f} % supported",
        f"accuracy {100 * result['accuracy']:.1f} % (a constant answer: {100 * result['always']:.1f} %), "
        f"F1 supported {result['f1_supported']:.3f}, F1 not supported {result['f1_not_supported']:.3f}",
        f"score per text: mean absolute difference {100 * result['score_mae']:.1f} points, correlation "
        + ("–" if correlation is None else f"{correlation:.2f}"),
    ]
    if result["no_verdict"]:
        lines.append(f"no verdict on {result['no_verdict']} more facts: {result['why_none']}")
    for name, row in result["systems"].items():
        lines.append(
            f"{name}: people {100 * row['human']:.1f}, judge {100 * row['judge']:.1f} ({row['texts']} texts)"
        )
    for kind, n in result["kinds"].items():
        right, total = n["both"] + n["neither"], sum(n.values())
        lines.append(
            f"{kind}: {total} facts, agreed on {100 * right / total:.0f} %; supported by both {n['both']}, by the judge alone "
            f"{n['judge_only']}, by people alone {n['people_only']}, by neither {n['neither']}"
        )
    lines.append("order of the systems: Kendall's tau " + ("–" if ranking is None else f"{ranking:.2f}"))
    return "\n".join(lines)


def _f1(said: np.ndarray, truth: np.ndarray) -> float:
    hits = float((said & truth).sum())
    return 2.0 * hits / float(said.sum() + truth.sum()) if hits else 0.0


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return finite(scipy.stats.pearsonr(a, b).statistic)


def _ranking(table: Mapping[str, Mapping[str, float]]) -> float | None:
    if len(table) < 2:
        return None
    rows = list(table.values())
    return finite(scipy.stats.kendalltau([r["human"] for r in rows], [r["judge"] for r in rows]).statistic)
