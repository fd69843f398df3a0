"""The command as its user sees it: one small run through every verb, and bad input."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import signal
import time

import pytest

from lacy_jax import cli, training
from lacy_jax.errors import STORAGE

EXPERIMENT = """
from lacy_jax.config import get_default_config
def get_config(arg=""):
    c = get_default_config()
    c.objective.policy = arg or "lacy"
    c.corpus.people, c.corpus.texts_per_person = 40, 1
    c.tokenizer.vocab_size = 700
    c.dataset.path, c.dataset.shards, c.dataset.valid_fraction = "DATASET", 1, 0.2
    c.model.family = "llama"
    c.model.d_model, c.model.n_layers, c.model.n_heads, c.model.d_ff = 32, 1, 2, 64
    c.input.seq_len, c.input.batch_size = 64, 8
    c.train.steps, c.train.log_every, c.train.eval_batches, c.optimizer.warmup_steps = 4, 1, 1, 1
    c.generate.num_prompts, c.generate.max_new_tokens, c.generate.partner = 2, 12, "world"
    return c
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "experiment.py").write_text(EXPERIMENT.replace("DATASET", str(folder / "dataset")))
    return folder


def lacy(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def run(place):
    """A prepared dataset and a trained run."""
    config = f"--config={place / 'experiment.py'}"
    assert cli.main(["prepare", config]) == 0
    with contextlib.chdir(place):  # A relative path, as most people type it.
        assert cli.main(["train", config, "--workdir=run"]) == 0
    return place / "run"


def test_prepare_and_train_leave_a_full_record(run, place):
    assert json.loads((place / "dataset" / "metadata.json").read_text())["labeller"] == "world"
    for name in ("config.json", "environment.json", "tokenizer.model", "metrics.jsonl", "checkpoints"):
        assert (run / name).exists(), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["split"] == "valid"] == [4]


def test_prepare_says_where_it_writes_and_why(run, place, capsys):
    """The experiment names a folder, which comes before --workdir."""
    experiment, elsewhere = place / "experiment.py", place / "elsewhere"
    arguments = ["prepare", f"--config={experiment}", f"--workdir={elsewhere}"]
    start = f"prepare: writing to {place / 'dataset'}, not below --workdir={elsewhere}: "
    assert f"{start}config.dataset.path of {experiment} says so\n" in lacy(capsys, *arguments)[2]
    own = f"--config.dataset.path={place / 'dataset'}"
    assert f"{start}--config.dataset.path says so\n" in lacy(capsys, *arguments, own)[2]
    assert not elsewhere.exists()
    code, _, err = lacy(capsys, *arguments, "--config.dataset.path=")
    assert code == 0
    assert f"prepare: writing to {elsewhere / 'dataset'}\n" in err
    assert (elsewhere / "dataset" / "metadata.json").exists()


