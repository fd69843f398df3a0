"""Files to documents: formats, compression, streaming, and one clear line for whatever is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import tracemalloc

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus
from lacy_jax.corpus.compression import zstd
from lacy_jax.errors import ConfigError, DataError

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


def _corpus(kind, path, **fields):
    config = get_default_config().corpus
    config.kind, config.path = kind, str(path)
    for name, value in fields.items():
        config[name] = value
    return open_corpus(config)


def _jsonl(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


THREE = _jsonl(
    {"id": "a", "title": "A", "text": "Été à Zürich."}, {"text": "Two\nlines."}, {"id": 3, "text": "東京"}
)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_in_every_compression(tmp_path, suffix):
    path = tmp_path / f"bios.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](THREE))
    assert list(_corpus("jsonl", path)) == [
        Document("a", "Été à Zürich.", "A"),
        Document(f"bios.jsonl{suffix}:2", "Two\nlines."),
        Document("3", "東京"),
    ]


def test_zst_of_several_frames_is_read_to_the_end(tmp_path):
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(zstd.compress(line + b"\n") for line in THREE.splitlines()))
    assert [d.text for d in _corpus("jsonl", path)] == ["Été à Zürich.", "Two\nlines.", "東京"]


def test_glob_reads_files_in_order_and_mixes_compressions(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(_jsonl({"text": "second"}))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(_jsonl({"text": "first"})))
    (tmp_path / "other.txt").write_text("no")
    assert [d.text for d in _corpus("jsonl", tmp_path / "*.jsonl*")] == ["first", "second"]


def test_blank_lines_crlf_and_byte_order_mark_are_no_damage(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n   \n{"text": "two"}')
    assert [(d.id, d.text) for d in _corpus("jsonl", path)] == [("x.jsonl:1", "one"), ("x.jsonl:4", "two")]


BAD_RECORDS = {
    b'{"text": "cut': "not JSON",
    b'"just text"': "a JSON str, not an object",
    b'{"body": "x"}': "no field 'text'",
    b'{"text": 5}': "field 'text' is int",
    b'{"text": ""}': "no text",
    b'{"text": " \\n\\t "}': "no text",
    b'{"text": "caf\xe9"}': "invalid UTF-8 at byte 13",
    b'{"text": "\\ud800"}': "lone surrogate",
    b"[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("line", BAD_RECORDS, ids=lambda line: repr(line[:14]))
def test_bad_record_names_file_and_line_or_is_counted(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(_jsonl({"text": "good"}) + line + b"\n" + _jsonl({"text": "also good"}))
    with pytest.raises(DataError) as error:
        list(_corpus("jsonl", path))
    message = str(error.value)
    assert message.startswith(f"{path}:2: ")
    assert BAD_RECORDS[line] in message
    assert "on_bad_record" in message
    assert "\n" not in message
    corpus = _corpus("jsonl", path, on_bad_record="skip")
    assert [d.text for d in corpus] == ["good", "also good"]
    assert corpus.skipped == 1


def test_other_text_field(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(_jsonl({"body": "here", "text": "not here"}))
    assert [d.text for d in _corpus("jsonl", path, text_field="body")] == ["here"]


def test_shards_share_the_records_whatever_is_bad(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(_jsonl({"text": f"t{k}"}) if k % 5 else b"{\n" for k in range(23)))
    corpus = _corpus("jsonl", path, on_bad_record="skip")
    shares = [list(corpus.shard(i, 4)) for i in range(4)]
    assert all(k % 4 == i for i, share in enumerate(shares) for k, _ in share)
    assert {k: d.text for share in shares for k, d in share} == {k: f"t{k}" for k in range(23) if k % 5}


def test_max_documents_counts_records(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(_jsonl(*({"text": str(k)} for k in range(10))) + b"broken")
    assert [d.text for d in _corpus("jsonl", path, max_documents=4)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_empty_corpus_is_an_error(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="empty corpus"):
        list(_corpus("jsonl", path))


def test_corpus_of_bad_records_alone_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{\n{\n")
    with pytest.raises(DataError, match="all 2 records are bad"):
        list(_corpus("jsonl", path, on_bad_record="skip"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "config.corpus.path is empty"),
        ("none.jsonl", "file not found"),
        ("*.nope", "no file matches"),
        (".", "is a folder"),
    ],
)
def test_missing_path(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=reason):
        _corpus("jsonl", path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_bytes(THREE)
    corpus = _corpus("jsonl", path)
    path.unlink()
    with pytest.raises(DataError, match=rf"cannot read {path}: No such file"):
        list(corpus)


def test_unknown_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.corpus\.kind = 'csv'"):
        _corpus("csv", tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_compression_names_the_file_even_where_bad_records_are_skipped(tmp_path, suffix, damage):
    path = tmp_path / f"x.jsonl{suffix}"
    # Random-looking text, so that the compressed file is long enough to cut in the middle.
    lines = _jsonl(*({"text": str(pow(3, k, 2**400))} for k in range(1, 3000)))
    data = COMPRESS[suffix](lines)
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"not compressed at all " * 50)
    read = []
    with pytest.raises(DataError) as error:
        read.extend(_corpus("jsonl", path, on_bad_record="skip"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(read) < 2999


def test_text_files_are_documents(tmp_path):
    (tmp_path / "ada.txt").write_text("Ada.\n\nStill Ada.\n")
    (tmp_path / "bob.txt.gz").write_bytes(gzip.compress(b"Bob."))
    assert list(_corpus("text", tmp_path / "*")) == [
        Document("ada.txt", "Ada.\n\nStill Ada.", "ada"),
        Document("bob.txt.gz", "Bob.", "bob"),
    ]


def test_text_file_parted_by_end_of_text_lines(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("One.\n<|endoftext|>\n\n<|endoftext|>\nTwo,\nlong.\n<|endoftext|>\n")
    assert [(d.id, d.text) for d in _corpus("text", path)] == [
        ("many.txt:1", "One."),
        ("many.txt:5", "Two,\nlong."),
    ]


def test_text_file_that_is_empty_or_not_utf8(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(" \n")
    with pytest.raises(DataError, match=rf"{path}: bad record: has no text"):
        list(_corpus("text", path))
    path.write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(DataError, match=r"line 2: invalid UTF-8 at byte 2 \(0xef\)"):
        list(_corpus("text", path))


def test_ten_megabyte_document(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    text = "Zoë lived. " * 1_000_000
    path.write_bytes(gzip.compress(_jsonl({"text": text}, {"text": "next"}), 1))
    assert [len(d.text) for d in _corpus("jsonl", path)] == [11_000_000, 4]


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(records):
        path = tmp_path / f"{records}.jsonl.gz"
        line = _jsonl({"text": "word " * 400})
        with gzip.open(path, "wb", 1) as stream:
            for _ in range(records):
                stream.write(line)
        tracemalloc.start()
        assert sum(1 for _ in _corpus("jsonl", path)) == records
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(200), peak(10_000)  # 0.4 MB and 20 MB of text
    assert large < small + 1e6


def test_fingerprint_follows_the_content_and_the_way_it_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(THREE)
    first = _corpus("jsonl", path).fingerprint
    assert first == _corpus("jsonl", path).fingerprint
    assert first != _corpus("jsonl", path, max_documents=2).fingerprint
    path.write_bytes(THREE.replace(b"Two", b"Too"))
    assert first != _corpus("jsonl", path).fingerprint


def test_corpus_can_be_read_twice_and_sent_to_a_process(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(THREE)
    corpus = _corpus("jsonl", path)
    assert list(corpus) == list(corpus) == list(pickle.loads(pickle.dumps(corpus)))


def test_real_biographies(shared_data):
    corpus = _corpus("jsonl", shared_data / "wiki" / "bios_unseen.jsonl.xz")
    documents = list(corpus)
    assert len(documents) == 1903  # as data/README.md says
    assert all(document.title and document.id for document in documents)


def test_max_chars_keeps_whole_sentences(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["One two. Three four. Five.", "One two three four five", "Onetwothreefourfive", "Short."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cut = _corpus("jsonl", path, max_chars=12)
    assert [d.text for d in cut] == ["One two.", "One two", "Onetwothreef", "Short."]
    assert (
        cut.fingerprint
        != _corpus("jsonl", path).fingerprint
        != _corpus("jsonl", path, max_chars=13).fingerprint
    )
