"""The page: self-contained, escaped, deterministic, and honest about what it could not read."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re

import fake_runs as fake
import numpy as np
import pytest

from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation import (
    fact_marks,
    markup,
    report,
    report_seeds,
    report_tables,
    report_texts,
    run_record,
    world_facts,
)
from lacy_jax.evaluation.charts import Series, bar_chart, line_chart, nice_ticks, number, percent
from lacy_jax.evaluation.factscore import Entry, KnowledgeSource, run_factscore

VOID = {"meta", "link", "input", "br"}


class _Page(html.parser.HTMLParser):
    """Checks nesting, and collects what a reader or a screen reader gets."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def _page(path):
    return _Page(path.read_text(encoding="utf-8"))


def test_quickstart_page_has_every_part_and_loads_nothing(quickstart):
    path = report.report_command([quickstart])
    page, source = _page(path), path.read_text(encoding="utf-8")
    for heading in (
        "Comparison",
        "Texts",
        "Training",
        "Calls and gates",
        "Configuration and environment",
    ):
        assert heading in page.text
    for name in fake.METHODS:
        assert name in page.text
    assert page.tags.count("script") == 1
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source, "no other script may run"
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "poster", "action", "data"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"url\(|@import|https?://", source)
    assert len(page.ids) == len(set(page.ids))
    anchors = {value[1:] for tag, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert anchors <= set(page.ids)
    assert "lacy train --workdir=lacy" in page.text
    figures = json.loads((quickstart / "results.json").read_text())["runs"]
    for row in figures.values():
        assert percent(row["true_fact_share"]).replace("\N{NO-BREAK SPACE}", " ") in page.text


def test_every_chart_and_verdict_can_be_read_without_seeing_colour(quickstart):
    page = _page(report.report_command([quickstart]))
    charts = [dict(pairs) for pairs in _by_element(page, "svg") if dict(pairs).get("role") == "img"]
    assert len(charts) > 15
    assert all(chart["aria-label"] for chart in charts)
    assert page.text.count("✓") > 5
    labels = [value for tag, name, value in page.attributes if name == "aria-label"]
    assert "(true)" in labels
    assert "(false)" in labels
    assert page.tags.count("mark") > 5


def _by_element(page, tag):
    """Attribute lists of the elements of one tag, cut where `viewBox` or `class` starts a new one."""
    found = []
    for name, key, value in page.attributes:
        if name == tag:
            if key in ("viewbox", "class"):
                found.append([])
            found[-1].append((key, value))
    return found


def test_page_is_a_function_of_its_inputs(quickstart):
    first = report.report_command([quickstart], quickstart / "a.html").read_bytes()
    assert report.report_command([quickstart], quickstart / "b.html").read_bytes() == first


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
    page, source = _page(report.report_command([run])), (run / "report.html").read_text()
    assert re.search(r'<span class="fact true" title="Ada Bell was a[^"]*: true">Norwegian', source)
    assert re.search(r'<span class="fact false"[^>]*><mark [^>]*>Oslo', source), (
        "partner and verdict both show"
    )
    assert "stated facts true by embedded" in page.text, "who judged is said"
    facts = dict(re.findall(r'data-entity="([^"]+)" data-facts="([^"]+)"', source))
    assert {"false-partner", "true-own"} == set(facts["Ada Bell"].split())
    assert facts["Cy Dent"] == "unverified-own unverified-partner"
    assert "nothing stated that embedded value matching, 2nd edition could verify" in page.text
    (run / "factscore" / "call_margin-22_factscore_output.json").write_text("{}")
    page = _page(report.report_command([run]))
    assert "no FActScore output" in page.text


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
    page = _page(report.report_command([tmp_path]))
    assert "Gates and partners: seen people" in page.text
    assert "my judge" in page.text
    assert "12.5 % [10.0 %, 20.0 %]" in page.text
    facets = {value for tag, name, value in page.attributes if tag == "input" and name == "name"}
    assert {"gate", "people"} <= facets
    assert "method" not in facets, "a choice of one is none"
    (tmp_path / "gates.json").write_text("{")
    assert "gates.json: not readable" in _page(report.report_command([tmp_path])).text


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
    text = _page(report.report_command(folders)).text
    assert "Methods over seeds" in text
    assert "80.0 % [55.2 %, 104.8 %]" in text
    assert "+60.0 [+35.2, +84.8]" in text
    assert "Runs over seeds" in text
    assert "0, 1, 2" in text
    assert "over seeds" not in _page(report.report_command(folders[:1])).text.lower().replace(
        "methods over", "over"
    )


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_method(tmp_path):
    for seed in (0, 1):
        run = fake.make_run(tmp_path / f"run{seed}", "lacy")
        config = json.loads((run / "config.json").read_text())
        config["seed"], config["optimizer"]["learning_rate"] = seed, 1e-3 * (1 + seed)
        (run / "config.json").write_text(json.dumps(config))
    assert "Runs over seeds" not in _page(report.report_command([tmp_path])).text


def test_runs_are_compared_over_the_same_people_subjects_and_items(tmp_path):
    figures = {
        "lacy": ("embedded", {"Ada": [3, 4], "Bo": [4, 4], "Cy": [1, 1]}, {"x": [0, 2], "y": [1, 2]}, "1110"),
        "ntp": ("embedded", {"Ada": [1, 4], "Bo": [2, 4]}, {"x": [2, 2], "y": [1, 2]}, "1010"),
        "loss": ("another", {"Ada": [1, 4]}, {"z": [1, 1]}, ""),
    }
    for name, (judge, topics, subjects, right) in figures.items():
        run = fake.make_run(tmp_path / name, name, evaluation=False)
        (run / "evaluation_factscore.json").write_text(json.dumps({"judge": judge, "by_topic": topics}))
        (run / "evaluation_leakage.json").write_text(json.dumps({"by_subject": subjects}))
        (run / "evaluation_nlu.json").write_text(
            json.dumps({"tasks": {"piqa": {"acc": 0.5, "right": right}}})
        )
    records = {record.name: record for record in run_record.read_runs([tmp_path])}
    (table,) = report_seeds.paired_tables([records["lacy"], records["ntp"], records["loss"]])
    rows = {row[1]: row for row in table.rows}
    assert {row[0] for row in table.rows} == {"lacy minus ntp"}, "no other judge, no other subjects"
    assert rows["FActScore, unpenalised, judge embedded"][2:] == ("+50.0 [+50.0, +50.0]", "2")
    assert rows["leakage"][2].startswith("-50.0 [")
    assert rows["piqa, accuracy"][2].startswith("+25.0 [")
    assert rows["piqa, accuracy"][3] == "4"


def test_a_page_keeps_its_size_and_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report_texts, "MOST_TEXTS", 5)
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False, samples=fake.make_samples(8)["lacy"])
    page = _page(report.report_command([run]))
    assert page.tags.count("article") == 5
    assert "3 more texts are in the run directories" in page.text


