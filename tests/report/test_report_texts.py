"""Texts, studies and comparisons of many runs in the page."""

from __future__ import annotations

import json
import re

import fake_runs as fake
import numpy as np
import pytest
from page_reader import read_page

from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore import Entry, KnowledgeSource, run_factscore
from lacy_jax.report import fact_marks, run_record
from lacy_jax.report import page as report
from lacy_jax.report import seeds as report_seeds
from lacy_jax.report import texts as report_texts


def test_texts_are_named_by_method_gate_and_budget(quickstart):
    results = json.loads((quickstart / "results.json").read_text())
    results["runs"]["lacy"]["gate"], results["runs"]["ntp+margin"]["gate"] = "call_margin", "margin"
    texts = fake.make_samples(2)["lacy"]
    for run, gate, budget in (
        ("lacy", "call_margin", 0.22),
        ("lacy", "random", 0.05),
        ("ntp", "margin", 0.22),
    ):
        lines = [json.dumps({**text, "gate": gate, "budget": budget}) + "\n" for text in texts]
        (quickstart / run / "samples" / f"{gate}-{100 * budget:g}.jsonl").write_text("".join(lines))
        (quickstart / run / "samples" / "450-call_margin-0.22.jsonl").unlink(missing_ok=True)
    line = json.dumps({**texts[0], "gate": "call_margin", "budget": 0.0}) + "\n"
    (quickstart / "lacy" / "samples" / "partner-alone.jsonl").write_text(line)
    records = run_record.read_runs([quickstart])
    sets, notes = report_texts.collect_texts(records, results)
    assert notes == []
    found = {tuple(one.facets[name] for name in ("method", "gate", "budget")) for one in sets}
    assert ("lacy", "call_margin", "22\N{NO-BREAK SPACE}%") in found
    assert ("lacy", "random", "5\N{NO-BREAK SPACE}%") in found, (
        "a gate that is no method's keeps the run's name"
    )
    assert ("ntp+margin", "margin", "22\N{NO-BREAK SPACE}%") in found
    assert ("lacy's partner", "alone", "alone") in found
    section = report_texts.text_section(sets, {}, budget=0.22)
    budgets = next(facet for facet in section["facets"] if facet["name"] == "budget")["values"]
    assert {v["value"]: v["checked"] for v in budgets}["5\N{NO-BREAK SPACE}%"] is False
    assert {v["value"]: v["checked"] for v in budgets}["22\N{NO-BREAK SPACE}%"] is True


def test_factscore_verdicts_are_marked_in_the_text_they_are_about(tmp_path):
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False)
    config = json.loads((run / "config.json").read_text())
    config["corpus"]["kind"] = "jsonl"
    (run / "config.json").write_text(json.dumps(config))
    (run / "samples").mkdir()
    continuation = " was a Norwegian chemist. She was born in Oslo."
    text = {"prompt": "Ada Bell", "text": continuation, "origins": ["model", "partner"],
            "spans": [[0, len(continuation) - 5, "model"], [len(continuation) - 5, len(continuation), "partner"]],
            "gate": "call_margin", "budget": 0.22}  # fmt: skip
    other = {**text, "prompt": "Cy Dent"}
    (run / "samples" / "call_margin-22.jsonl").write_text(json.dumps(text) + "\n" + json.dumps(other) + "\n")
    article = Document("1", "Ada Bell was a Norwegian chemist, born in Bergen.", "Ada Bell")
    knowledge = KnowledgeSource.build(tmp_path / "articles.db", [article])
    entries = [Entry(t["prompt"], t["prompt"] + t["text"], t["prompt"]) for t in (text, other)]
    run_factscore(entries, knowledge, out=run / "factscore" / "call_margin-22.jsonl")
    page, source = read_page(report.report_command([run])), (run / "report.html").read_text()
    assert re.search(r'<span class="fact true" title="Ada Bell was a[^"]*: true">Norwegian', source)
    assert re.search(r'<span class="fact false"[^>]*><mark [^>]*>Oslo', source), (
        "partner and verdict both show"
    )
    assert "stated facts true by embedded" in page.text, "who judged is said"
    facts = dict(re.findall(r'data-entity="([^"]+)" data-facts="([^"]+)"', source))
    assert {"false-partner", "true-own"} == set(facts["Ada Bell"].split())
    assert facts["Cy Dent"] == "unverified-own unverified-partner"
    assert "nothing stated that embedded value matching, 3rd edition could verify" in page.text
    (run / "factscore" / "call_margin-22_factscore_output.json").write_text("{}")
    page = read_page(report.report_command([run]))
    assert "not a FActScore output" in page.text


@pytest.mark.parametrize(
    ("atom", "found"),
    [("Ada was born in Oslo.", "Oslo"), ("Ada is tall.", ""), ("Ada was a chemist", "chemist"), ("In Os.", ""),
     ("Ada was born 1956 in Oslo.", "1956 in Oslo")],
)  # fmt: skip
def test_a_fact_is_placed_where_its_value_stands(atom, found):
    sentence = "Ada was a chemist, born 1956 in Oslo."
    start, end = fact_marks.place(atom, sentence, "Ada Bell")
    assert sentence[start:end] == found


