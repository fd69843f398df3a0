"""Readers of what partners know, and of what is asked and written: facts, indices, prompts, texts. See tests/support/reader_checks.py."""

from __future__ import annotations

import json
import pathlib
from typing import Any, ClassVar

from reader_checks import Reader, ReaderChecks, lines
from word_encoder import WordEncoder

from lacy_jax.cascade import index_writer
from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.fact_database import FactDatabase, read_rows
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.cascade.texts import Generation, read_generations, read_prompts, write_generations
from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore.knowledge import KnowledgeSource

GENERATION = Generation("1", "Ada was", " born.", [1], ["a"], ["model"], [None], [(0, 1, "model")], 0, 0.0, 0.0, "g", True, "", 0, "eos")  # fmt: skip


def _database(path: pathlib.Path) -> None:
    FactDatabase.build(path, [("Ada", "birth_place", "Oslo"), ("Bob", "birth_place", "Rome")]).close()


def _ask_database(path: pathlib.Path) -> Any:
    database = FactDatabase(path)
    try:
        return (
            database.entity("Ada") and database.values("Ada"),
            database.cue(["birth", "place"]),
            database.sample_values(),
        )
    finally:
        database.close()


def _knowledge(path: pathlib.Path) -> None:
    KnowledgeSource.build(path, [Document("1", "Ada was a poet. She died.", "Ada")]).close()


def _ask_knowledge(path: pathlib.Path) -> Any:
    source = KnowledgeSource(path)
    try:
        return source.retrieve("Ada", "Ada was a poet.", 2) or "no article"
    finally:
        source.close()


def _index(path: pathlib.Path) -> None:
    folder = path.parent.parent if path.parent.name == "bm25" else path.parent
    PassageIndex.build([Document("1", "Ada was a poet.", "Ada"), Document("2", "Bob was none.", "Bob")]).save(
        folder
    )


def _ask_index(path: pathlib.Path) -> Any:
    index = PassageIndex.load(path.parent.parent if path.parent.name == "bm25" else path.parent)
    return [index.search(query, 2) for query in ("Ada poet", "Bob none was")]


def _dense(path: pathlib.Path) -> None:
    path.parent.rmdir()
    entries = [Entry("Ada", "birth_place", value="Oslo"), Entry("Bob", context="Bob was none.")]
    index_writer.build(path.parent, entries, WordEncoder(16))
    index_writer.edit(
        path.parent, WordEncoder(16), add=[Entry("Cy", "award", value="Medal")], delete=[("Bob", "", "")]
    )


def _ask_dense(path: pathlib.Path) -> Any:
    index = DenseIndex(path.parent, WordEncoder(16))
    try:
        return index.search(["Ada, birth place", "Cy", "Bob was"], 3), index.sample_values()
    finally:
        index.close()


_index_files = (
    "passages.jsonl",
    *(
        f"bm25/{name}"
        for name in (
            "params.index.json",
            "vocab.index.json",
            "data.csc.index.npy",
            "indices.csc.index.npy",
            "indptr.csc.index.npy",
        )
    ),
)


class TestReaders(ReaderChecks):
    readers: ClassVar[dict[str, Reader]] = {
        "facts": Reader(
            "f.jsonl",
            lines({"entity": "Ada", "attribute": "b", "value": "Oslo"}),
            lambda path: list(read_rows(str(path))),
            json=True,
        ),
        "facts of LMLM": Reader(
            "f.json",
            json.dumps({"triplets": [["Ada", "Birth Place", "Oslo"]]}).encode(),
            lambda path: list(read_rows(str(path))),
            json=True,
        ),
        "fact database": Reader("facts.sqlite", _database, _ask_database),
        "knowledge": Reader("knowledge.db", _knowledge, _ask_knowledge),
        **{
            f"index, {name}": Reader(
                f"index/{name}",
                _index,
                _ask_index,
                json=".json" in name,
                names=lambda path: "index",
                cost=2,
                makes_folder=True,
            )
            for name in _index_files
        },
        **{
            f"dense index, {name}": Reader(f"dense/{name}", _dense, _ask_dense, names=lambda path: "dense")
            for name in ("entries.sqlite", "vectors-0.usearch")
        },
        "prompts": Reader("p.jsonl", lines({"prompt": "Ada was", "id": "1"}), read_prompts, json=True),
        "generations": Reader(
            "g.jsonl", lambda path: write_generations(path, [GENERATION]), read_generations, json=True
        ),
    }