def test_single_training_run_without_results_or_evaluation(tmp_path):
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False)
    page = _page(report.report_command([run]))
    assert "Training loss" in page.text
    assert "Gates as detectors" in page.text, "from the validation rows of metrics.jsonl"
    assert "article" not in page.tags
    assert "script" not in page.tags
    assert (run / "report.html").exists()


def test_run_with_nothing_but_a_config(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "Configuration" in _page(report.report_command([folder])).text


def test_hostile_text_is_shown_not_run(tmp_path):
    bad = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
    run = fake.make_run(tmp_path / "run", "lacy")
    config = json.loads((run / "config.json").read_text())
    config["name"] = bad
    (run / "config.json").write_text(json.dumps(config))
    sample = {
        "prompt": bad,
        "text": bad + "</p>",
        "origins": ["model", "partner"],
        "spans": [[0, 5, "model"], [5, 30, "partner"]],
    }
    results = {
        "budget": 0.22,
        "runs": {
            bad: {
                "true_fact_share": 0.5,
                "by_attribute": {bad: {"stated": 1, "true": 1, "true_fact_share": 1.0}},
            }
        },
    }
    path = tmp_path / "page.html"
    report.write_report(path, results, [run], {bad: [sample]}, title=bad, commands=[bad])
    page = _page(path)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_corrupt_lines_are_skipped_and_named(tmp_path):
    run = fake.make_run(tmp_path / "run", "lacy", samples=fake.make_samples(2)["lacy"])
    whole = len(run_record.read_run(run).train)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 460, "split": "tr\n\xff\xfe\n[1]\n{"step": 1}\n{"no": 2}\n')
    (run / "samples" / "bad.jsonl").write_text('{"prompt": "x", "text": "y"}\nnot json\n')
    (run / "environment.json").write_text("{")
    record = run_record.read_run(run)
    assert len(record.train) == whole
    page = _page(report.report_command([run]))
    first = (
        sum(1 for line in (run / "metrics.jsonl").read_bytes().split(b"\n") if line.startswith(b'{"step"'))
        - 1
    )
    assert f"metrics.jsonl:{first}: " in page.text
    assert "2 more lines skipped" in page.text
    assert "bad.jsonl:2: " in page.text
    assert "1 of 1 lines are not generations" in page.text
    assert "environment.json: not readable as JSON" in page.text


def test_folders_that_are_no_runs_are_refused_in_one_line(tmp_path):
    for paths, words in (
        ([tmp_path / "missing"], "run directory not found"),
        ([tmp_path], "no run found in"),
        ([], "no run directory given"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            run_record.find_runs(paths)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nothing to report on"):
        report.write_report(tmp_path / "x.html")
    with pytest.raises(DataError, match="not a run directory"):
        report.write_report(tmp_path / "x.html", None, [tmp_path])
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False)
    for bad in ({"budget": 0.22}, {"runs": {"lacy": 3}}, [], {"runs": {}, "by_budget": {"0.1": 1}}):
        with pytest.raises(DataError, match="expected"):
            report.write_report(tmp_path / "x.html", bad, [run])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="results unreadable"):
        report.report_command([tmp_path])
    assert not (tmp_path / "x.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(LacyError, match="cannot write"):
        report.report_command([run], tmp_path / "file" / "report.html")


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        fake.make_run(tmp_path / parent / "lacy", "lacy", evaluation=False)
    names = [r.name for r in run_record.read_runs([tmp_path / "a" / "lacy", tmp_path / "b" / "lacy"])]
    assert names == ["a/lacy", "b/lacy"]
    assert len(run_record.find_runs([tmp_path / "a", tmp_path / "a" / "lacy"])) == 1


def test_config_differences_name_the_fields_that_differ(quickstart):
    page = _page(report.report_command([quickstart]))
    after = page.text.split("Where the runs differ")[1].split("Commands")[0]
    assert "objective.policy" in after
    assert "optimizer.learning_rate" not in after


def test_charts_leave_out_what_is_missing():
    assert line_chart("t", [Series("a", [1, 2], [None, float("nan")])], x_label="x", y_label="y") == ""
    assert bar_chart("t", ["r"], [Series("a", [], [None])], value_label="v", value_range=(0, 1)) == ""
    chart = line_chart("t", [Series("a", [1, 2, 3], [0.5, None, 0.7])], x_label="x", y_label="y")
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    assert len(points) == 2
    single = line_chart("t", [Series("a", [5], [3.0])], x_label="x", y_label="y")
    assert "nan" not in single
    assert "inf" not in single


def test_line_chart_puts_points_where_they_belong():
    chart = line_chart("t", [Series("a", [0, 10], [0.0, 1.0])], x_label="x", y_label="y", y_range=(0.0, 1.0))
    first, last = ([float(v) for v in p.split(",")] for p in re.search(r'points="([^"]*)"', chart)[1].split())
    ticks = {text: float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart)}
    assert first[1] == pytest.approx(ticks["0"] - 4, abs=0.2)
    assert last[1] == pytest.approx(ticks["1"] - 4, abs=0.2)
    assert last[0] > first[0]


def test_long_curves_are_averaged_down_not_cut():
    steps = list(range(10_000))
    chart = line_chart("t", [Series("a", steps, [1.0] * 10_000)], x_label="x", y_label="y")
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    assert 100 < len(points) <= 400
    assert float(points[-1].split(",")[0]) > 350


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (-3.2, 7.9), (1e-5, 3e-3), (5, 5), (0, 123456)])
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= low
    assert ticks[-1] >= high


