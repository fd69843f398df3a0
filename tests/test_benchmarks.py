"""Benchmarks run as documented and end with one JSON line of the documented keys; figures themselves are not judged."""

from __future__ import annotations

import json
import lzma
import os
import pathlib
import runpy
import sys

import pytest
import spacy
import warm_python

from lacy_jax.corpus import Document
from lacy_jax.errors import DataError
from lacy_jax.labels import Labels
from lacy_jax.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {
    "step": {
        "lacy_over_ntp",
        "share_of_matmul_peak",
        "tokens_per_s",
        "fused_over_naive_time",
        "fused_over_naive_memory",
        "step_mask_over_micro_batch",
    },
    "decode": {"alone_tokens_per_s", "cascade_tokens_per_s", "cascade_one_tokens_per_s", "call_share"},
    "serve": {"serve_over_batch_16", "tokens_per_s_64", "first_token_s_1", "call_share"},
    "input": {"pipeline_over_step", "build_tokens_per_s", "factual_rate"},
    "index": {"entries", "dim", "exact_ms_per_query"},
    "modules": {"parameters", "leaves"},
    "partners": {"people", "calls", "calls_without_fact"},
    "quantization": {"seeds_apart", "targets"},
    "readers": {"text_mb", "documents"},
    "label": {"tokens_per_s_per_core", "over_paper", "hours_per_1b_tokens", "scaling"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KEYS))
