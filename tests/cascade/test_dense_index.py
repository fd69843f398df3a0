"""The dense index: searching by meaning and words, and what is missing, damaged or half written."""

from __future__ import annotations

import random

import numpy as np
import pytest
from index_small import FACTS
from word_encoder import WordEncoder

from lacy_jax.cascade import index_writer
from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.entries import Entry
from lacy_jax.errors import DataError, LacyError

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")


def many(count: int) -> list[Entry]:
    rng = random.Random(0)
    names = [
        f"{a}{b} {c}{d}son" for a in "ABCDEFGH" for b in ("da", "el", "ir") for c in "KLMNOP" for d in "aeiou"
    ]
    return [Entry(rng.choice(names), f"attribute {at % 97}", value=str(at)) for at in range(count)]


def test_nearest_first_by_each_search(index_folder, encoder):
    index = DenseIndex(index_folder, encoder)
    assert len(index) == 6
    for by in ("hybrid", "dense", "words", "dense_of_words"):
        [found] = index.search(["Bea Crane, birth place"], 3, by)
        assert found[0].entry == FACTS[3]
        assert found[0].similarity == pytest.approx(1.0, abs=2e-3)
    assert index.search(["the of zzz"], 3, "words") == [[]]
    assert index.search([], 3) == []
    index.close()


def test_the_graph_finds_what_exact_search_finds(tmp_path, encoder):
    entries = list(dict.fromkeys(many(3000)))
    index_writer.build(tmp_path / "index", entries, encoder)
    vectors = encoder.encode([entry.key() for entry in entries])
    queries = [entry.key() + " extra" for entry in entries[:50]]
    index = DenseIndex(tmp_path / "index", encoder)
    recalled = 0
    for query, found in zip(queries, index.search(queries, 10, "dense"), strict=True):
        similar = np.sort(vectors @ encoder.encode([query])[0])[::-1]
        recalled += sum(one.similarity >= similar[9] - 2e-3 for one in found)
    index.close()
    assert recalled / 500 > 0.97


def test_the_same_entries_give_the_same_graph(tmp_path, encoder):
    for name in "ab":
        index_writer.build(tmp_path / name, many(500), encoder)
    a, b = ((tmp_path / name / "vectors-0.usearch").read_bytes() for name in "ab")
    assert a == b


def test_equal_entries_are_written_once(tmp_path, encoder):
    assert index_writer.build(tmp_path / "index", [*FACTS, *FACTS], encoder) == len(FACTS)


# -- errors --------------------------------------------------------------------------------------------------


def test_missing_damaged_and_foreign_indexes_are_one_line(index_folder, encoder, tmp_path):
    with pytest.raises(DataError, match=r"index .*none.*: not found; build it with `lacy index`"):
        DenseIndex(tmp_path / "none", encoder)
    for other, says in (
        (WordEncoder(32), r"built with encoder word \(64 numbers a text\), not word \(32\)"),
        (WordEncoder(name="other"), "built with encoder word .* not other"),
        (WordEncoder(seed=1), "other weights of encoder word"),
    ):
        with pytest.raises(DataError, match=says):
            DenseIndex(index_folder, other)
        with pytest.raises(DataError, match=says):
            index_writer.edit(index_folder, other, add=[FACTS[0]])
    graph = index_folder / "vectors-0.usearch"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"vectors-0\.usearch: damaged or half copied"):
        DenseIndex(index_folder, encoder)
    graph.unlink()
    with pytest.raises(DataError, match=r"vectors-0\.usearch: No such file"):
        DenseIndex(index_folder, encoder)


def test_nothing_half_written_is_left(tmp_path, encoder):
    def failing():
        yield FACTS[0]
        raise DataError("line 2 is damaged")

    with pytest.raises(DataError, match="line 2"):
        index_writer.build(tmp_path / "index", failing(), encoder)
    with pytest.raises(DataError, match="no entries"):
        index_writer.build(tmp_path / "index", [], encoder)
    assert list(tmp_path.iterdir()) == []
    index_writer.build(tmp_path / "index", FACTS, encoder)
    with pytest.raises(LacyError, match="it exists"):
        index_writer.build(tmp_path / "index", FACTS, encoder)