def test_a_gate_study_is_shown_with_its_texts(tmp_path):
    fake.make_run(tmp_path / "lacy", "lacy", evaluation=False)
    rows = []
    for group, gate in (("seen", "call_margin"), ("unseen", "call_margin"), ("seen", "random")):
        rows.append({"group": group, "model": "lacy", "gate": gate, "partner": "database", "score": 0.5, "score_ci": [0.4, 0.6],
                     "init_score": 0.6, "difference": None if gate == "call_margin" else 0.125, "difference_ci": [0.1, 0.2],
                     "judge": "my judge"})  # fmt: skip
        (tmp_path / "texts" / group).mkdir(parents=True, exist_ok=True)
        text = {
            "prompt": f"{group} person",
            "text": " was.",
            "origins": ["model"],
            "spans": [[0, 5, "model"]],
        }
        (tmp_path / "texts" / group / f"lacy-{gate}-database.jsonl").write_text(json.dumps(text) + "\n")
    study = {"budget": 0.22, "reference": ["lacy", "call_margin"], "judge": "my judge", "rows": rows}
    (tmp_path / "gates.json").write_text(json.dumps(study))
    page = read_page(report.report_command([tmp_path]))
    assert "Gates and partners: seen people" in page.text
    assert "my judge" in page.text
    assert "12.5 % [10.0 %, 20.0 %]" in page.text
    facets = {value for tag, name, value in page.attributes if tag == "input" and name == "name"}
    assert {"gate", "people"} <= facets
    assert "method" not in facets, "a choice of one is none"
    (tmp_path / "gates.json").write_text("{")
    assert "gates.json: not readable" in read_page(report.report_command([tmp_path])).text


def test_interval_over_seeds_is_student_t():
    mean, low, high = report_seeds.interval_over_seeds([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.3027 / np.sqrt(3), rel=1e-4))
    assert mean - low == pytest.approx(high - mean)
    with pytest.raises(ValueError, match="at least two"):
        report_seeds.interval_over_seeds([1.0])


def test_result_files_of_several_seeds_give_intervals_over_seeds(tmp_path):
    folders = []
    for seed, share in enumerate((0.7, 0.8, 0.9)):
        folder = tmp_path / f"seed{seed}"
        run = fake.make_run(folder / "lacy", "lacy")
        config = json.loads((run / "config.json").read_text())
        config["seed"] = seed
        (run / "config.json").write_text(json.dumps(config))
        runs = {"ntp": {"true_fact_share": 0.2}, "lacy": {"true_fact_share": share, "call_share": 0.22}}
        differences = {
            "reference": "lacy",
            "rows": {"ntp": {"difference": share - 0.2, "difference_ci": None}},
        }
        results = {"budget": 0.22, "runs": runs, "differences": differences}
        (folder / "results.json").write_text(json.dumps(results))
        folders.append(folder)
    text = read_page(report.report_command(folders)).text
    assert "Methods over seeds" in text
    assert "80.0 % [55.2 %, 104.8 %]" in text
    assert "+60.0 [+35.2, +84.8]" in text
    assert "Runs over seeds" in text
    assert "0, 1, 2" in text
    assert "over seeds" not in read_page(report.report_command(folders[:1])).text.lower().replace(
        "methods over", "over"
    )


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_method(tmp_path):
    for seed in (0, 1):
        run = fake.make_run(tmp_path / f"run{seed}", "lacy")
        config = json.loads((run / "config.json").read_text())
        config["seed"], config["optimizer"]["learning_rate"] = seed, 1e-3 * (1 + seed)
        (run / "config.json").write_text(json.dumps(config))
    assert "Runs over seeds" not in read_page(report.report_command([tmp_path])).text


def test_runs_are_compared_over_the_same_people_subjects_and_items(tmp_path):
    figures = {
        "lacy": (
            "embedded", {"Ada": [3, 4], "Bo": [4, 4], "Cy": [1, 1]},
            {"x": {"x1": 0, "x2": 0}, "y": {"y1": 1, "y2": 0, "y3": 1}, "z": {"z1": 1}}, "1110",
        ),
        "ntp": (
            "embedded", {"Ada": [1, 4], "Bo": [2, 4]},
            {"x": {"x1": 1, "x2": 1}, "y": {"y1": 1, "y2": 0, "y4": 0}, "z": {"z2": 0}}, "1010",
        ),
        "loss": ("another", {"Ada": [1, 4]}, {"w": {"w1": 1}}, ""),
    }  # fmt: skip
    for name, (judge, topics, subjects, right) in figures.items():
        run = fake.make_run(tmp_path / name, name, evaluation=False)
        (run / "evaluation_factscore.json").write_text(json.dumps({"judge": judge, "by_topic": topics}))
        (run / "evaluation_leakage.json").write_text(json.dumps({"by_question": subjects}))
        (run / "evaluation_nlu.json").write_text(
            json.dumps({"tasks": {"piqa": {"acc": 0.5, "right": right}}})
        )
    records = {record.name: record for record in run_record.read_runs([tmp_path])}
    (table,) = report_seeds.paired_tables([records["lacy"], records["ntp"], records["loss"]])
    rows = {row[1]: row for row in table.rows}
    assert {row[0] for row in table.rows} == {"lacy minus ntp"}, "no other judge, no other subjects"
    assert rows["FActScore, unpenalised, judge embedded"][2:] == ("+50.0 [+50.0, +50.0]", "2")
    assert rows["leakage"][2].startswith(
        "-50.0 ["
    )  # Of the four questions that both were asked: 1 against 3.
    assert rows["leakage"][3] == "2"
    assert rows["piqa, accuracy"][2].startswith("+25.0 [")
    assert rows["piqa, accuracy"][3] == "4"


def test_a_page_keeps_its_size_and_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report_texts, "MOST_TEXTS", 5)
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False, samples=fake.make_samples(8)["lacy"])
    page = read_page(report.report_command([run]))
    assert page.tags.count("article") == 5
    assert "3 more texts are in the run directories" in page.text
