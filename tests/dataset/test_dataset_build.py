"""`build_dataset` end to end: content, determinism, interruptions, refusals, a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lacy_jax import cli
from lacy_jax.config import get_default_config, to_json
from lacy_jax.corpus import open_corpus
from lacy_jax.dataset import build as build_lib
from lacy_jax.dataset import make_input, open_split, read_metadata
from lacy_jax.dataset import workers as workers_lib
from lacy_jax.dataset.build import build_dataset, preview
from lacy_jax.dataset.shard import choose_split
from lacy_jax.errors import DataError, LacyError
from lacy_jax.tokenizer import Tokenizer, train_tokenizer


def world_config(model: str = ""):
    config = get_default_config()
    config.corpus.people, config.corpus.texts_per_person = 30, 2
    config.tokenizer.path = model
    config.tokenizer.vocab_size = 400
    config.dataset.shards, config.dataset.valid_fraction = 3, 0.2
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small tokenizer of the world's text."""
    config = world_config()
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    texts = (document.text for document in open_corpus(config.corpus))
    path.write_bytes(train_tokenizer(texts, config.tokenizer))
    return str(path)


@pytest.fixture(scope="module")
def built(model, tmp_path_factory):
    """A dataset built without disturbance."""
    path = tmp_path_factory.mktemp("built") / "dataset"
    build_dataset(world_config(model), path)
    return path


