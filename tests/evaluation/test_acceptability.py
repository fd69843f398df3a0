"""The acceptability study on a tiny run, judged by a real HTTP server on this machine."""

from __future__ import annotations

import json
import re

import completions_server
import pytest
from evaluated_runs import evaluation_config, naive_rows, save_run

from lacy_jax import cli
from lacy_jax.dataset import build_dataset
from lacy_jax.report.page import report_command


def _first(prompt):
    """A judge that accepts the first piece of each list."""
    assert re.search(r"^1: .*\[\[.*\]\]$", prompt, re.MULTILINE)
    return "Sure: [1]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acceptability")
    config = evaluation_config("lacy", folder / "dataset")
    build_dataset(config, folder / "dataset")
    save_run(folder / "lacy", config, 0)
    return folder


def _lacy(capsys, folder, url, *arguments):
    code = cli.main(["evaluate", "--suite=acceptability", f"--workdir={folder}/lacy", f"--judge=chat+{url}#m", "--json", *arguments])  # fmt: skip
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else None, out.err


def test_the_study_and_its_place_in_the_report(folder, capsys):
    with completions_server.CompletionsServer(_first) as server:
        code, figures, err = _lacy(capsys, folder, server.url, "--prices=1,2", "--max-cost=0.000001")
        assert (code, server.requests) == (2, [])
        assert "exceeds --max-cost" in err
        code, figures, err = _lacy(capsys, folder, server.url, "--prices=1,2")
        assert code == 0
        asked = len(server.requests)
        assert figures["requests"] == figures["answered"] == asked > 0
        assert "about to ask" in err
        assert figures["estimate"]["cost"] > 0
        assert (figures["no_answer"], figures["unjudged"]) == (0, 0)
        # One wrong piece of each request was accepted, and every right one without asking.
        assert figures["all"]["acceptable"] == figures["all"]["right"] + asked
        for kind in ("factual", "other"):
            own = [row for row in figures["rows"] if row["kind"] == kind]
            for name in ("positions", "right", "acceptable"):
                assert sum(row[name] for row in own) == figures[kind][name]
        assert _lacy(capsys, folder, server.url)[1]["cached"] == asked == len(server.requests)
    page = report_command([folder / "lacy"]).read_text()
    assert "Acceptable top-1 tokens by loss (nats): lacy" in page
    assert "judge: m" in page


def test_positions_and_losses_are_those_of_the_plain_logits(folder, capsys):
    with completions_server.CompletionsServer(_first) as server:
        figures = _lacy(capsys, folder, server.url)[1]
    nll, _, factual = (_flat(parts) for parts in zip(*naive_rows(folder, "lacy"), strict=True))
    assert figures["factual"]["positions"] == sum(factual)
    # The study leaves the end of a document out, the plain figures don't.
    assert figures["all"]["positions"] == len(nll) - figures["documents"]
    for row in (row for row in figures["rows"] if row["kind"] == "factual"):
        high = row["high"] or float("inf")
        inside = sum(bool(f) and row["low"] <= x < high for x, f in zip(nll, factual, strict=True))
        assert row["positions"] == pytest.approx(inside, abs=len(nll) * 0.02)


def _flat(parts):
    return [value for part in parts for value in part.tolist()]


def test_malformed_answers_are_counted_and_left_out(folder, capsys):
    answers = completions_server.InTurn("I would rather not.", "[1]")
    with completions_server.CompletionsServer(answers) as server:
        (folder / "lacy" / "acceptability_cache").rename(folder / "other_cache")
        figures = _lacy(capsys, folder, server.url, "--limit=2")[1]
        assert figures["documents"] == 2
        assert (figures["no_answer"], figures["why_none"]) == (1, "1 x no list of numbers")
        assert figures["requests"] == len(server.requests) > 2
        assert figures["unjudged"] > 0
        assert figures["all"]["acceptable"] == figures["all"]["right"] + figures["requests"] - 1
        # What could not be read was not kept.
        assert _lacy(capsys, folder, server.url, "--limit=2")[1]["no_answer"] == 0


@pytest.mark.parametrize(
    ("answer", "says"), [("no", "no list of numbers"), ("Example: [41, 44]", "the prompt's own example")]
)
def test_no_answers_at_all_are_an_error(folder, capsys, answer, says):
    with completions_server.CompletionsServer(lambda prompt: answer) as server:
        code, _, err = _lacy(capsys, folder, server.url, "--max-tokens=7")
    assert code == 2
    assert f"answers are unusable: 20 x {says}" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge=embedded"], "expected http://HOST:PORT"),
        (["--max-cost=-1", "--prices=1,2"], "expected a number"),
        (["--max-cost=1"], "needs --prices"),
        (["--prices=1"], "expected two numbers"),
    ],
)
def test_bad_options(folder, capsys, arguments, message):
    code, _, err = _lacy(capsys, folder, "http://127.0.0.1:9/v1", "--limit=1", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
