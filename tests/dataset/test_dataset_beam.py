"""Shards built on Apache Beam are the files that a local build writes."""

from __future__ import annotations

import json
import sys

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import ConfigError, DataError

WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


def small_config():
    config = get_default_config()
    config.corpus.people, config.corpus.texts_per_person = 20, 1
    config.tokenizer.vocab_size, config.dataset.shards, config.dataset.valid_fraction = 330, 3, 0.2
    return config


def contents(path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_beam_writes_what_a_local_build_writes(tmp_path):
    local = build_dataset(small_config(), tmp_path / "local")
    spread = build_dataset(small_config(), tmp_path / "beam", "DirectRunner", WORKERS)
    assert spread == local
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    # Finished: nothing is built again, on any runner.
    assert build_dataset(small_config(), tmp_path / "beam", "NoSuchRunner") == local


@pytest.mark.parametrize("workers", [(), WORKERS], ids=["one process", "several"])
def test_a_bad_record_is_one_line(tmp_path, workers):
    lines = [json.dumps({"text": f"Ann was born in {1900 + i}."}) for i in range(30)] + ['{"text": 7}']
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    config = small_config()
    build_dataset(config, tmp_path / "tokenizer")
    config.tokenizer.path = str(tmp_path / "tokenizer" / "tokenizer.model")
    config.corpus.kind, config.corpus.path = "jsonl", str(tmp_path / "text.jsonl")
    config.labels.labeller = "rules"
    with pytest.raises(DataError) as local:
        build_dataset(config, tmp_path / "local")
    with pytest.raises(DataError) as spread:
        build_dataset(config, tmp_path / "beam", "DirectRunner", workers)
    assert str(spread.value) == str(local.value)
    assert not (tmp_path / "beam" / "metadata.json").exists()


def test_an_unknown_runner(tmp_path):
    with pytest.raises(ConfigError, match="--runner=NoSuchRunner") as error:
        build_dataset(small_config(), tmp_path / "dataset", "NoSuchRunner")
    assert "\n" not in str(error.value)


def test_without_beam(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DataError, match=r"pip install 'lacy_jax\[cluster\]'"):
        build_dataset(small_config(), tmp_path / "dataset", "DirectRunner")