def test_evaluate_generate_inspect_report_from_the_run_directory(run, capsys):
    code, out, _ = lacy(capsys, "evaluate", f"--workdir={run}", "--json", "--batches=1")
    assert code == 0
    result = json.loads(out)
    assert result["policy"] == "lacy"
    assert 0 < result["factual_rate"] < 1

    code, out, _ = lacy(capsys, "generate", f"--workdir={run}", "--json", "--config.generate.budget=0.5")
    assert code == 0
    result = json.loads(out)
    texts = [json.loads(line) for line in pathlib.Path(result["path"]).read_text().splitlines()]
    assert len(texts) == 2
    assert all(len(text["tokens"]) == len(text["origins"]) <= 12 for text in texts)
    assert result["partner_tokens"] == sum(text["origins"].count("partner") for text in texts)
    assert result["partner_tokens"] <= 0.5 * result["tokens"] + 2 * 12

    code, out, _ = lacy(capsys, "inspect", f"--workdir={run}", "--limit=1", "--json")
    assert code == 0
    assert len(json.loads(out)["documents"]) == 1

    code, out, _ = lacy(capsys, "report", f"--workdir={run}")
    assert code == 0
    page = (run / "report.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_training_again_does_nothing_and_prompts_can_be_given(run, place, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert lacy(capsys, "train", f"--workdir={run}")[0] == 0
    assert (run / "metrics.jsonl").read_bytes() == before
    out_file = place / "mine.jsonl"
    arguments = (
        f"--workdir={run}",
        "--prompt=Ada was",
        "--config.generate.partner=none",
        f"--out={out_file}",
    )
    code, out, _ = lacy(capsys, "generate", *arguments)
    assert code == 0
    assert out.startswith("Ada was")
    assert json.loads(out_file.read_text())["origins"].count("partner") == 0


def test_a_bucket_without_gcsfs_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    code, _, err = lacy(
        capsys, "sweep", f"--config={place / 'experiment.py'}", "--workdir=gs://b/x", "--emit"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "gs://b/x: buckets need gcsfs" in err


@pytest.mark.parametrize(("interrupted", "flags", "code"), [(True, [], 0), (True, ["--stopped-exit=75"], 75), (False, ["--stopped-exit=75"], 0)])  # fmt: skip
def test_a_run_that_was_stopped_ends_with_the_status_asked_for(
    place, capsys, monkeypatch, interrupted, flags, code
):
    monkeypatch.setattr(training, "train", lambda *_: training.TrainResult("w", 2, 4, interrupted, {}, {}))
    arguments = (f"--config={place / 'experiment.py'}", f"--workdir={place / 'stopped'}", *flags)
    assert lacy(capsys, "train", *arguments)[0] == code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "--config=FILE.py"),
        (["evaluate", "--workdir=/nowhere"], "no run at /nowhere"),
        (["train", "--config=/nowhere.py", "--workdir=x"], "config file not found"),
        (["report"], "give --workdir=DIR"),
        (["train", "--config={e}", "--workdir={p}/none", "--config.dataset.path={p}/missing"], "missing"),
        (["train", "--config={e}:lazy", "--workdir={p}/x"], "did you mean 'lacy'?"),
        (
            ["prepare", "--config={e}", "--config.corpus.kind=jsonl", "--config.corpus.path={p}/no.jsonl"],
            "no.jsonl",
        ),
        (["generate", "--workdir={r}", "--prompt={long}"], "context"),
        (["generate", "--workdir={r}", "--config.generate.partner=checkpoint:{p}/none"], "none"),
        (["generate", "--workdir={r}", "--config.generate.step=3"], "step 3"),
        (["train", "--workdir={r}", "--config.optimizer.learning_rate=1e-5"], "learning_rate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, place, capsys, arguments, says):
    names = {"{e}": place / "experiment.py", "{p}": place, "{r}": run, "{long}": "word " * 400}
    for key, value in names.items():
        arguments = [argument.replace(key, str(value)) for argument in arguments]
    code, _, err = lacy(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("lacy ")]
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]


def test_a_full_disk_leaves_nothing_under_the_final_name(run, capsys, monkeypatch):
    from etils import epath

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path("/tmp")), "write_bytes", full)
    code, _, err = lacy(capsys, "report", f"--workdir={run}", f"--out={run / 'full.html'}")
    assert code == STORAGE.status
    assert "No space left on device" in err
    assert not list(run.glob("*full.html*"))


def test_an_empty_corpus_and_a_text_that_is_none_are_named(place, capsys):
    path = place / "empty.jsonl"
    path.write_text("")
    config = [
        f"--config={place / 'experiment.py'}",
        "--config.corpus.kind=jsonl",
        f"--config.corpus.path={path}",
    ]
    config += [f"--config.dataset.path={place / 'other'}", "--config.labels.labeller=rules"]
    code, _, err = lacy(capsys, "prepare", *config)
    assert code == 2
    assert "empty" in err
    path.write_text('{"id": "a", "text": "Words."}\n{"id": "b", "text": "  "}\n')
    code, _, err = lacy(capsys, "prepare", *config)
    assert code == 2
    assert "empty.jsonl:2" in err
    assert not (place / "other" / "metadata.json").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_arrives_while_objects_are_freed_still_stops_the_command(
    monkeypatch, capsys, number, status
):
    class Freed:
        def __del__(self):
            signal.raise_signal(number)
            list(range(10))  # Here the handler runs, and what it raises is dropped.

    def doctor(options):
        Freed()
        time.sleep(20)

    monkeypatch.setattr("lacy_jax.setup.command._doctor", doctor)
    # As in a process of its own; what ran before in this one may have left another.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    try:
        assert cli.main(["doctor"]) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 15
    assert capsys.readouterr().err.splitlines()[-1] == "lacy doctor: stopped"
