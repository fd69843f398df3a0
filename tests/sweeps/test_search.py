"""Searches: their points, what is stopped early, kills, several machines, and what is refused. The trainer is a stand-in."""

from __future__ import annotations

import collections
import json
import pathlib
import signal
import sys
import time

import numpy as np
import pytest
import warm_python

from lacy_jax import cli, sweeps
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.run_files import METADATA_FILE
from lacy_jax.sweeps import run
from lacy_jax.sweeps.study import Study
from lacy_jax.sweeps.table import sweep_command

EXPERIMENT = """
from lacy_jax import sweeps
from lacy_jax.config import get_default_config
def get_config(arg=""):
    c = get_default_config()
    c.train.steps, c.train.eval_every, c.optimizer.warmup_steps = 4, 0 if arg == "end" else 1, 1
    return c
def sweep(arg=""):
    space = {"optimizer.learning_rate": sweeps.uniform(1e-4, 1e-1, log=True), "model.n_layers": sweeps.uniform(1, 4), "objective.policy": ["ntp", "lacy"]}
    if arg == "typo":
        space["optimizer.learning_rat"] = [1.0]
    if arg == "range":
        space["objective.call_rate"] = sweeps.uniform(0.1, 1.5)
    if arg == "data":
        space["corpus.people"] = [10, 20]
    if arg == "seed":
        space["seed"] = [1, 2]
    return sweeps.Search(space, points=8, start=4, seeds=2, keep=0.5, after=2)
"""

TRAINER = """
import json, math, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
place = pathlib.Path(given["--workdir"])
rate, layers, seed = float(given["--config.optimizer.learning_rate"]), int(given["--config.model.n_layers"]), int(given["--config.seed"])
with open(place.parent.parent / "starts.txt", "a") as log:
    log.write(place.name + "\\n")
if os.environ.get("FAIL", "nothing") in place.name:
    sys.exit("lacy train: the disk is full")
metrics = place / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(done + 1, 5):
    time.sleep(float(os.environ.get("PACE", "0.02")))
    nll = 2 + abs(math.log10(rate) + 2) + 1 / layers + seed / 100 + 1 / step
    with metrics.open("a") as out:
        out.write(json.dumps({"step": step, "split": "valid", "nll": nll}) + "\\n")
"""

