"""The examples of docs/extending.md, extracted and used as a user would: as plugins of one small run."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import string
import subprocess
import sys

import pytest
import warm_python
import xla

from lacy_jax import cli
from lacy_jax.corpus import World

KINDS = ("A policy", "A gate", "A partner", "An optimiser", "A corpus reader", "A suite")
EXPERIMENT = """
from lacy_jax.config import get_default_config
def get_config(arg=""):
    c = get_default_config()
    c.labels.labeller = "rules"
    c.dataset.valid_fraction = 0.2
    c.tokenizer.vocab_size = 400
    c.model.update(d_model=32, n_layers=1, n_heads=2, d_ff=64)
    c.input.update(seq_len=64, batch_size=4)
    c.train.update(steps=4, eval_batches=1)
    c.optimizer.warmup_steps = 1
    c.generate.max_new_tokens = 32
    return c
"""


@pytest.fixture(scope="module")
def examples(request, tmp_path_factory):
    """The plugin files, and the options that their first lines name: (paths, {section: options})."""
    folder = tmp_path_factory.mktemp("plugins")
    page = (request.config.rootpath / "docs" / "extending.md").read_text()
    paths, options = [], {}
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE):
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            name, option = re.match(r"# (\S+\.py): (--[^,\n]+)", code).groups()
            (folder / name).write_text(code)
            paths.append(folder / name)
            options[title] = [part.replace("'", "") for part in option.split()]
    assert tuple(options) == KINDS
    return paths, options


def lacy(*arguments) -> subprocess.CompletedProcess:
    """The command in a process of its own: what the plugins add is gone with it."""
    command = [sys.executable, "-m", "lacy_jax.cli", *map(str, arguments), "--json"]
    environment = {**os.environ, "XLA_FLAGS": xla.flags()}
    return warm_python.run(command, env=environment)


@pytest.fixture(scope="module")
def run(examples, tmp_path_factory):
    """A run made of the corpus reader, the policy and the optimiser, with all plugins in its config."""
    paths, options = examples
    folder = tmp_path_factory.mktemp("work")
    experiment = folder / "experiment.py"
    experiment.write_text(EXPERIMENT)
    world = World(60, 0)
    with (folder / "people.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("text",), *((world.text(i).text,) for i in range(60))])
    given = [f"--config={experiment}", f"--workdir={folder}/run"]
    given.append(f"--config.plugins={tuple(map(str, paths))!r}")
    corpus = [option.replace("people*.csv", f"{folder}/people*.csv") for option in options["A corpus reader"]]
    for verb in ("prepare", "train"):
        done = lacy(verb, *given, *corpus, *options["A policy"], *options["An optimiser"])
        assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_reader_the_policy_and_the_optimiser_make_a_run(run, examples):
    folder = run
    metadata = json.loads((folder / "dataset" / "metadata.json").read_text())
    assert sum(split["documents"] for split in metadata["splits"].values()) == 60
    config = json.loads((folder / "config.json").read_text())
    assert config["plugins"] == [str(path) for path in examples[0]]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "realised_call_rate" in row]
    assert rows
    # Only factual targets may be chosen, and which share of them a batch has depends on where the documents lie.
    for row in rows:
        tokens = row["weight_sum"] if row["split"] == "train" else row["tokens"]
        assert row["realised_call_rate"] == pytest.approx(
            min(int(0.15 * tokens) / tokens, row["factual_rate"])
        )
        assert row["realised_call_rate"] > 0
    # The gate of a plugin is measured at validation like the others.
    assert any("wrong_fact_auroc/doubt" in row for row in rows if row.get("split") == "valid")
    recorded = json.loads((folder / "environment.json").read_text())[0]["plugins"]
    assert recorded.keys() == set(config["plugins"])
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in recorded.values())


def test_the_gate_and_the_partner_write_from_the_run_alone(run, examples):
    """The run directory names the plugins: the command does not."""
    folder, options = run, examples[1]
    (folder / "answers.tsv").write_text("".join(f"{letter}\t Oslo\n" for letter in string.ascii_lowercase))
    partner = [option.replace("FILE", f"{folder}/answers.tsv") for option in options["A partner"]]
    done = lacy("generate", f"--workdir={folder}", "--prompt=She was", *options["A gate"], *partner)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["gate"] == "doubt"
    assert result["calls"] > 0
    text = json.loads(pathlib.Path(result["path"]).read_text().splitlines()[0])
    assert next(text["text"][a:b] for a, b, who in text["spans"] if who == "partner") == " Oslo"


def test_the_suite_reads_the_texts_and_stands_in_the_report(run, examples):
    """After the texts of the test above, whose place is WORKDIR/samples."""
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "more.jsonl").write_text('{"text": "three words more"}\n')
    done = lacy("evaluate", f"--workdir={run}", *examples[1]["A suite"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["words"] >= 3
    assert json.loads((run / "evaluation_length.json").read_text())["texts"] >= 1
    done = lacy("report", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text()
    assert "Of all samples." in page


def test_a_run_whose_plugin_is_gone_says_where_it_was(run, tmp_path, capsys):
    """One line, before anything is done; the option of the command brings another place."""
    config = json.loads((run / "config.json").read_text())
    config["plugins"] = [f"{tmp_path}/gone.py"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["generate", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"lacy generate: config.plugins: no file {tmp_path}/gone.py; restore it, or give its new path\n"
    )


def test_a_run_does_not_go_on_with_another_text_of_its_policy(run, examples):
    path = next(path for path in examples[0] if path.name == "shortsighted.py")
    before = path.read_text()
    path.write_text(before + "# changed\n")
    done = lacy("train", f"--workdir={run}")
    path.write_text(before)
    assert done.returncode == 2
    assert "config.objective.policy (file of the plugin) = " in done.stderr.splitlines()[-1]