def test_quick_benchmark_ends_with_its_json_line(name, tmp_path):
    environment = {**os.environ, "LACY_DATA": str(tmp_path)}  # No real text there: the embedded world.
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    done = warm_python.run(command, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == name
    assert KEYS[name] <= figures.keys()
    assert all(figures[key] > 0 for key in KEYS[name])


def _script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


@pytest.fixture
def refused(monkeypatch, capsys):
    """(name of a benchmark, arguments) -> the last line of its errors; in this process, which has loaded everything."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        assert _script(name, monkeypatch)["main"]() == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call


def test_a_data_folder_without_the_text_is_one_line(tmp_path, refused):
    assert "expected wiki/bios_train.jsonl.xz" in refused("input", "--data", tmp_path)


def quick(name: str, data: pathlib.Path) -> dict:
    """The last line of a benchmark of real text, as JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--data", str(data)]
    done = warm_python.run(command, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == name
    return figures


def test_the_judges_are_measured_on_people_and_on_mixed_texts(shared_data):
    figures = quick("factscore_judge", shared_data)
    assert {"embedded", "lenient"} <= figures["people"].keys()
    half = figures["mixed"]["0.5"]
    assert half["embedded"]["right"] > 90 > 40 > half["embedded"]["wrong"]
    assert half["lenient"]["right"] >= half["embedded"]["right"]


def test_label_quality_has_every_labeller(shared_data):
    figures = quick("label_quality", shared_data)
    assert {"bundled", "rules", "full"} <= figures["labellers"].keys()
    for name in ("bundled", "rules"):
        values = figures["labellers"][name]
        assert all(
            0 < values[key] < 1 for key in ("precision", "recall", "f1", "factual_rate", "redocred_recall")
        )
    assert figures["labellers"]["full"]["f1"] == 1.0
    assert figures["labellers"]["bundled"]["f1"] >= 0.93


def test_two_labellers_are_compared_by_rule_and_place(monkeypatch, shared_data):
    """On a text where one knows Oslo for new, the other New York, and both a year."""
    quality = _script("label_quality", monkeypatch)
    document = Document("", "Ada left Oslo in 1999 for New York.", "Ada")
    tagger = Labels(((9, 13), (17, 21)), (), ("GPE", "DATE"))
    pipeline = Labels(((17, 21), (26, 34)), (), ("DATE", "GPE"), ((9, 13),))
    assert list(quality["differences"](document, tagger, pipeline)) == [
        "tagger marks (GPE), a repeat to the other | Ada | Ada left [[Oslo]] in 1999 for New York.",
        "pipeline marks (GPE) | Ada | Ada left Oslo in 1999 for [[New York]].",
    ]
    tokenizer = Tokenizer.load(shared_data / quality["TOKENIZER"])
    pieces = {word: len(tokenizer.encode(word)) for word in ("Oslo", "1999", "New York")}
    assert quality["by_rule"]([tagger], [pipeline], [document], tokenizer) == {
        "DATE": {"tokens": pieces["1999"], "recall": 1.0, "marked": pieces["1999"], "precision": 1.0},
        "GPE": {"tokens": pieces["New York"], "recall": 0.0, "marked": pieces["Oslo"], "precision": 0.0},
    }


def test_the_taggers_text_is_in_no_evaluation_and_no_article_is_in_it_twice(tmp_path, monkeypatch, capsys):
    script = _script("tagger_texts", monkeypatch)
    openings, general, people = script["PARTS"]
    titles = {openings: "abc", general: "axdvr", people: "ey", **dict(zip(script["UNSEEN"], "xyv"))}
    for name, letters in titles.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = [json.dumps({"title": letter, "text": f"Of {letter}.", "tok": []}) for letter in letters]
        (tmp_path / name).write_bytes(lzma.compress("\n".join(lines).encode()))
    document = {"title": "r", "sents": [["r", "is", "here", "."]], "vertexSet": []}
    (tmp_path / "labels" / "redocred_dev.json.xz").write_bytes(lzma.compress(json.dumps([document]).encode()))
    counts = script["write"](tmp_path)
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [{"title": letter, "text": f"Of {letter}."} for letter in "abcde"]
    assert counts[general] == {"documents": 1, "words": 2, "left_out": 4}
    fewer = script["write"](tmp_path, {openings: 2, general: 1})
    assert [part["documents"] for part in fewer.values()] == [2, 1]
    # "a" is in the openings, "x" in an evaluation; nothing after "d" is read.
    assert fewer[general]["left_out"] == 2
    (tmp_path / people).unlink()
    with pytest.raises(DataError, match="bios_train"):
        script["write"](tmp_path)


def test_a_pipeline_of_another_environment_is_measured(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "GPE", "pattern": "Oslo"}])
    nlp.to_disk(tmp_path / "pipeline")
    script = [sys.executable, str(ROOT / "benchmarks" / "label.py"), "--quick", "--processes=1"]
    environment = {**os.environ, "LACY_DATA": str(tmp_path)}  # No real text there: the embedded world.
    done = warm_python.run(
        [*script, "--labeller=rules", "--parser", sys.executable, str(tmp_path / "pipeline")],
        cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labellers = json.loads(done.stdout.splitlines()[-1])["labellers"]
    (name,) = set(labellers) - {"rules"}
    assert name.endswith(f"(spaCy {spacy.__version__})")
    assert labellers[name]["tokens_per_s_per_core"] > 0


def test_a_pipeline_that_does_not_load_is_one_line(tmp_path, refused):
    line = refused("label", "--quick", "--labeller=rules", "--parser", sys.executable, tmp_path / "none")
    assert line.startswith(f"benchmarks/label.py: --parser {sys.executable}")


@pytest.mark.parametrize("name", ["label", "label_quality"])
def test_a_pipeline_that_is_not_there_is_one_line(name, tmp_path, shared_data, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    line = refused(name, "--quick", f"--data={shared_data}", "--spacy-model=./no.such-pipeline")
    assert "'./no.such-pipeline' does not exist" in line


def _gpu(out, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), f"--out={out}", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return warm_python.run(command, timeout=600, env=environment)


def _records(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_gpu_says_why_a_piece_failed_and_goes_on_where_it_was_cut_off(tmp_path):
    out = tmp_path / "gpu.jsonl"
    done = _gpu(out, "--tiny", "--only=ceiling.copy", "--piece-seconds=0")
    assert done.returncode == 0, done.stderr
    (record,) = _records(out)
    assert record["failed"] == "took longer than 0 seconds"
    arguments = ["--tiny", "--only", "ceiling.", "attention.xla", "attention.cudnn_causal", "loss.naive", "loss.fused.512"]  # fmt: skip
    done = _gpu(out, *arguments, "--retry")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == "gpu"
    assert figures["missing"] == []
    assert set(figures["failed"]) == {"attention.cudnn_causal"}  # It needs a GPU.
    assert figures["matmul_flops"] > 0
    assert figures["copy_bytes_per_s"] > 0
    assert figures["fused_over_naive_memory"] < 1
    assert figures["fused_chunk"] == "512"
    assert figures["mfu"] is None  # Not measured here.
    whole = _records(out)
    assert len(whole) == 8
    for record in whole:
        if record["piece"] == "attention.xla":
            assert max(record["errors"].values()) < 0.05
    # Cut off within a line: the pieces before it are kept as they are, the last one is measured again.
    out.write_bytes(out.read_bytes()[:-20])
    done = _gpu(out, *arguments)
    assert done.returncode == 0, done.stderr
    again = _records(out)
    assert again[:-1] == whole[:-1]
    assert again[-1]["piece"] == whole[-1]["piece"]
    before = out.read_bytes()
    assert _gpu(out, *arguments).returncode == 0
    assert out.read_bytes() == before


@pytest.mark.slow
def test_gpu_measures_every_piece_at_toy_sizes(tmp_path):
    out = tmp_path / "gpu.jsonl"
    done = _gpu(out, "--tiny")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["missing"] == []
    elsewhere = (
        "step.with",
        "attention.cudnn",
        "attention.tokamax",
        "attention.pallas",
        "loss.tokamax",
        "loss.liger",
        "loss.torch",
    )
    assert all(name.startswith(elsewhere) for name in figures["failed"]), figures["failed"]


def test_gpu_without_a_gpu_is_one_line(tmp_path):
    done = _gpu(tmp_path / "gpu.jsonl", "--only=ceiling.copy")
    assert done.returncode == 2
    assert "no GPU: JAX finds only 'cpu'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    (tmp_path / "other.jsonl").write_text('{"piece": "ceiling.copy", "tiny": false, "device": "cpu"}\n')
    done = _gpu(tmp_path / "other.jsonl", "--tiny")
    assert done.returncode == 2
    assert "holds results without --tiny" in done.stderr.splitlines()[-1]


def test_the_costs_of_a_trillion_tokens_in_the_docs_are_those_that_follow_from_the_rates():
    """To update: `python benchmarks/trillion.py`, and put what it prints into docs/tpu.md."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "trillion.py"))
    page = (ROOT / "docs" / "tpu.md").read_text()
    assert script["table"]() in page
    for name, rate in script["labelling_rates"]().items():
        assert f"| `{name}` | {rate:,} |" in (ROOT / "docs" / "labels.md").read_text()


@pytest.mark.slow
def test_sizes_of_a_step_go_on_where_they_were_cut_off(tmp_path):
    out = tmp_path / "sizes.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "step_sizes.py"), "--quick", f"--out={out}"]
    warm_python.run(command, timeout=600, check=True)
    whole = json.loads(out.read_text())
    assert all(point["tokens_per_s"] > 0 for point in whole["points"])
    out.write_text(json.dumps({**whole, "points": whole["points"][1:]}))
    again = json.loads(warm_python.run(command, timeout=600, check=True).stdout.splitlines()[-1])
    assert again["points"][:-1] == whole["points"][1:], "what was measured before is kept"
    assert len(again["points"]) == len(whole["points"])
