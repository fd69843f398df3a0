"""LMLM's annotated text: the calls leave the text, and the words that state a looked-up value are flagged."""

from __future__ import annotations

import json
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax.config import get_default_config
from lacy_jax.corpus import open_corpus
from lacy_jax.corpus.compression import read_items
from lacy_jax.corpus.lmlm import document_of_annotated, without_lookups
from lacy_jax.corpus.readers import BadRecord
from lacy_jax.errors import DataError

ANNOTATED = (
    "Ada Bell (born [dblookup('Ada Bell', 'Birth Date') -> May 7, 1956] 7 May 1956) is an [dblookup('Ada Bell', 'Nationality') -> "
    "Norwegian] Norwegian chemist. She won [dblookup('Ada Bell', 'Awards') -> Orkla Medal, Polar Prize] the Orkla Medal and the Polar "
    "Prize. [dblookup('Ada Bell', 'Alive') -> Yes] She lives in Oslo."
)
TEXT = "Ada Bell (born 7 May 1956) is an Norwegian chemist. She won the Orkla Medal and the Polar Prize. She lives in Oslo."


def _corpus(path, **fields):
    config = get_default_config().corpus
    config.kind, config.path = "lmlm", str(path)
    for name, value in fields.items():
        config[name] = value
    return open_corpus(config)


def _flagged(document):
    return [document.text[start:end] for start, end in document.judge]


def test_calls_leave_the_text_and_their_values_are_flagged(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(
            {
                "examples": [{"annotated_text": ANNOTATED, "text": "Ada Bell\n\nAda Bell (born"}],
                "metadata": {},
            }
        )
    )
    (document,) = _corpus(path)
    assert (document.text, document.title, document.id) == (TEXT, "Ada Bell", "x.json:0")
    assert _flagged(document) == ["7", "May", "1956", "Norwegian", "Orkla", "Medal", "Polar", "Prize"]
    assert document.dropped == (("looked-up values that the text does not state", 1),)


@pytest.mark.parametrize(
    ("annotated", "text", "lookups", "broken"),
    [
        ("A [dblookup('B', 'C') -> D] D.", "A D.", [("B", "C", "D", 2)], 0),
        (
            "A [dblookup('John's son', \"C\") -> [D] e] [D] e.",
            "A [D] e.",
            [("John's son", "C", "[D] e", 2)],
            0,
        ),
        ("<|db_entity|> B<|db_relationship|> C<|db_return|> D<|db_end|> D.", "D.", [("B", "C", "D", 0)], 0),
        ("A [dblookup('B') -> D] D.", "A D.", [], 1),
        ("A [dblookup('B', 'C') -> never closed", "A ", [], 1),
        ("A [dblookup(", "A ", [], 1),
        ("A [1] and [dblook] stay", "A [1] and [dblook] stay", [], 0),
        ("[dblookup('B', 'C') -> D]", "", [("B", "C", "D", 0)], 0),
    ],
)
def test_lookups(annotated, text, lookups, broken):
    found, calls, bad = without_lookups(annotated)
    assert (found, [(c.entity, c.relation, c.value, c.place) for c in calls], bad) == (text, lookups, broken)


def test_every_container_gives_the_same_documents(tmp_path):
    rows = [{"id": f"d{k}", "title": "Ada Bell", "annotated_text": ANNOTATED} for k in range(3)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "x.parquet", tmp_path / "folder" / "train-0.parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    documents = list(_corpus(tmp_path / "x.json"))
    assert len(documents) == 3
    for name in ("x.jsonl", "x.parquet", "folder"):
        assert list(_corpus(tmp_path / name)) == documents
    cut = next(iter(_corpus(tmp_path / "x.json", max_chars=60)))
    assert cut.text == "Ada Bell (born 7 May 1956) is an Norwegian chemist."
    assert _flagged(cut) == ["7", "May", "1956", "Norwegian"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"a": 1}', "nothing in a list `examples`"),
        ('[{"text": "x"}]', r"x\.json:0: bad record: has no field 'annotated_text'"),
        ("[5]", "is a JSON int"),
        ("[{\"annotated_text\": \"[dblookup('B', 'C') -> D]\"}]", "has no text"),
    ],
)
def test_other_files_are_one_clear_line(tmp_path, content, reason):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        list(_corpus(tmp_path / "x.json"))


@given(st.lists(st.sampled_from(
    ["Ada ", "Oslo", " ", ".", "\n", "[", "]", "[dblookup(", "'Ada'", ", ", ") -> ", "[dblookup('Ada', 'Place') -> Oslo] ", "<|db_entity|>",
     "<|db_relationship|>", "<|db_return|>", "<|db_end|>", "İ", "\ud800", "7 May"]
), max_size=20).map("".join) | st.text(max_size=60))  # fmt: skip
def test_any_text_is_a_document_without_lookups_or_a_bad_record(text):
    document, line = value_or_line(document_of_annotated, {"annotated_text": text}, "1", kinds=(BadRecord,))
    if line:
        return
    assert document.text.strip()
    assert not re.search(r"\[dblookup\('\w+', '\w+'\) -> \w+\]", document.text)
    ends = [0, *(place for span in document.judge for place in span), len(document.text)]
    assert ends == sorted(ends)
    assert all(start < end for start, end in document.judge)


def test_the_published_annotations(shared_data):
    documents = list(_corpus(shared_data / "labels" / "lmlm" / "dwiki_1k_annotated_llama.json.xz"))
    assert len(documents) == 830
    assert all(document.title and "dblookup" not in document.text for document in documents)
    share = sum(end - start for d in documents for start, end in d.judge) / sum(
        len(d.text) for d in documents
    )
    assert 0.10 < share < 0.16  # The paper's judge flags 15 % of tokens.


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
), st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(0, 40), st.sampled_from(["", ",", "]", " x", "[" * 50_000]))  # fmt: skip
def test_what_is_read_item_by_item_is_what_json_reads(tmp_path_factory, value, indent, within, cut, after):
    """And what json refuses is refused, wherever it is cut, or goes on."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    value = value if isinstance(value, list) else [value]
    text = json.dumps({"a": [1, {}], "examples": value, "b": None} if within else value, indent=indent)
    text = (text[: len(text) - cut] if cut < 20 else text) + after
    path.write_text(text)
    found, _ = value_or_line(lambda: list(read_items(str(path), "examples")), kinds=(DataError,))
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        assert found is None
    else:
        items = read.get("examples") if isinstance(read, dict) else read
        assert repr(found or None) == repr(items or None)


def test_json_is_read_item_by_item(tmp_path):
    """Of a file that is cut off all that came before is read, and in a long one only what was asked for."""
    path = tmp_path / "x.json"
    path.write_text('{"other": [1], "examples": [{"annotated_text": "Ada was."}, {"annotated')
    items = read_items(str(path), "examples")
    assert next(items) == {"annotated_text": "Ada was."}
    with pytest.raises(DataError, match=r"x\.json: no JSON"):
        next(items)
    item = json.dumps({"annotated_text": "x" * 1000})
    path.write_text('{"examples": [' + ", ".join([item] * 20_000) + "]}")
    tracemalloc.start()
    assert sum(1 for _ in read_items(str(path), "examples")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 < path.stat().st_size
