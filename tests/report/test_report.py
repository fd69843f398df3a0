"""The page: self-contained, escaped, deterministic, and honest about what it could not read."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import fake_runs as fake
import pytest
from page_reader import read_page

from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation import world_facts
from lacy_jax.formatting import number, percent
from lacy_jax.report import markup, run_record
from lacy_jax.report import page as report
from lacy_jax.report import tables as report_tables
from lacy_jax.report.charts import Series, bar_chart, line_chart, nice_ticks


def test_quickstart_page_has_every_part_and_loads_nothing(quickstart):
    path = report.report_command([quickstart])
    page, source = read_page(path), path.read_text(encoding="utf-8")
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
    page = read_page(report.report_command([quickstart]))
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


def test_single_training_run_without_results_or_evaluation(tmp_path):
    run = fake.make_run(tmp_path / "run", "lacy", evaluation=False)
    page = read_page(report.report_command([run]))
    assert "Training loss" in page.text
    assert "Gates as detectors" in page.text, "from the validation rows of metrics.jsonl"
    assert "article" not in page.tags
    assert "script" not in page.tags
    assert (run / "report.html").exists()


def test_run_with_nothing_but_a_config(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "Configuration" in read_page(report.report_command([folder])).text


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
    page = read_page(path)
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
    page = read_page(report.report_command([run]))
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
    page = read_page(report.report_command([quickstart]))
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
