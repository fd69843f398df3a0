"""Parquet, Arrow and folders of Hugging Face `datasets` as corpora."""

from __future__ import annotations

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus
from lacy_jax.errors import DataError

ROWS = {
    "id": ["a", "", None],
    "title": ["A", None, "C"],
    "text": ["Été à Zürich.", "Two\nlines.", "東京"],
    "other": [[1], [2], [3]],
}
DOCUMENTS = [
    Document("a", "Été à Zürich.", "A"),
    Document("{}:1", "Two\nlines."),
    Document("{}:2", "東京", "C"),
]


def _corpus(kind, path, **fields):
    config = get_default_config().corpus
    config.kind, config.path = kind, str(path)
    for name, value in fields.items():
        config[name] = value
    return open_corpus(config)


def _documents(name):
    return [Document(d.id.format(name), d.text, d.title) for d in DOCUMENTS]


def _arrow(path, table, file=False):
    new = pa.ipc.new_file if file else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_row_is_a_document_whatever_the_type_of_text(tmp_path, kind):
    table = pa.table({**ROWS, "text": pa.array(ROWS["text"]).cast(pa.string())})
    column = table["text"].dictionary_encode() if pa.types.is_dictionary(kind) else table["text"].cast(kind)
    table = table.set_column(2, "text", column)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    assert list(_corpus("parquet", tmp_path / "x.parquet")) == _documents("x.parquet")
    for file in (False, True):
        _arrow(tmp_path / "x.arrow", table, file)
        assert list(_corpus("parquet", tmp_path / "*.arrow")) == _documents("x.arrow")


def test_many_files_shards_and_another_field(tmp_path):
    for k in range(3):
        pq.write_table(
            pa.table({"body": [f"t{5 * k + j}" for j in range(5)], "id": list(range(5 * k, 5 * k + 5))}),
            tmp_path / f"{k}.parquet",
        )
    corpus = _corpus("parquet", tmp_path / "*.parquet", text_field="body", max_documents=13)
    assert [(d.id, d.text) for d in corpus] == [(str(k), f"t{k}") for k in range(13)]
    shares = [list(corpus.shard(i, 4)) for i in range(4)]
    assert {k: d.text for share in shares for k, d in share} == {k: f"t{k}" for k in range(13)}
    assert list(corpus) == list(pickle.loads(pickle.dumps(corpus)))


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    table = pa.table({"text": ["one"] * 4, "big": ["x" * 100_000] * 4})
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    place = data.index(b"x" * 1000)
    data[place + 500 : place + 5500] = b"\xff" * 5000  # The other column is damaged.
    (tmp_path / "x.parquet").write_bytes(data)
    assert [d.text for d in _corpus("parquet", tmp_path / "x.parquet")] == ["one"] * 4


