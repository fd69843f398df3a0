"""Records and datasets on disk: what comes back, what TFDS sees, and damage of every kind."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import dataset_fakes as fakes
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from lacy_jax.dataset import make_input, open_split, read_metadata, write_extra
from lacy_jax.dataset.records import Record, decode_record, encode_record, get_features, token_dtype
from lacy_jax.dataset.source import lengths_file, shard_name
from lacy_jax.errors import DataError, LacyError

HERE = pathlib.Path(fakes.__file__).parent


@pytest.fixture
def dataset(tmp_path):
    records = fakes.make_records(11, seed=6)
    fakes.write_dataset(tmp_path / "d", {"train": records, "valid": records[:2]}, shards=3)
    return tmp_path / "d", records


def assert_one_line(error):
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vocab", [500, 2**16, 2**16 + 1, 200_000])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 300])
def test_a_record_comes_back(vocab, n):
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, vocab, n).astype(np.int32)
    tokens[-1] = vocab - 1
    labels = {"factual": rng.random(n) < 0.5, "nongrammatical": rng.random(n) < 0.5}
    record = Record(tokens, labels, "Ünïcode/1", "A “title”")
    back = decode_record(encode_record(record, vocab), vocab)
    np.testing.assert_array_equal(back.tokens, tokens)
    jax.tree.map(np.testing.assert_array_equal, back.labels, labels)
    assert (back.id, back.title) == (record.id, record.title)
    assert (back.tokens.dtype, back.labels["factual"].dtype) == (np.int32, np.bool_)
    assert token_dtype(vocab).itemsize == (2 if vocab <= 65536 else 4)


def test_bytes_are_what_tfds_would_write_in_another_order():
    record = fakes.make_records(1)[0]
    ours = encode_record(record, fakes.VOCAB)
    parse = tf_example_pb2.Example.FromString
    assert parse(ours) == parse(make_example(record))
    code = "import dataset_fakes as f; from lacy_jax.dataset.records import encode_record as e;"
    code += "import sys; sys.stdout.buffer.write(e(f.make_records(1)[0], f.VOCAB))"
    for _ in range(2):  # in other processes, with other hash seeds
        done = subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE, stdout=subprocess.PIPE)
        assert done.stdout == ours


def test_tfds_alone_reads_the_dataset(dataset):
    """The generic TFDS reader, without any of our code, sees the same documents."""
    path, records = dataset
    source = tfds.builder_from_directory(path).as_data_source("train")
    assert len(source) == 11
    example = source[10]
    np.testing.assert_array_equal(example["tokens"], records[10].tokens)
    n = example["length"]
    np.testing.assert_array_equal(
        np.unpackbits(example["factual"], count=n).astype(bool), records[10].labels["factual"]
    )
    assert example["id"].decode() == records[10].id
    assert tfds.builder_from_directory(path).info.splits["valid"].num_examples == 2


def test_metadata_counts(dataset):
    path, records = dataset
    metadata = read_metadata(path)
    train = metadata.splits["train"]
    assert train.documents == 11
    assert train.tokens == sum(len(r.tokens) for r in records)
    assert train.factual_tokens == sum(int(r.labels["factual"].sum()) for r in records)
    assert train.nongrammatical_tokens == sum(int(r.labels["nongrammatical"].sum()) for r in records)
    assert train.shard_documents == (4, 4, 3)
    assert metadata.documents == 13
    value = json.loads((path / "metadata.json").read_text())
    assert value["factual_rate"] == pytest.approx(metadata.factual_rate, abs=1e-6)


def test_neither_reading_nor_writing_needs_tensorflow(tmp_path):
    code = (
        "import sys, pathlib, dataset_fakes as f; from lacy_jax.dataset import make_input;"
        f"p = f.write_dataset(pathlib.Path({str(tmp_path / 'd')!r}), {{'train': f.make_records(9)}});"
        "next(make_input(f.make_config(p))); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)


def test_labels_of_another_length_are_never_written():
    labels = {"factual": np.zeros(4, bool), "nongrammatical": np.zeros(5, bool)}
    record = Record(np.arange(5, dtype=np.int32), labels, "x")
    with pytest.raises(DataError, match=r"document 'x': 4 factual labels for 5 tokens"):
        encode_record(record, 500)


def rewrite_shard(path, change):
    """Replace the bytes of shard 1 of train, keeping metadata.json in step with the file size."""
    file = path / shard_name("train", 1, 3)
    source = open_split(path, "train")
    examples = [change(i, encode_record(source[4 + i], fakes.VOCAB)) for i in range(4)]
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for example in examples:
        writer.write(example)
    writer.close()
    metadata = json.loads((path / "metadata.json").read_text())
    metadata["splits"]["train"]["shard_bytes"][1] = file.stat().st_size
    (path / "metadata.json").write_text(json.dumps(metadata))


def make_example(record, **changes):
    """A record whose fields contradict each other, as no writer of ours would make it."""
    fields = {
        "id": record.id,
        "title": record.title,
        "length": len(record.tokens),
        "tokens": record.tokens.astype(np.uint16),
        "factual": np.packbits(record.labels["factual"]),
        "nongrammatical": np.packbits(record.labels["nongrammatical"]),
    }
    return get_features(fakes.VOCAB).serialize_example({**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (lambda r: {"length": len(r.tokens) + 1}, "labels for"),
        (lambda r: {"factual": np.packbits(np.ones(len(r.tokens) + 8, bool))}, "labels for"),
        (lambda r: {"tokens": r.tokens[:-1].astype(np.uint16)}, "labels for"),
        (
            lambda r: {"tokens": np.full(len(r.tokens), 60000, np.uint16)},
            "token id 60000 outside the vocabulary",
        ),
    ],
)
def test_a_record_that_contradicts_itself_names_file_and_record(dataset, changes, says):
    path, records = dataset
    bad = records[6]
    rewrite_shard(path, lambda i, data: make_example(bad, **changes(bad)) if i == 2 else data)
    source = open_split(path, "train")
    assert source[5].id == records[5].id
    with pytest.raises(DataError, match=rf"00001-of-00003, record 2: corrupt: .*{says}") as error:
        source[6]
    assert_one_line(error)
    with pytest.raises(DataError, match=r"record 2: corrupt"):  # also through the pipeline's threads
        list(make_input(fakes.make_config(str(path)), epochs=1))


def test_bytes_that_are_no_record(dataset):
    path, _ = dataset
    rewrite_shard(path, lambda i, data: b"\xff\xfe junk" if i == 0 else data)
    with pytest.raises(DataError, match=r"00001-of-00003, record 0: corrupt: not a record"):
        open_split(path, "train")[4]


def test_flipped_bits_in_a_shard(dataset):
    path, records = dataset
    file = path / shard_name("train", 0, 3)
    data = bytearray(file.read_bytes())
    at = data.find(records[2].tokens.astype(np.uint16).tobytes())
    assert at > 0
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"train.array_record-00000-of-00003, record 2: corrupt") as error:
        open_split(path, "train")[2]
    assert_one_line(error)


def test_missing_and_truncated_files(dataset):
    path, _ = dataset
    shard = path / shard_name("train", 1, 3)
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"00001-of-00003.*truncated"):
        open_split(path, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard not found.*00001-of-00003"):
        open_split(path, "train")
    lengths = path / lengths_file("valid")
    np.save(lengths, np.array([1, 2, 3], np.uint32))
    with pytest.raises(DataError, match=r"lengths-valid\.npy: uint32.*expected uint32"):
        open_split(path, "valid")
    lengths.write_bytes(b"short")
    with pytest.raises(DataError, match=r"unreadable.*lengths-valid.npy"):
        open_split(path, "valid")


def test_damaged_metadata(dataset):
    path, _ = dataset
    (path / "features.json").write_text("{")
    with pytest.raises(DataError, match=r"TFDS cannot open") as error:
        open_split(path, "train")
    assert_one_line(error)
    metadata = path / "metadata.json"
    value = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**value, "format": 99}))
    with pytest.raises(DataError, match=r"format 99"):
        read_metadata(path)
    metadata.write_text(json.dumps({k: v for k, v in value.items() if k != "vocab_size"}))
    with pytest.raises(DataError, match=r"metadata unreadable.*vocab_size"):
        read_metadata(path)
    metadata.write_text('{"half": ')
    with pytest.raises(DataError, match=r"unreadable"):
        read_metadata(path)
    metadata.unlink()
    with pytest.raises(DataError, match=r"run `lacy prepare` first"):
        read_metadata(path)
    (path / ".build").mkdir()
    with pytest.raises(DataError, match=r"unfinished build"):
        open_split(path, "train")


def test_extras_that_do_not_fit(dataset, monkeypatch):
    path, records = dataset
    good = [np.zeros(len(r.tokens)) for r in records]
    for name in ("reference-nll", "", "factual"):
        with pytest.raises(DataError, match=r"expected a name of letters, digits and _ other than factual"):
            write_extra(path, name, "train", good)
    with pytest.raises(DataError, match=r"values of dtype <U1; expected bool, integers or floats"):
        write_extra(path, "reference_nll", "train", [np.full(len(r.tokens), "x") for r in records])
    with pytest.raises(DataError, match=r"record 1 has values of dtype float64, earlier ones int32"):
        write_extra(path, "reference_nll", "train", [np.zeros(len(good[0]), int), *good[1:]])
    with pytest.raises(DataError, match=r"values for record 3, which has"):
        write_extra(path, "reference_nll", "train", [*good[:3], np.zeros(1 + len(good[3])), *good[4:]])
    with pytest.raises(DataError, match=r"values for 10 records, the split has 11"):
        write_extra(path, "reference_nll", "train", good[:-1])
    with pytest.raises(DataError, match=r"values for 12 records"):
        write_extra(path, "reference_nll", "train", [*good, good[0]])
    monkeypatch.setattr(
        "os.posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(LacyError, match=r"cannot write.*No space left"):
        write_extra(path, "reference_nll", "train", good)
    assert not list(path.glob("*extra*")), "nothing half-written"
    assert not list(path.glob(".extra*"))
    monkeypatch.undo()
    write_extra(path, "reference_nll", "train", good)
    np.save(path / "extra-reference_nll-train.npy", np.zeros(3, np.float32))
    with pytest.raises(DataError, match=r"extra-.*expected"):
        open_split(path, "train")
