"""A model without its partner in the terms of TOFU (arXiv:2401.06121 §2): what it holds of the facts to be forgotten, and of others.

TOFU compares the unlearned model with one that was trained without the forget set. Here nothing is unlearned: the facts are
deleted from the database, and the question is whether the model ever learned them. So the model itself is asked about people
of whom it has read nothing. Both were drawn alike (people of the world independently, documents into the validation split at random), so
what it says of those is distributed as what a model trained without the forget set would say of that: no second training.

The truth ratio of a fact is the mean probability of false values divided by the probability of the true one, each to the power
1 / number of tokens; 1 = it cannot tell them apart, 0 = it knows. Forget quality is the p-value of the two-sample Kolmogorov-Smirnov
test that the ratios of the forget set and of the unread people have one distribution: small = it has not forgotten. Model utility is
the harmonic mean, on the retain set, of probability, of 1 - truth ratio, and of the share that the model states (TOFU: ROUGE-L recall, which for
one value is the same question). What TOFU has beyond that (paraphrased answers, sets of real authors and world facts) has no counterpart
here: a value has one wording, and the world is all there is.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax.cascade.partners.database import joined
from lacy_jax.evaluation.detectors import finite
from lacy_jax.evaluation.edit_subjects import Subjects
from lacy_jax.evaluation.edits import Place
from lacy_jax.formatting import percent
from lacy_jax.objectives.scoring import score_documents, scorer
from lacy_jax.training.run import Run

FALSE_VALUES = 5
"""So many false values a fact (TOFU's number)."""
SETS = {
    "forget": "the deleted facts",
    "retain": "other facts of the same people, and of people who are not edited",
    "unread": "facts of people whom no text of the corpus is about",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A place before a fact, with values to choose from.

    Attributes:
      set: one of `SETS`. person: whom it is about. text: ends before the space in front of the value.
      values: the true value first, then false ones.
    """

    set: str
    person: str
    text: str
    values: tuple[str, ...]


def make_questions(places: Sequence[Place], subjects: Subjects, seed: int = 0) -> list[Question]:
    """One question for each edited fact, one for each person's facts to be retained, and one about each unread person.

    False values are those of people whom the corpus has nothing about either, so that it is the person's fact that tells, for all
    sets alike, not whether a value occurs in the corpus.
    """
    rng = np.random.default_rng(seed)
    found: list[Question] = []

    def ask(which: str, person: str, attribute: str, text: str, value: str) -> None:
        pool = [one for one in subjects.false_values.get(attribute, ()) if one != value]
        false = [pool[at] for at in rng.permutation(len(pool))[:FALSE_VALUES].tolist()]
        if false:
            found.append(Question(which, person, text, (value, *false)))

    retain: dict[str, list[Place]] = {}
    for place in places:
        if place.kind == "own":
            ask("forget", place.person, place.attribute, place.text, place.old)
        elif place.kind in ("same", "others"):
            retain.setdefault(place.person, []).append(place)
    for some in retain.values():
        place = some[int(rng.integers(len(some)))]
        ask("retain", place.person, place.attribute, place.text, place.old)
    for subject in subjects.unread:
        attributes = sorted(subject.own.keys() & subject.reworded.keys())  # As those that are edited.
        if attributes:
            attribute = attributes[int(rng.integers(len(attributes)))]
            ask("unread", subject.name, attribute, subject.own[attribute], subject.values[attribute])
    return found


def value_probabilities(run: Run, questions: Sequence[Question]) -> list[np.ndarray]:
    """For each question P(value | text) ^ (1 / tokens of the value) of each of its values, by the model with CALL off."""
    documents, lengths = [], []
    for question in questions:
        for value in question.values:
            text = question.text + joined(question.text, value)
            ids, _, ends = run.tokenizer.encode_with_offsets(text)
            documents.append(run.tokenizer.with_prefix(ids))
            # Counted from the end: what stands before the text is the tokenizer's affair.
            lengths.append(int(np.sum(ends > len(text) - len(value))))
    scored = score_documents(
        scorer(run.model, run.config.objective.chunk),
        documents,
        run.model.cfg.max_seq_len,
        title="truth ratios",
    )
    by_value = iter(
        float(np.exp(-np.mean(one.nll[-tokens:]))) for one, tokens in zip(scored, lengths, strict=True)
    )
    return [np.array([next(by_value) for _ in question.values]) for question in questions]


def forget_retain_figures(
    questions: Sequence[Question], probabilities: Sequence[np.ndarray], stated: float | None
) -> dict[str, Any]:
    """TOFU's figures, JSON-safe: {set: {"facts", "probability", "truth_ratio", "truth"}, "distance", "forget_quality",
    "model_utility"}.

    Args:
      probabilities: `value_probabilities`.
      stated: the share of the facts to be retained that the model states by itself.
    """
    from scipy import stats  # Half a second to import.

    ratios = {
        name: np.array(
            [
                float(p[1:].mean() / p[0])
                for q, p in zip(questions, probabilities, strict=True)
                if q.set == name
            ]
        )
        for name in SETS
    }
    figures: dict[str, Any] = {}
    for name, own in ratios.items():
        true = [float(p[0]) for q, p in zip(questions, probabilities, strict=True) if q.set == name]
        figures[name] = {
            "facts": len(true),
            "probability": finite(np.mean(true)) if true else None,
            "truth_ratio": finite(np.median(own)) if true else None,
            "truth": finite(np.mean(np.maximum(0.0, 1.0 - own))) if true else None,
        }
    enough = min(len(ratios["forget"]), len(ratios["unread"])) > 1
    test = stats.ks_2samp(ratios["forget"], ratios["unread"]) if enough else None
    parts = [figures["retain"]["probability"], figures["retain"]["truth"], stated]
    known = all(part is not None for part in parts)
    return {
        **figures,
        "distance": finite(test.statistic) if test else None,
        "forget_quality": finite(test.pvalue) if test else None,
        "model_utility": statistics.harmonic_mean(parts) if known else None,
    }


def forget_retain_text(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = ["the model alone, in TOFU's terms:"]
    for name, about in SETS.items():
        row = figures[name]
        ratio = "–" if row["truth_ratio"] is None else f"{row['truth_ratio']:.3f}"
        lines.append(
            f"  {name:22}probability {percent(row['probability'])}, median truth ratio {ratio}  {row['facts']}: {about}"
        )
    quality, distance = figures["forget_quality"], figures["distance"]
    shown = "–" if quality is None else f"p = {quality:.2g} (distance {distance:.2f})"
    return "\n".join([*lines, f"  forget quality {shown}; model utility {percent(figures['model_utility'])}"])