def contents(path: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_records_hold_the_documents_and_their_facts(built, model):
    config, tokenizer = world_config(), Tokenizer.load(model)
    documents = {document.id: document for document in open_corpus(config.corpus)}
    seen = {}
    for split in ("train", "valid"):
        source = open_split(built, split)
        for i in range(len(source)):
            record = source[i]
            document = documents[record.id]
            assert choose_split(record.id, 0.2) == split
            assert (record.tokens[0], record.tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            assert tokenizer.decode(record.tokens[1:-1]) == document.text
            # Factual pieces, straight from the facts: any visible character of the piece inside any value.
            inside = np.zeros(len(document.text), bool)
            for fact in document.facts:
                inside[fact.start : fact.end] = True
            _, starts, ends = tokenizer.encode_with_offsets(document.text)
            want = [
                any(inside[k] and not document.text[k].isspace() for k in range(a, b))
                for a, b in zip(starts, ends)
            ]
            assert record.labels["factual"].tolist() == [False, *want, False]
            seen[record.id] = split
    assert seen.keys() == documents.keys()
    metadata = read_metadata(built)
    assert metadata.documents == 60
    assert metadata.tokenizer_hash == tokenizer.hash
    assert metadata.vocab_size == tokenizer.vocab_size
    assert "world" in metadata.labeller
    assert 0.1 < metadata.factual_rate < 0.6
    assert not (built / ".build").exists()
    assert (built / "tokenizer.model").read_bytes() == tokenizer.model_bytes


def test_a_batch_of_the_built_dataset(built):
    config = world_config()
    config.dataset.path, config.input.seq_len, config.input.batch_size = str(built), 32, 2
    batch = next(make_input(config))
    assert batch.tokens.shape == (2, 32)
    assert batch.weights.any()


def test_the_split_follows_the_id_alone():
    ids = [f"document {i}" for i in range(4000)]
    share = np.mean([choose_split(i, 0.1) == "valid" for i in ids])
    assert share == pytest.approx(0.1, abs=0.02)
    assert {choose_split(i, 0.0) for i in ids} == {"train"}
    valid = {i for i in ids if choose_split(i, 0.1) == "valid"}
    assert valid < {i for i in ids if choose_split(i, 0.2) == "valid"}, (
        "a larger fraction only adds documents"
    )


def test_bytes_do_not_depend_on_the_number_of_workers(built, model, tmp_path, capfd):
    config = world_config(model)
    config.dataset.workers = 2
    build_dataset(config, tmp_path / "d")
    assert contents(tmp_path / "d") == contents(built)
    assert "60" in capfd.readouterr().err, "progress counts the documents of all workers"


def test_building_again_changes_nothing(built, model, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*")}
    monkeypatch.setattr(workers_lib, "build_shards", None)
    assert build_dataset(world_config(model), built) == read_metadata(built)
    assert before == {p: p.stat().st_mtime_ns for p in built.rglob("*")}


def test_a_tokenizer_is_trained_if_none_is_given(tmp_path):
    config = world_config()
    config.corpus.people = 12
    metadata = build_dataset(config, tmp_path / "d")
    assert metadata.vocab_size == 400
    assert Tokenizer.load(tmp_path / "d" / "tokenizer.model").hash == metadata.tokenizer_hash
    config.tokenizer.vocab_size = 410
    with pytest.raises(
        DataError, match=r"holds a dataset made with tokenizer.vocab_size = 400, but the config asks for 410"
    ):
        build_dataset(config, tmp_path / "d")


def test_other_parameters_are_refused_by_name(built, model, tmp_path):
    for section, field, value in (
        ("dataset", "shards", 4),
        ("dataset", "valid_fraction", 0.3),
        ("corpus", "people", 31),
    ):
        config = world_config(model)
        config[section][field] = value
        with pytest.raises(DataError, match=f"{field} = .*asks for {value}") as error:
            build_dataset(config, built)
        assert "choose another dataset.path" in str(error.value)


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@contextlib.contextmanager
def interrupted_at(monkeypatch, shard):
    """Stop the build in the middle of `shard`."""
    real = workers_lib.build_shard

    def stop(config, path, number, report):
        def stopping(documents, tokens):
            if number == shard:
                raise Interrupted

        real(config, path, number, stopping)

    with monkeypatch.context() as patch:
        patch.setattr(workers_lib, "build_shard", stop)
        yield


def test_an_interrupted_build_looks_unfinished_and_goes_on(built, model, tmp_path, monkeypatch):
    path = tmp_path / "d"
    with interrupted_at(monkeypatch, 1), pytest.raises(Interrupted):
        build_dataset(world_config(model), path)
    with pytest.raises(DataError, match="unfinished build"):
        read_metadata(path)
    assert not list(path.glob("lacy-*")), "no shard under its final name"
    other = world_config(model)
    other.corpus.people = 7
    with pytest.raises(DataError, match=r"holds an unfinished build made with corpus"):
        build_dataset(other, path)
    done = []
    real = workers_lib.build_shard
    monkeypatch.setattr(
        workers_lib, "build_shard", lambda c, p, n, report: (done.append(n), real(c, p, n, report))
    )
    build_dataset(world_config(model), path)
    assert done == [1, 2], "finished shards are not built again"
    assert contents(path) == contents(built)


@pytest.mark.parametrize("place", ["finish", "write_metadata"])
def test_an_interruption_while_shards_move(built, model, tmp_path, monkeypatch, place):
    path = tmp_path / "d"

    def stop(*_):
        raise Interrupted

    from lacy_jax.dataset import writer

    monkeypatch.setattr(build_lib if place == "finish" else writer, place, stop)
    with pytest.raises(Interrupted):
        build_dataset(world_config(model), path)
    with pytest.raises(DataError, match="unfinished build"):
        read_metadata(path)
    # One of the moved shards goes back, as if the move had been cut short, and another is lost.
    shards = sorted(path.glob("lacy-train*"))
    shards[0].replace(path / ".build" / "train-00000.array_record")
    shards[1].unlink()
    monkeypatch.undo()
    build_dataset(world_config(model), path)
    assert contents(path) == contents(built)


@contextlib.contextmanager
def disk_of(size: int):
    """No file can grow beyond `size` bytes: as a full disk, writes fail half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_while_writing_a_shard(built, model, tmp_path, monkeypatch):
    path = tmp_path / "d"
    monkeypatch.setattr(build_lib, "_get_tokenizer", lambda *_: None)  # the disk fills after it
    path.mkdir()
    (path / "tokenizer.model").write_bytes(pathlib.Path(model).read_bytes())
    with (
        disk_of(10_000),
        pytest.raises(LacyError, match=r"cannot write .*\.build.*finished shards are kept") as error,
    ):
        build_dataset(world_config(model), path)
    assert "\n" not in str(error.value)
    assert not [p for p in path.rglob("*") if p.suffix in (".tmp", ".array_record")], "nothing half-written"
    monkeypatch.undo()
    with pytest.raises(DataError, match="unfinished build"):
        open_split(path, "train")
    build_dataset(world_config(model), path)
    assert contents(path) == contents(built)


def test_full_disk_while_finishing(built, model, tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tensorflow_datasets.folder_dataset.write_metadata", full)
        with pytest.raises(LacyError, match=r"cannot write .*No space left on device"):
            build_dataset(world_config(model), tmp_path / "d")
    with pytest.raises(DataError, match="unfinished build"):
        read_metadata(tmp_path / "d")
    build_dataset(world_config(model), tmp_path / "d")
    assert contents(tmp_path / "d") == contents(built)


@pytest.mark.parametrize(
    ("begun", "why"), [(True, r"killed; out of memory\?"), (False, "killed as it began, or started by .*")]
)
def test_a_worker_that_is_killed(model, tmp_path, monkeypatch, begun, why):
    """As the system does to a process that eats all memory."""
    config = world_config(model)
    config.corpus.people, config.dataset.workers = 3000, 2
    tally, killed = workers_lib._Tally.__call__, []

    def kill_one(self, documents, tokens):
        tally(self, documents, tokens)
        if not killed and bool(self.documents) == begun:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(workers_lib._Tally, "__call__", kill_one)
    with pytest.raises(DataError, match=rf"worker died \({why}\): .*fewer config.dataset.workers"):
        build_dataset(config, tmp_path / "d")
    assert killed
    assert not multiprocessing.active_children()
    assert not (tmp_path / "d" / "metadata.json").exists()


def test_a_script_without_a_guard_is_told_so(model, tmp_path):
    """Each worker runs the script anew, before it begins, and Python refuses that."""
    script = tmp_path / "script.py"
    script.write_text(
        "from lacy_jax.config import from_json\nfrom lacy_jax.dataset import build_dataset\n"
        f"config = from_json({to_json(world_config(model))!r})\nconfig.dataset.workers = 2\n"
        f"build_dataset(config, {str(tmp_path / 'd')!r})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert "DataError: a dataset worker died (killed as it began, or started by a script" in done.stderr
    assert 'outside `if __name__ == "__main__":`' in done.stderr


def test_a_build_that_is_killed_goes_on_to_the_same_bytes(model, tmp_path):
    """The parent dies without a chance to tidy up; its workers, each inside a shard, notice and stop."""
    config = world_config(model)
    config.corpus.people, config.dataset.shards = 250, 8
    build_dataset(config, tmp_path / "undisturbed")
    config.dataset.workers = 2
    code = (
        "import sys, time; from lacy_jax import config; from lacy_jax.dataset import build_dataset, workers\n"
        "build_shard = workers.build_shard\n"
        "def build_two(config, path, shard, report):\n"
        "    build_shard(config, path, shard, report if shard < 2 else lambda *args: time.sleep(1000))\n"
        "workers.build_shard = build_two\n"  # Spawned workers read this file, too.
        "if __name__ == '__main__': build_dataset(config.from_json(sys.argv[1]), sys.argv[2])"
    )
    path = tmp_path / "killed"
    script = tmp_path / "build.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script), to_json(config), str(path)], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list((path / ".build").glob("0*.json")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="unfinished build"):
        read_metadata(path)
    finished = {p.name: p.stat().st_mtime_ns for p in (path / ".build").glob("0*.json")}
    assert 0 < len(finished) <= 2
    config.dataset.workers = 1
    build_dataset(config, path)
    assert contents(path) == contents(tmp_path / "undisturbed")


def write_corpus(path, lines):
    path.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines) + "\n")
    config = world_config()
    config.corpus.kind, config.corpus.path, config.labels.labeller = "jsonl", str(path), "rules"
    return config


def test_an_error_in_a_worker_reaches_the_user_in_one_line(model, tmp_path):
    lines = [{"id": str(i), "text": f"Ada Lovelace was born in {1800 + i} in London."} for i in range(20)]
    config = write_corpus(tmp_path / "c.jsonl", [*lines, "{broken"])
    config.tokenizer.path, config.dataset.workers = model, 2
    with pytest.raises(DataError, match=r"c.jsonl:21") as error:
        build_dataset(config, tmp_path / "d")
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()
    config = write_corpus(tmp_path / "c.jsonl", [*lines, "{broken", '{"id": "e", "text": "  "}'])
    config.tokenizer.path, config.corpus.on_bad_record = model, "skip"
    metadata = build_dataset(config, tmp_path / "d2")
    assert (metadata.documents, metadata.skipped) == (20, 2)


def test_more_shards_than_documents_leaves_no_gaps(model, tmp_path):
    config = write_corpus(tmp_path / "c.jsonl", [{"id": f"a{i}", "text": f"A cat, {i}."} for i in range(5)])
    config.tokenizer.path, config.dataset.shards = model, 8
    metadata = build_dataset(config, tmp_path / "d")
    assert metadata.documents == 5
    for split, counts in metadata.splits.items():
        assert len(list((tmp_path / "d").glob(f"lacy-{split}*"))) == len(counts.shard_documents)
        if counts.documents:
            assert (
                len({open_split(tmp_path / "d", split)[i].id for i in range(counts.documents)})
                == counts.documents
            )


def test_an_empty_corpus(model, tmp_path):
    config = write_corpus(tmp_path / "c.jsonl", [])
    config.tokenizer.path = model
    with pytest.raises(DataError, match=r"empty|no document"):
        build_dataset(config, tmp_path / "d")
    assert not (tmp_path / "d" / "metadata.json").exists()


def test_two_builds_at_once_and_paths_of_other_clouds(model, tmp_path):
    folder = tmp_path / "d" / ".build"
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is building it"):
            build_dataset(world_config(model), tmp_path / "d")
    with pytest.raises(DataError, match="a local folder or gs://"):
        build_dataset(world_config(model), "s3://bucket/dataset")


def test_a_dry_run_checks_everything_and_writes_nothing(model, tmp_path, capsys):
    config = world_config(model)
    found = preview(config, tmp_path / "d")
    assert (found["shards"], found["shards_to_build"]) == (config.dataset.shards, config.dataset.shards)
    assert found["first_document"]
    assert found["factual_spans"] > 0
    assert not (tmp_path / "d").exists()
    (tmp_path / "c.py").write_text(
        "from lacy_jax.config import get_default_config\n\n\ndef get_config(arg=''):\n    return get_default_config()\n"
    )
    arguments = ["prepare", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'run'}", "--dry-run"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "shards_to_build" in out
    assert f"prepare: would write to {tmp_path / 'run' / 'dataset'}" in err
    assert not (tmp_path / "run").exists()
    build_dataset(config, tmp_path / "d")
    assert preview(config, tmp_path / "d")["shards_to_build"] == 0
    config.dataset.shards += 1
    with pytest.raises(DataError, match=r"holds a dataset made with dataset\.shards"):
        preview(config, tmp_path / "d")
    config = write_corpus(tmp_path / "c.jsonl", [])
    config.tokenizer.path = model
    with pytest.raises(DataError, match="no document"):
        preview(config, tmp_path / "e")