DRIVER = """
import sys
from lacy_jax.sweeps import run, table
from etils import epath
run._LACY, run._POLL_S, run._LOOK_S = (sys.executable, sys.argv[1]), 0.01, 0.02
table.sweep_command(sys.argv[2], [], epath.Path(sys.argv[3]), False, 1, None, "valid/nll")
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    monkeypatch.setattr(run, "_LACY", (sys.executable, str(path)))
    monkeypatch.setattr(run, "_POLL_S", 0.01)
    monkeypatch.setattr(run, "_LOOK_S", 0.02)
    return path


def _workdir(path: pathlib.Path) -> pathlib.Path:
    (path / "dataset").mkdir(parents=True)
    (path / "dataset" / METADATA_FILE).write_text("{}")
    return path


def _search(experiment, workdir, jobs=1):
    return sweep_command(experiment, [], workdir, False, jobs, None, "valid/nll")[0]["trials"]


def _points(trials):
    return [(one["name"], one["overrides"], one["status"], one["valid"].get("nll")) for one in trials]


def test_sobol_points_fill_the_space_and_are_a_prefix_of_more():
    space = {"a": sweeps.uniform(1e-4, 1e-1, log=True), "b": sweeps.uniform(0.5, 1.0), "c": sweeps.uniform(1, 4), "d": ["x", "y"]}  # fmt: skip
    points = sweeps.sobol(space, 16)
    assert points[:5] == sweeps.sobol(space, 5)
    assert points != sweeps.sobol(space, 16, seed=1)
    shares = np.log10([one["a"] for one in points]) / 3 + 4 / 3
    assert np.histogram(shares, 4, (0, 1))[0].tolist() == [4, 4, 4, 4]
    assert all(0.5 <= one["b"] <= 1.0 for one in points)
    assert collections.Counter(one["c"] for one in points) == dict.fromkeys((1, 2, 3, 4), 4)
    assert collections.Counter(one["d"] for one in points) == {"x": 8, "y": 8}
    seeds = list(sweeps.product(points, sweeps.seeds(3)))
    assert len(seeds) == 48  # Any sweep may use them.


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sweeps.uniform(2, 1), "low must be below high"),
        (lambda: sweeps.uniform(0, 1, log=True), "and positive"),
        (lambda: sweeps.sobol({}, 4), "needs fields"),
        (lambda: sweeps.sobol({"a": "xy"}, 4), "a: give sweeps.uniform"),
        (lambda: sweeps.sobol({"a": [1]}, 0), "0 points"),
        (lambda: sweeps.Search({"a": [1]}, points=0), "points=0"),
        (lambda: sweeps.Search({"a": [1]}, points=1, keep=0), "keep=0"),
    ],
)
def test_a_space_that_cannot_be_is_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("arg", "options", "says"),
    [
        ("typo", (), "did you mean config.optimizer.learning_rate?"),
        ("range", (), "call_rate=1.5"),
        ("seed", (), "the seed is no field to search over"),
        ("end", (), "config.train.eval_every = 0: a search that stops points early"),
        ("data", (), "config.corpus.people is a matter of `lacy prepare`"),
        ("", ("--config.seed=3",), "--config.seed: the search sets this field itself"),
        ("", ("--jobs=0",), "--jobs=0"),
        ("", (), "run lacy prepare"),
        (
            "",
            ("--workdir=gs://bucket/x",),
            "the journal of a search needs a file system; give --journal=FILE",
        ),
    ],
)
def test_a_bad_search_is_one_line_before_anything_runs(experiment, tmp_path, capsys, arg, options, says):
    workdir = tmp_path / "w" if says == "run lacy prepare" else _workdir(tmp_path / "w")
    spec = f"--config={experiment}:{arg}" if arg else f"--config={experiment}"
    assert cli.main(["sweep", spec, f"--workdir={workdir}", *options]) == 2
    err = capsys.readouterr().err.splitlines()
    assert says in err[-1]
    assert not list((tmp_path / "w").glob("trials/*"))


def test_without_optuna_it_says_what_to_install(experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'lacy_jax\[search\]'"):
        _search(experiment, _workdir(tmp_path / "w"))


def test_poor_points_stop_early_and_the_others_run_all_seeds(experiment, trainer, tmp_path, capsys):
    workdir = _workdir(tmp_path / "w")
    trials = _search(experiment, workdir)
    statuses = collections.Counter(one["status"] for one in trials)
    assert 0 < statuses["stopped"] <= 6
    assert statuses["done"] == 2 * (8 - statuses["stopped"])
    assert statuses.keys() == {"done", "stopped"}
    study = Study(_loaded(experiment), experiment, [], workdir, "valid/nll")
    done = [point for point in study.points() if point.state == "done"]
    for point in done:  # The value is the mean over seeds.
        nlls = [one["valid"]["nll"] for one in trials if one["name"].startswith(f"{point.number:03d},")]
        assert point.value == pytest.approx(sum(nlls) / 2)
    stopped = [one["name"] for one in trials if one["status"] == "stopped"]
    assert all(name.endswith("seed=0") for name in stopped)
    page = (workdir / "sweep.html").read_text()
    assert f"{len(stopped)} of them stopped early" in page
    assert page.count("<figure>") == 4  # Two ranges, one list, all of them across.
    assert page.count('class="curve thin') == len(trials)
    assert "log10 of optimizer.learning_rate" in page
    assert f"stopped early: {len(stopped)} lines" in page
    before = (workdir / "starts.txt").read_text()
    assert _points(_search(experiment, workdir)) == _points(trials)
    assert (workdir / "starts.txt").read_text() == before, "a finished search runs nothing again"
    assert "8 of 8 points done" in capsys.readouterr().err


def _loaded(experiment):
    from lacy_jax.sweeps.trials import load_sweep

    return load_sweep(experiment)


def test_a_killed_search_goes_on_to_the_same_points(experiment, trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("PACE", "0.1")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    workdir = _workdir(tmp_path / "killed")
    for wanted in (2, 5):
        process = warm_python.Popen([sys.executable, driver, trainer, experiment, workdir])
        deadline = time.monotonic() + 120
        while len(list(workdir.glob("trials/*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    monkeypatch.setenv("PACE", "0.02")
    killed = _search(experiment, workdir)
    # Which step a stopped run was at depends on the clock; which points there are, and what became of them, does not.
    whole = _search(experiment, _workdir(tmp_path / "whole"))
    assert [point[:3] for point in _points(killed)] == [point[:3] for point in _points(whole)]
    done = [[p for p in _points(trials) if p[2] == "done"] for trials in (killed, whole)]
    assert done[0] == done[1]


def test_two_machines_share_a_search(experiment, trainer, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    workdir = _workdir(tmp_path / "shared")
    both = [warm_python.Popen([sys.executable, driver, trainer, experiment, workdir]) for _ in range(2)]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    starts = (workdir / "starts.txt").read_text().splitlines()
    assert len(starts) == len(set(starts)), "no run was trained twice"
    study = Study(_loaded(experiment), experiment, [], workdir, "valid/nll")
    assert sorted(point.number for point in study.points()) == list(range(8))
    assert all(point.state in ("done", "stopped") for point in study.points())


def test_a_point_that_is_finished_elsewhere_while_it_is_claimed_is_left_alone(
    experiment, tmp_path, monkeypatch
):
    workdir = _workdir(tmp_path / "w")
    ours, theirs = (Study(_loaded(experiment), experiment, [], workdir, "valid/nll") for _ in range(2))
    point = theirs.claim(1)
    lock = ours._lock

    def finished_first(number: int) -> bool:
        if number == point.number and number in theirs._locks:
            theirs._study.tell(point.handle, 1.0)
            theirs.release(point)
        return lock(number)

    monkeypatch.setattr(ours, "_lock", finished_first)
    claimed = ours.claim(1)
    assert claimed.number != point.number
    assert list(ours._locks) == [claimed.number]


def test_a_failing_run_is_named_and_tried_again_by_the_next_call(
    experiment, trainer, tmp_path, monkeypatch, capsys
):
    workdir = _workdir(tmp_path / "w")
    monkeypatch.setenv("FAIL", "001,")
    arguments = ["sweep", f"--config={experiment}", f"--workdir={workdir}", "--jobs=2"]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 of " in said
    assert "trials failed, first 001," in said
    assert "the disk is full" in said
    monkeypatch.delenv("FAIL")
    assert cli.main(arguments) == 0
    assert "failed" not in capsys.readouterr().out


def test_runs_elsewhere_are_emitted_as_points_are_finished(experiment, tmp_path, capsys):
    """As for slices: each call reads what the runs wrote, and prints what is to be started next."""
    journal, workdir = tmp_path / "journal", tmp_path / "bucket"

    def emitted() -> list[str]:
        arguments = [
            "sweep",
            f"--config={experiment}",
            f"--workdir={workdir}",
            f"--journal={journal}",
            "--jobs=2",
        ]
        assert cli.main([*arguments, "--emit={workdir} {arguments}"]) == 0
        return capsys.readouterr().out.splitlines()

    first = emitted()
    assert len(first) == 2
    assert first == emitted(), "nothing has been written, so the same two"
    assert "--config.seed=0" in first[0]
    place = pathlib.Path(first[0].split()[0].strip("'"))
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "valid", "nll": 2.0}) + "\n")
    second = emitted()
    assert "--config.seed=1" in second[0]  # The next seed of the first point ...
    assert second[1] == first[1]  # ... and the second point, still at work.
    place = pathlib.Path(second[0].split()[0].strip("'"))
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "valid", "nll": 3.0}) + "\n")
    third = emitted()
    assert third[0] == first[1]
    assert "/002," in third[1]  # A point that is finished makes room for the next.


def test_a_journal_of_something_else_is_refused(experiment, tmp_path):
    workdir = _workdir(tmp_path / "w")
    search = _loaded(experiment)
    Study(search, experiment, [], workdir, "valid/nll")
    with pytest.raises(ConfigError, match="is of another search: its metric is valid/nll, not train/loss"):
        Study(search, experiment, [], workdir, "train/loss")
    with pytest.raises(ConfigError, match="its fields is"):
        Study(search, experiment, ["train.steps=5"], workdir, "valid/nll")
    (tmp_path / "broken").write_text("not json\n{}\n")
    with pytest.raises(DataError, match="no journal of a search"):
        Study(search, experiment, [], workdir, "valid/nll", str(tmp_path / "broken"))
    with pytest.raises(ConfigError, match="only a search has one"):
        sweep_command(str(pathlib.Path(__file__).parents[2] / "experiments" / "call_rate.py:smoke"), [], workdir, True, 1, None, "valid/nll", "x")  # fmt: skip
