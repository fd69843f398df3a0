"""Readers of text: corpora in every form, and parses. See tests/support/reader_checks.py."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import pathlib
from typing import Any, ClassVar

from reader_checks import Reader, ReaderChecks, folder_of, lines

from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus
from lacy_jax.corpus.compression import zstd
from lacy_jax.labels import label_parse
from lacy_jax.labels.tagger.train import _reader as read_parses

DOCUMENTS = [{"id": "1", "title": "Ada", "text": "Ada was a poet."}, {"text": "Bob was none."}]


ANNOTATED = {
    "examples": [
        {"id": "1", "annotated_text": "Ada was born in [dblookup('Ada', 'Birth Place') -> Oslo] Oslo."}
    ]
}


PARSE = {
    "title": "Ada",
    "text": "Ada was born.",
    "tok": [[0, 3, "NNP"], [4, 3, "VBD"], [8, 4, "VBN"]],
    "ents": [[0, 3, "PERSON"]],
    "chunks": [[0, 3]],
}


def corpus(kind: str, path: pathlib.Path) -> list[Document]:
    config = get_default_config().corpus
    config.kind, config.path = kind, str(path)
    return list(open_corpus(config))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow

    stream, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _saved(path: pathlib.Path) -> None:
    """As `save_to_disk` of `datasets` leaves a folder."""
    (path.parent / "data-00000-of-00001.arrow").write_bytes(arrow(DOCUMENTS))
    (path.parent / "dataset_info.json").write_text("{}")
    path.write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})
    )


class TestReaders(ReaderChecks):
    readers: ClassVar[dict[str, Reader]] = {
        "corpus jsonl": Reader("c.jsonl", lines(*DOCUMENTS), functools.partial(corpus, "jsonl"), json=True),
        "corpus jsonl.gz": Reader(
            "c.jsonl.gz", gzip.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
        ),
        "corpus jsonl.bz2": Reader(
            "c.jsonl.bz2", bz2.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
        ),
        "corpus jsonl.xz": Reader(
            "c.jsonl.xz", lzma.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
        ),
        "corpus jsonl.zst": Reader(
            "c.jsonl.zst", zstd.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
        ),
        "corpus text": Reader(
            "c.txt", b"Ada was.\n<|endoftext|>\nBob was.\n", functools.partial(corpus, "text")
        ),
        "corpus parquet": Reader("c.parquet", parquet(DOCUMENTS), functools.partial(corpus, "parquet")),
        "corpus arrow": Reader("c.arrow", arrow(DOCUMENTS), functools.partial(corpus, "parquet")),
        "corpus hf, state": Reader(
            "hf/state.json", _saved, lambda path: corpus("hf", path.parent), json=True, names=folder_of
        ),
        "corpus lmlm": Reader(
            "c.json", json.dumps(ANNOTATED).encode(), functools.partial(corpus, "lmlm"), json=True
        ),
        "corpus lmlm lines": Reader(
            "c.jsonl", lines(*ANNOTATED["examples"]), functools.partial(corpus, "lmlm"), json=True
        ),
        "parses": Reader(
            "p.jsonl",
            lines(PARSE),
            lambda path: [label_parse(parse, title) for parse, title in read_parses("")(str(path))],
            json=True,
        ),
    }