def test_bad_rows_are_named_or_counted(tmp_path):
    pq.write_table(pa.table({"text": ["fine", None, " ", "good"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet:1: bad record: has no field 'text'"):
        list(_corpus("parquet", tmp_path / "x.parquet"))
    corpus = _corpus("parquet", tmp_path / "x.parquet", on_bad_record="skip")
    assert [d.text for d in corpus] == ["fine", "good"]
    assert corpus.skipped == 2


def test_invalid_utf8_in_a_column_of_strings_is_a_bad_row(tmp_path):
    pq.write_table(pa.table({"text": pa.array([b"fine", b"caf\xe9"], pa.binary())}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet:1: bad record: column 'text': invalid UTF-8 at byte 3"):
        list(_corpus("parquet", tmp_path / "x.parquet"))


@pytest.mark.parametrize("form", ["parquet", "arrow", "arrow file"])
@pytest.mark.parametrize("damage", ["cut", "cut a little", "empty", "other", "no column", "no text"])
def test_damaged_files_are_one_clear_line(tmp_path, form, damage):
    table = pa.table({"text": [f"text {k}" * 50 for k in range(50)]})
    table = {"no column": table.rename_columns(["body"]), "no text": pa.table({"text": [[1], [2]]})}.get(
        damage, table
    )
    path = tmp_path / f"x.{form.split()[0]}"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=20)
    else:
        _arrow(path, table, file=form == "arrow file")
    data = path.read_bytes()
    whole = {
        "cut": data[: len(data) // 2],
        "cut a little": data[:-8],
        "empty": b"",
        "other": b"some text " * 50,
    }
    path.write_bytes(whole.get(damage, data))
    with pytest.raises(DataError) as error:
        list(_corpus("parquet", path, on_bad_record="skip"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def _saved(folder, table, shards=1):
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    size = -(-table.num_rows // shards)
    for k, name in enumerate(names):
        _arrow(folder / name, table.slice(k * size, size))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_folder_of_save_to_disk(tmp_path):
    _saved(tmp_path / "one", pa.table(ROWS), shards=2)
    assert [d.text for d in _corpus("hf", tmp_path / "one")] == ROWS["text"]
    _saved(tmp_path / "many" / "train", pa.table({"text": ["train"]}))
    _saved(tmp_path / "many" / "test", pa.table({"text": ["test"]}))
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [d.text for d in _corpus("hf", tmp_path / "many", split="test")] == ["test"]
    with pytest.raises(DataError, match=r"no split 'valid' \(it has train, test\)"):
        _corpus("hf", tmp_path / "many", split="valid")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow is missing"):
        _corpus("hf", tmp_path / "one")


def test_a_folder_that_datasets_itself_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ROWS["text"], "title": ["A", "B", "C"]})
    datasets.DatasetDict(train=made, test=made.select([2])).save_to_disk(tmp_path / "d")
    assert [(d.text, d.title) for d in _corpus("hf", tmp_path / "d")] == list(
        zip(ROWS["text"], "ABC", strict=True)
    )
    assert [d.text for d in _corpus("hf", tmp_path / "d", split="test")] == ["東京"]


def test_a_folder_of_parquet_as_on_the_hub(tmp_path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.table({"text": [name]}), folder / f"{name}.parquet")
    assert [d.text for d in _corpus("hf", tmp_path / "hub")] == [
        "train-00000-of-00002",
        "train-00001-of-00002",
    ]
    assert [d.text for d in _corpus("hf", tmp_path / "hub", split="test")] == ["test-00000-of-00001"]
    with pytest.raises(DataError, match=r"no split 'other' \(it has test, train\)"):
        _corpus("hf", tmp_path / "hub", split="other")
    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(
        pa.table({"text": ["trained"]}), plain / "trainers.parquet"
    )  # No split: "train" is no word of it.
    assert [d.text for d in _corpus("hf", plain)] == ["trained"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no folder of `datasets`"),
        ({"state.json": "[]"}, "no list '_data_files'"),
        ({"state.json": '{"_data_files": [{"filename": "../x.arrow"}]}'}, "no list '_data_files'"),
        ({"state.json": '{"_data_files": []}'}, "data is missing"),
        ({"dataset_dict.json": "{"}, "index of `datasets` unreadable"),
    ],
)
def test_folders_that_are_none(tmp_path, content, reason):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        _corpus("hf", tmp_path)


def test_missing_folders(tmp_path):
    for path, reason in (("", "is empty"), (tmp_path / "none", "folder not found")):
        with pytest.raises(DataError, match=reason):
            _corpus("hf", path)


def test_tables_are_read_from_a_bucket_as_from_disk(tmp_path, bucket, gcs):
    """Many Parquet files by a glob, one by one and only their columns; a folder of `datasets` beside them."""
    table = pa.table({**ROWS, "other": ["x" * 3_000_000 + str(i) for i in range(3)]})
    for number in range(3):
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=2, compression="none")
        (epath.Path(bucket) / f"part-{number}.parquet").write_bytes((tmp_path / f"part-{number}.parquet").read_bytes())  # fmt: skip
    assert list(_corpus("parquet", f"{bucket}/part-*.parquet")) == list(
        _corpus("parquet", tmp_path / "part-*.parquet")
    )
    shards = [
        document
        for i in range(2)
        for _, document in _corpus("parquet", f"{bucket}/part-*.parquet").shard(i, 2)
    ]
    assert len(shards) == 9
    saved = epath.Path(bucket) / "saved"
    _arrow(tmp_path / "data.arrow", pa.table(ROWS))
    (saved / "data.arrow").write_bytes((tmp_path / "data.arrow").read_bytes())
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert list(_corpus("hf", f"{bucket}/saved")) == _documents("data.arrow")
    with pytest.raises(DataError, match=f"{bucket}/none"):
        _corpus("parquet", f"{bucket}/none-*.parquet")
