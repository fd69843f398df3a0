"""Sweeps: how trials are made, and the life of one sweep on this machine: listed, run, failed, resumed, tabulated."""

from __future__ import annotations

import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import warm_python

from lacy_jax import cli, sweeps
from lacy_jax.errors import ConfigError
from lacy_jax.sweeps.figures import sweep_chart
from lacy_jax.sweeps.run import Outcome, launch_line, outcome
from lacy_jax.sweeps.table import in_order, trial_table, write_sweep

_EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"

EXPERIMENT = """
from lacy_jax import sweeps
from lacy_jax.config import get_default_config
def get_config(arg=""):
    c = get_default_config()
    c.train.steps = 4
    return c
def sweep(arg=""):
    if arg == "empty":
        return []
    if arg == "broken":
        return [1 / 0]
    if arg == "twice":
        return [{"seed": 1}, {"seed": 1}]
    if arg == "typo":
        return [{"objective.polcy": "ntp"}]
    if arg == "data":
        return sweeps.over("corpus.people", [1, 2])
    return sweeps.product(sweeps.over("objective.policy", ["ntp", "lacy"]), sweeps.seeds(2))
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


def test_ways_to_combine():
    a, b = sweeps.over("x", [1, 2]), sweeps.over("y", [3, 4])
    assert list(sweeps.product(a, b)) == [
        {"x": 1, "y": 3},
        {"x": 1, "y": 4},
        {"x": 2, "y": 3},
        {"x": 2, "y": 4},
    ]
    assert list(sweeps.zip(a, b)) == [{"x": 1, "y": 3}, {"x": 2, "y": 4}]
    assert list(sweeps.chain(a, b)) == [*a, *b]
    assert sweeps.seeds(2, first=5) == [{"seed": 5}, {"seed": 6}]
    assert sweeps.over("x", [1], **{"y.z": 2}) == [{"x": 1, "y.z": 2}]
    with pytest.raises(ConfigError, match="zip of different lengths: 2, 1"):
        list(sweeps.zip(a, sweeps.seeds(1)))
    with pytest.raises(ConfigError, match="x is set by two of the sweeps"):
        list(sweeps.product(a, a))


def test_trials_are_named_by_what_they_set(experiment):
    trials = sweeps.load_trials(experiment, ["train.steps=5"])
    assert [t.name for t in trials] == [
        "policy=ntp,seed=0", "policy=ntp,seed=1", "policy=lacy,seed=0", "policy=lacy,seed=1",
    ]  # fmt: skip
    assert [(t.config.objective.policy, t.config.seed, t.config.train.steps) for t in trials][3] == (
        "lacy",
        1,
        5,
    )
    assert trials[3].arguments() == ["--config.objective.policy=lacy", "--config.seed=1"]


@pytest.mark.parametrize(
    ("arg", "overrides", "says"),
    [
        ("empty", [], "yields no trial"),
        ("broken", [], "ZeroDivisionError"),
        ("twice", [], "2 trials are the same"),
        ("typo", [], "trial 0 (polcy=ntp): config.objective.polcy: no such field; did you mean"),
        ("", ["seed=3"], "--config.seed: the sweep sets this field itself"),
        ("", ["train.stepz=3"], "did you mean config.train.steps?"),
    ],
)
def test_a_bad_sweep_is_one_line_before_anything_runs(experiment, arg, overrides, says):
    with pytest.raises(ConfigError) as caught:
        sweeps.load_trials(f"{experiment}:{arg}", overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def lacy(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_list_emit_and_refusals(experiment, tmp_path, capsys):
    sweep = ("sweep", f"--config={experiment}")
    template = "{index} {experiment} {name}: {config} {workdir} {arguments} | {command}"
    code, out, _ = lacy(capsys, *sweep, f"--workdir={tmp_path}", "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "waiting  policy=ntp,seed=0"
    assert "4 trials, 0 done" in out
    trial = sweeps.load_trials(experiment)[2]
    line = launch_line(template, experiment, ["name=a b"], "gs://b/x", trial)
    fields = "'--config.name=a b' --config.objective.policy=lacy --config.seed=0"
    where = "gs://b/x/trials/policy=lacy,seed=0"
    assert line == (
        f"2 experiment policy-lacy-seed-0: {experiment} {where} {fields} | "
        f"lacy train --config={experiment} {fields} --config.dataset.path=gs://b/x/dataset --workdir={where}"
    )
    code, out, _ = lacy(capsys, *sweep, f"--workdir={tmp_path}", "--emit", "--config.train.steps=5")
    assert code == 0
    assert len(out.splitlines()) == 4
    assert "--config.train.steps=5 --config.objective.policy=ntp --config.seed=0" in out.splitlines()[0]
    assert out.splitlines()[0].endswith(f"--workdir={tmp_path}/trials/policy=ntp,seed=0")
    for arguments, says in (
        (("--emit={nonsense}",), "may name {command}"),
        (("--jobs=0",), "--jobs=0"),
        ((), "run lacy prepare"),
    ):
        code, _, err = lacy(capsys, *sweep, f"--workdir={tmp_path}", *arguments)
        assert (code, says in err.splitlines()[-1]) == (2, True), err
    code, _, err = lacy(capsys, "sweep", f"--config={experiment}:data", f"--workdir={tmp_path}")
    assert code == 2
    assert "config.corpus.people is a matter of `lacy prepare`" in err


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("paper_334m.py", 12), ("paper_334m.py:smoke", 8), ("paper_1b3.py:llama", 12), ("call_rate.py", 18),
        ("call_rate.py:learning_rate", 8), ("call_rate.py:smoke", 2),
    ],
)  # fmt: skip
def test_sweeps_of_the_experiments_are_valid(spec, count):
    assert len(sweeps.load_trials(str(_EXPERIMENTS / spec))) == count


def finished(experiment, tmp_path, values) -> list[Outcome]:
    """Outcomes of the four trials with these validation nlls; None = never started."""
    trials = sweeps.load_trials(experiment)
    found = []
    for trial, value in zip(trials, values):
        folder = tmp_path / "trials" / trial.name
        folder.mkdir(parents=True)
        if value is not None:
            lines = [
                {"step": 4, "split": "train", "loss": value + 1, "tokens_per_s": 12_345.6},
                {"step": 4, "split": "valid", "nll": value},
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found.append(outcome(tmp_path, trial))
    return found


def test_table_plot_and_files(experiment, tmp_path):
    found = finished(experiment, tmp_path, [2.0, 3.0, 1.5, None])
    assert [one.status for one in found] == ["done", "done", "done", "waiting"]
    assert [one.trial.index for one in in_order([found[i] for i in (3, 1, 0, 2)])] == [
        2,
        3,
        0,
        1,
    ]  # lacy came first.
    lines = trial_table(found).splitlines()
    assert lines[0].split() == [
        "trial",
        "status",
        "step",
        "rank",
        "valid/nll",
        "train/loss",
        "train/tokens_per_s",
    ]
    assert [line.split()[0] for line in lines[1:]] == [one.trial.name for one in found]
    assert lines[3].split() == ["policy=lacy,seed=0", "done", "4", "1", "1.5", "2.5", "12,346"]
    assert [line.split()[3] for line in lines[1:]] == ["2", "3", "1", "-"]
    chart = sweep_chart(found, "valid/nll")
    assert chart.count("<rect") == 2  # One bar per policy: the mean over its seeds ...
    assert "2.500" in chart  # ... of 2 and 3.
    write_sweep(tmp_path, "Sweep <x>", found)
    page = (tmp_path / "sweep.html").read_text()
    assert "Sweep &lt;x&gt;" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert (rows[2]["objective.policy"], rows[2]["valid/nll"], rows[3]["valid/nll"]) == ("lacy", "1.5", "")
    assert json.loads((tmp_path / "trials.jsonl").read_text().splitlines()[1])["overrides"]["seed"] == 1


def test_a_numeric_field_is_plotted_as_a_curve(tmp_path):
    spec = str(_EXPERIMENTS / "call_rate.py:learning_rate")
    found = [
        Outcome(trial, "", "done", 300, {}, {"nll": 2.0 + trial.index / 10})
        for trial in sweeps.load_trials(spec)
    ]
    chart = sweep_chart(found, "valid/nll")
    assert "log10 of optimizer.learning_rate" in chart
    assert chart.count("<polyline") == 2
    assert sweep_chart(found, "valid/none") == ""


def test_the_table_is_in_the_order_of_the_values():
    spec = str(_EXPERIMENTS / "call_rate.py:learning_rate")
    trials = sweeps.load_trials(spec)
    found = [Outcome(trial, "", "done", 300, {}, {"nll": 1.0}) for trial in trials]
    names = [one.trial.name for one in in_order(found[::-1])]
    assert names == [
        f"policy={p},learning_rate={r}" for p in ("lacy", "ntp") for r in (0.0003, 0.001, 0.003, 0.01)
    ]


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_a_failing_trial_is_named(tmp_path, capsys):
    spec = f"--config={_EXPERIMENTS / 'call_rate.py'}:smoke"
    work = f"--workdir={tmp_path}"
    assert cli.main(["prepare", spec, work]) == 0
    process = warm_python.Popen([sys.executable, "-m", "lacy_jax.cli", "sweep", spec, work], stderr=subprocess.PIPE, text=True)  # fmt: skip
    first = tmp_path / "trials" / "call_rate=0.0,policy=ntp"
    deadline = time.monotonic() + 300
    while not (first / "log.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "resumable" in err.splitlines()[-1]
    capsys.readouterr()
    code, out, err = lacy(capsys, "sweep", spec, work, "--jobs=2")
    assert code == 0, err
    assert len([line for line in out.splitlines() if " done " in line]) == 2
    before = (first / "metrics.jsonl").read_bytes()
    code, _, err = lacy(capsys, "sweep", spec, work)
    assert (code, (first / "metrics.jsonl").read_bytes()) == (0, before)
    assert "2 of 2 trials done, 0 to run" in err
    code, _, err = lacy(capsys, "sweep", spec, work, "--config.train.steps=4")
    assert code == 2
    assert "2 of 2 trials failed" in err
    assert "config.train.steps" in err
