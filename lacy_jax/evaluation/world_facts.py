"""Is what was written true? Every attribute that a generated biography states, checked against the world's table.

Two figures belong together: the share of true statements, and the number of statements per text. A model that states
little can be right about all of it, so both are reported, with intervals over people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_ratio, bootstrap_ratio_difference, finite

ORIGINS = ("model", "partner", "mixed")

Span = tuple[int, int, str]
"""Characters [start, end) and their writer, "model" or "partner"."""


class World(Protocol):
    """The part of `lacy_jax.corpus.World` that is used here."""

    def subject(self, text: str) -> Any | None:
        """The person that a text begins with, who has a `name`; None if it is nobody of this world."""

    def statements(self, text: str) -> Sequence[Any]:
        """The statements of a biography, each with start, end, subject, attribute, stated and true."""


@dataclasses.dataclass(frozen=True, slots=True)
class JudgedFact:
    """One statement and its verdict.

    Attributes:
      start, end: characters of the value in prompt + continuation.
      subject, attribute, stated: whose attribute, which one, and the value as written.
      true: whether the table agrees.
      origin: "model" or "partner" if one of them wrote the whole value, else "mixed"; "" if not recorded.
      repeat: whether the text has already stated the same value of the same attribute; repeats are not counted.
    """

    start: int
    end: int
    subject: str
    attribute: str
    stated: str
    true: bool
    origin: str
    repeat: bool


@dataclasses.dataclass(frozen=True)
class JudgedText:
    """One generated text with its verdicts.

    Attributes:
      unit: the unit of resampling for intervals: the subject, or the prompt if nobody is recognised.
      text: prompt and continuation.
      prompt_length: characters of the prompt.
      facts: statements in order of appearance, without those of the prompt.
      spans: who wrote which characters of `text` after the prompt.
      tokens, partner_tokens: generated tokens, and those that the partner wrote.
      budget_met, partner_failures: as reported by the cascade.
    """

    unit: str
    text: str
    prompt_length: int
    facts: tuple[JudgedFact, ...]
    spans: tuple[Span, ...]
    tokens: int
    partner_tokens: int
    budget_met: bool
    partner_failures: int

    @property
    def counted(self) -> list[JudgedFact]:
        """The facts without repeats."""
        return [fact for fact in self.facts if not fact.repeat]


def judge_text(record: Mapping[str, Any] | Any, world: World) -> JudgedText:
    """Judge one generation.

    Args:
      record: a `Generation`, or its JSON object.
      world: the world with its table.

    Raises:
      DataError: the record lacks a field of a generation.
    """
    item = as_record(record)
    prompt, continuation = item["prompt"], item["text"]
    text, given, spans = prompt + continuation, len(prompt), spans_of(item)
    seen: set[tuple[str, str, str]] = set()
    facts = []
    for statement in world.statements(text):
        if statement.end <= given:
            continue
        key = (statement.subject, statement.attribute, statement.stated)
        origin = origin_of(statement.start, statement.end, spans)
        facts.append(
            JudgedFact(
                statement.start,
                statement.end,
                *key,
                bool(statement.true),
                origin,
                repeat=key in seen,
            )
        )
        seen.add(key)
    person = world.subject(text)
    return judged_text(item, prompt if person is None else person.name, facts)


def judged_text(item: Mapping[str, Any], unit: str, facts: Sequence[JudgedFact]) -> JudgedText:
    """A generation (`as_record`) together with its judged facts."""
    return JudgedText(
        unit=unit,
        text=item["prompt"] + item["text"],
        prompt_length=len(item["prompt"]),
        facts=tuple(facts),
        spans=spans_of(item),
        tokens=len(item["origins"]),
        partner_tokens=sum(who == "partner" for who in item["origins"]),
        budget_met=bool(item.get("budget_met", True)),
        partner_failures=int(item.get("partner_failures", 0)),
    )


def spans_of(item: Mapping[str, Any]) -> tuple[Span, ...]:
    """Who wrote which characters of prompt + continuation, after the prompt."""
    given = len(item["prompt"])
    return tuple((start + given, end + given, who) for start, end, who in item["spans"])


def score_world(generations: Iterable[Any], world: World) -> dict[str, Any]:
    """Judge generations against the world's table; see `truth_figures` for the keys.

    Raises:
      DataError: there are no generations, or one lacks a field.
    """
    return truth_figures([judge_text(generation, world) for generation in generations])


def truth_figures(texts: Sequence[JudgedText]) -> dict[str, Any]:
    """The figures of one method at one budget, JSON-safe; None if there is nothing to count.

    Returns:
      "texts", "people", "texts_without_facts": counts;
      "stated_facts", "true_facts": totals without repeats, and "..._per_text" with "..._per_text_ci";
      "true_fact_share": true / stated, and "true_fact_share_ci", the 95 % bootstrap interval over people;
      "call_share": tokens written by the partner / tokens generated; "generated_tokens", "partner_tokens";
      "budget_met_share": share of texts; "partner_failures": total;
      "by_attribute", "by_origin": {name: {"stated", "true", "true_fact_share"}}; origin "model" is what the model
      stated by itself, that is, its own knowledge without the partner's.

    Raises:
      DataError: there are no texts.
    """
    if not texts:
        raise DataError("no generated texts to judge: generate some first (`lacy generate`)")
    units = sorted({text.unit for text in texts})
    stated, true = _per_unit(texts, units)
    per_unit = np.array([sum(text.unit == unit for text in texts) for unit in units])
    share = bootstrap_ratio(true, stated)
    facts = [fact for text in texts for fact in text.counted]
    tokens, partner_tokens = sum(t.tokens for t in texts), sum(t.partner_tokens for t in texts)
    stated_per_text, true_per_text = bootstrap_ratio(stated, per_unit), bootstrap_ratio(true, per_unit)
    return {
        "texts": len(texts),
        "people": len(units),
        "texts_without_facts": sum(not text.counted for text in texts),
        "stated_facts": int(stated.sum()),
        "true_facts": int(true.sum()),
        "stated_facts_per_text": finite(stated_per_text.estimate),
        "stated_facts_per_text_ci": stated_per_text.ends,
        "true_facts_per_text": finite(true_per_text.estimate),
        "true_facts_per_text_ci": true_per_text.ends,
        "true_fact_share": finite(share.estimate),
        "true_fact_share_ci": share.ends,
        "call_share": partner_tokens / tokens if tokens else None,
        "generated_tokens": tokens,
        "partner_tokens": partner_tokens,
        "budget_met_share": sum(text.budget_met for text in texts) / len(texts),
        "partner_failures": sum(text.partner_failures for text in texts),
        "by_attribute": _tally(facts, "attribute", sorted({fact.attribute for fact in facts})),
        "by_origin": _tally(facts, "origin", [o for o in ORIGINS if any(f.origin == o for f in facts)]),
    }


def compare_texts(texts: Sequence[JudgedText], others: Sequence[JudgedText]) -> dict[str, Any]:
    """`texts` minus `others` in true_fact_share, paired over the people that both wrote about.

    Returns:
      "difference", "difference_ci" (95 %, paired bootstrap over people), "people".

    Raises:
      DataError: the two sets have no person in common.
    """
    units = sorted({text.unit for text in texts} & {text.unit for text in others})
    if not units:
        raise DataError("nothing to compare: the two sets of texts are about different people")
    (stated, true), (other_stated, other_true) = _per_unit(texts, units), _per_unit(others, units)
    interval = bootstrap_ratio_difference(true, stated, other_true, other_stated)
    return {
        "difference": finite(interval.estimate),
        "difference_ci": interval.ends,
        "people": len(units),
    }


def as_record(record: Mapping[str, Any] | Any) -> dict[str, Any]:
    """A generation as a JSON object, from a JSON object or the dataclass.

    Raises:
      DataError: a field that every generation has is missing.
    """
    item = dict(record) if isinstance(record, Mapping) else record.to_json()
    missing = [name for name in ("prompt", "text", "origins", "spans") if name not in item]
    if missing:
        raise DataError(f"generation without {', '.join(missing)}: not a file written by `lacy generate`")
    return item


def origin_of(start: int, end: int, spans: Sequence[Span]) -> str:
    """Who wrote the characters [start, end): "model", "partner", "mixed", or "" if it is not recorded."""
    writers = {who for left, right, who in spans if left < end and right > start}
    return writers.pop() if len(writers) == 1 else "mixed" if writers else ""


def _per_unit(texts: Sequence[JudgedText], units: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(stated, true), each [units]; texts of other units are left out."""
    index = {unit: i for i, unit in enumerate(units)}
    stated, true = np.zeros(len(units), int), np.zeros(len(units), int)
    for text in texts:
        if text.unit not in index:
            continue
        stated[index[text.unit]] += len(text.counted)
        true[index[text.unit]] += sum(fact.true for fact in text.counted)
    return stated, true


def _tally(facts: Sequence[JudgedFact], field: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    table = {}
    for name in names:
        chosen = [fact for fact in facts if getattr(fact, field) == name]
        true = sum(fact.true for fact in chosen)
        table[name] = {"stated": len(chosen), "true": true, "true_fact_share": true / len(chosen)}
    return table