def test_figures_at_reading_precision():
    assert [number(v) for v in (None, float("nan"), 0, 3.0, 0.012345, 1234.5, 812_544, 1_843_200)] == [
        "–", "–", "0", "3", "0.0123", "1234", "813k", "1.84M",
    ]  # fmt: skip
    assert percent(0.2189) == "21.9\N{NO-BREAK SPACE}%"


def test_headline_counts_what_is_stated_and_names_the_best_first():
    rows = {
        "a": {"true_fact_share": 0.5, "stated_facts": 4},
        "b": {"true_fact_share": 0.25, "stated_facts": 200},
        "c": {"true_fact_share": None, "stated_facts": 0},
    }
    line = report_tables.headline({"budget": 0.1, "runs": rows}).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        line
        == "At a call budget of 10 % of the tokens, a is right in 50.0 % of 4 stated facts (b 25.0 % of 200)."
    )
    assert report_tables.headline({"runs": {"c": rows["c"]}}) == ""


def test_partner_text_is_marked_where_it_is():
    record = {"prompt": "P", "text": " was <b> in it", "origins": ["model", "partner"]}
    record["spans"] = [[0, 4, "model"], [4, 8, "partner"], [8, 14, "model"]]
    judged = world_facts.judge_text(record, fake.WORLD)
    assert markup.render_text(judged) == (
        '<span class="given">P</span> was <mark title="written by the partner">&lt;b&gt;</mark> in it'
    )
    assert markup.describe(judged) == "not verified · partner wrote 50.0 % of 2 tokens"


