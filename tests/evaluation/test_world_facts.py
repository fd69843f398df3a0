"""Verdicts and figures against hand-made texts of a world whose table is known."""

from __future__ import annotations

import json

import pytest

from lacy_jax.cascade.texts import Generation
from lacy_jax.corpus.world import World
from lacy_jax.errors import DataError
from lacy_jax.evaluation import world_facts

WORLD = World(people=50, seed=3)


def _record(index, text=None, wrong=(), partner=(), variant=0):
    """A generation that repeats a true biography, with `wrong` attributes altered and `partner` ones lent."""
    document = WORLD.text(index, variant)
    prompt = WORLD.prompt(index, variant)
    body, facts = document.text, sorted(document.facts, key=lambda fact: -fact.start)
    for fact in facts:
        if fact.attribute in wrong:
            other = next(p for p in WORLD.people if p.attributes[fact.attribute] != fact.value)
            body = body[: fact.start] + other.attributes[fact.attribute] + body[fact.end :]
    assert body.startswith(prompt)
    record = {"prompt": prompt, "text": body[len(prompt) :] if text is None else text}
    spans, at = [], 0
    for statement in WORLD.statements(prompt + record["text"]):
        if statement.attribute in partner:
            start, end = statement.start - len(prompt), statement.end - len(prompt)
            spans += [[at, start, "model"], [start, end, "partner"]]
            at = end
    spans.append([at, len(record["text"]), "model"])
    record["spans"] = [span for span in spans if span[0] < span[1]]
    record["origins"] = [who for start, end, who in record["spans"] for _ in range(end - start)]
    return record, document


def test_a_true_biography_is_judged_true_in_full():
    record, document = _record(4)
    judged = world_facts.judge_text(record, WORLD)
    assert {f.attribute for f in judged.facts} == {f.attribute for f in document.facts}
    assert all(fact.true for fact in judged.facts)
    assert judged.unit == WORLD.people[4].name
    for fact in judged.facts:
        assert judged.text[fact.start : fact.end] == fact.stated == WORLD.people[4].attributes[fact.attribute]


def test_wrong_values_and_origins_are_counted_where_they_belong():
    wanted = {"birth_date", "spouse", "award"}
    index = next(i for i in range(50) if wanted <= {fact.attribute for fact in WORLD.text(i).facts})
    record, document = _record(index, wrong=("birth_date", "award"), partner=("birth_date", "spouse"))
    stated = {fact.attribute for fact in document.facts}
    score = world_facts.score_world([record], WORLD)
    assert score["stated_facts"] == len(stated)
    assert score["true_facts"] == len(stated) - 2
    assert score["true_fact_share"] == pytest.approx((len(stated) - 2) / len(stated))
    assert score["by_attribute"]["birth_date"] == {"stated": 1, "true": 0, "true_fact_share": 0.0}
    assert score["by_attribute"]["spouse"] == {"stated": 1, "true": 1, "true_fact_share": 1.0}
    assert score["by_origin"]["partner"] == {"stated": 2, "true": 1, "true_fact_share": 0.5}
    assert score["by_origin"]["model"]["stated"] == len(stated) - 2
    assert score["true_fact_share_ci"] is None, "one person gives no interval"
    lent = record["origins"].count("partner")
    assert (
        lent >= len(WORLD.people[index].attributes["spouse"]) + 6
    )  # a token per character here; a date has more than 6
    assert score["call_share"] == pytest.approx(lent / len(record["text"]))


def test_repeats_count_once_and_contradictions_twice():
    record, document = _record(2)
    sentences = record["text"].split(". ")
    once = world_facts.score_world([record], WORLD)["stated_facts"]
    record["text"] = record["text"] + " " + document.text[len(record["prompt"]) :].split(". ", 1)[1]
    again = world_facts.judge_text(record, WORLD)
    assert len(again.facts) > once, sentences
    assert world_facts.truth_figures([again])["stated_facts"] == once
    altered, _ = _record(2, wrong=("award", "field", "employer", "work"))
    record["text"] += " " + altered["text"].split(". ", 1)[1]
    stated = world_facts.score_world([record], WORLD)
    assert once < stated["stated_facts"] <= once + 4
    assert stated["true_facts"] == once


def test_silent_texts_are_visible_and_do_not_break_the_ratio():
    full, _ = _record(1)
    silent, _ = _record(3, text=" liked.")
    silent["spans"] = []
    score = world_facts.score_world([full, silent], WORLD)
    assert score["texts"] == 2
    assert score["texts_without_facts"] == 1
    assert score["stated_facts_per_text"] == pytest.approx(score["stated_facts"] / 2)
    nothing = world_facts.score_world([silent], WORLD)
    assert nothing["true_fact_share"] is None
    assert nothing["stated_facts_per_text"] == 0


def test_nobody_of_this_world_states_nothing():
    record = {
        "prompt": "Nobody Known Here",
        "text": " was born in Paris.",
        "origins": ["model"] * 5,
        "spans": [],
    }
    judged = world_facts.judge_text(record, WORLD)
    assert judged.facts == ()
    assert judged.unit == "Nobody Known Here"


def test_interval_over_people_brackets_the_share_and_is_json():
    records = [_record(i, wrong=("award", "field", "spouse")[: i % 4])[0] for i in range(20)]
    score = world_facts.score_world(records, WORLD)
    low, high = score["true_fact_share_ci"]
    assert 0.75 < low < score["true_fact_share"] < high < 1
    assert json.loads(json.dumps(score, allow_nan=False)) == score
    assert score["people"] == 20


def test_texts_of_one_person_are_one_unit():
    records = [_record(i, wrong=("award",) * (i % 2), variant=v)[0] for i in range(6) for v in (0, 1)]
    score = world_facts.score_world(records, WORLD)
    assert (score["texts"], score["people"]) == (12, 6)


def test_paired_comparison_uses_the_people_both_wrote_about():
    good = [world_facts.judge_text(_record(i)[0], WORLD) for i in range(10)]
    bad = [world_facts.judge_text(_record(i, wrong=("award", "spouse"))[0], WORLD) for i in range(2, 14)]
    result = world_facts.compare_texts(good, bad)
    wrong = sum(not f.true for text in bad[:8] for f in text.facts)
    total = sum(len(text.facts) for text in bad[:8])
    assert result["people"] == 8
    assert result["difference"] == pytest.approx(wrong / total)
    assert result["difference_ci"][0] > 0
    with pytest.raises(DataError, match="different people"):
        world_facts.compare_texts(good[:1], bad[5:])


def test_bad_input_is_named():
    with pytest.raises(DataError, match="no generated texts"):
        world_facts.score_world([], WORLD)
    with pytest.raises(DataError, match="generation without text, origins, spans"):
        world_facts.score_world([{"prompt": "x"}], WORLD)


def test_origin_of_a_value_that_both_wrote_is_mixed():
    spans = [(0, 9, "model"), (9, 10, "partner"), (10, 14, "model")]
    assert world_facts.origin_of(9, 10, spans) == "partner"
    assert world_facts.origin_of(8, 11, spans) == "mixed"
    assert world_facts.origin_of(10, 12, spans) == "model"
    assert world_facts.origin_of(20, 22, spans) == ""


def test_a_generation_object_is_judged_like_its_json():
    record, _ = _record(5, wrong=("award",))
    fields = dict.fromkeys(Generation.__dataclass_fields__)
    generation = Generation(**{**fields, **record, "budget_met": True, "partner_failures": 0})
    assert world_facts.judge_text(generation, WORLD) == world_facts.judge_text(record, WORLD)