def test_the_space_before_a_fact_is_not_boxed():
    facts = (world_facts.JudgedFact(2, 6, "s", "birth_place", "x", True, "partner", False),)
    judged = world_facts.JudgedText("s", "P Oslo ", 1, facts, ((1, 7, "partner"),), 1, 1, True, 0)
    assert markup.render_text(judged).startswith('<span class="given">P</span> <span class="fact true"')
    blank = world_facts.JudgedText("s", "P  ", 1, (), ((1, 3, "partner"),), 1, 1, True, 0)
    assert markup.render_text(blank).endswith('<mark title="written by the partner">  </mark>'), (
        "all it wrote"
    )


def test_bars_of_several_series_carry_their_markers():
    several = [Series("a", [], [0.5], style=0), Series("b", [], [0.4], style=1)]
    chart = bar_chart("t", ["r"], several, value_label="v", value_range=(0, 1))
    drawing, legend = chart.split('<ul class="legend">')
    for style in (0, 1):
        assert f'class="marker c{style}"' in drawing
        assert f'class="marker c{style}"' in legend


def test_a_fact_that_crosses_a_partner_span_keeps_both_marks():
    facts = (world_facts.JudgedFact(2, 8, "s", "birth_place", "x", False, "mixed", False),)
    spans = ((1, 5, "model"), (5, 10, "partner"))
    judged = world_facts.JudgedText("s", "Pabcdefghij", 1, facts, spans, 4, 2, False, 1)
    assert markup.render_text(judged) == (
        '<span class="given">P</span>a<span class="fact false" title="birth place: false">bcd'
        '<mark title="written by the partner">efg</mark></span><span class="tick false" role="img" aria-label="(false)">✗</span>'
        '<mark title="written by the partner">hi</mark>j'
    )
    assert markup.describe(judged) == (
        "0 of 1 stated facts true · partner wrote 50.0 % of 4 tokens · call budget not met · 1 calls failed"
    )
