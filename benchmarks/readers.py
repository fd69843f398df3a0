"""How fast is text read: Parquet, Arrow and a folder of Hugging Face `datasets` against JSONL, of the same documents.

    python benchmarks/readers.py [--quick] [--json] [--data FOLDER]

Documents: the first biographies of Wikipedia in FOLDER, $LACY_DATA or ../shared/data, else of the embedded world. Each form is
written once, by pyarrow where it is a table, beside a column `source` that nobody reads; then one process reads it to the end,
several times in turn with the others, and the best time counts. The last line is one JSON object with these keys:

  benchmark     "readers"
  forms         {form: {"mb": size on disk, "mb_per_s": of text read, "over_jsonl": speed over that of plain JSONL}}
  text_mb, documents, corpus
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterable

import ml_collections
import pyarrow as pa
import pyarrow.parquet as pq

from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus

BIOGRAPHIES = "wiki/bios_train.jsonl.xz"


def documents(data: pathlib.Path, count: int) -> tuple[list[Document], str]:
    """The documents, and what they are."""
    config = get_default_config()
    name = "embedded world"
    config.corpus.people = count // 2
    if (data / BIOGRAPHIES).is_file():
        config.corpus.kind, config.corpus.path, name = (
            "jsonl",
            str(data / BIOGRAPHIES),
            "wikipedia biographies",
        )
    return list(itertools.islice(open_corpus(config.corpus), count)), name


def write_forms(folder: pathlib.Path, docs: list[Document]) -> dict[str, ml_collections.ConfigDict]:
    """Each form on disk: name -> config group `corpus` that reads it."""
    rows = [{"id": d.id, "title": d.title, "text": d.text, "source": "benchmark"} for d in docs]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    hf = folder / "saved"
    hf.mkdir()
    (folder / "a.jsonl").write_bytes(lines)
    with gzip.open(folder / "a.jsonl.gz", "wb", compresslevel=6) as out:
        out.write(lines)
    with lzma.open(folder / "a.jsonl.xz", "wb", preset=2) as out:
        out.write(lines)
    pq.write_table(table, folder / "snappy.parquet", row_group_size=1000)
    pq.write_table(table, folder / "zstd.parquet", compression="zstd", row_group_size=1000)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    # As `Dataset.save_to_disk` leaves it: a stream of batches of 1,000 rows, named by state.json.
    with (
        pa.OSFile(str(hf / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=1000)
    (hf / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    kinds = {
        "jsonl": ("jsonl", "a.jsonl"), "jsonl.gz": ("jsonl", "a.jsonl.gz"), "jsonl.xz": ("jsonl", "a.jsonl.xz"),
        "parquet (snappy)": ("parquet", "snappy.parquet"), "parquet (zstd)": ("parquet", "zstd.parquet"),
        "arrow": ("parquet", "a.arrow"), "datasets folder": ("hf", "saved"),
    }  # fmt: skip
    return {form: _reading(kind, str(folder / name)) for form, (kind, name) in kinds.items()}


def _reading(kind: str, path: str) -> ml_collections.ConfigDict:
    config = get_default_config().corpus
    config.kind, config.path = kind, path
    return config


def seconds(config: ml_collections.ConfigDict, expected: int) -> float:
    """Of reading all documents."""
    corpus = open_corpus(config)  # Checks and fingerprints come before.
    start = time.perf_counter()
    size = _size(corpus)
    taken = time.perf_counter() - start
    assert size == expected, f"{config.path}: {size} of {expected} characters"
    return taken


def _size(docs: Iterable[Document]) -> int:
    return sum(len(document.text) for document in docs)


def run(data: pathlib.Path, quick: bool) -> dict[str, object]:
    """The figures; see the module's docstring."""
    docs, name = documents(data, 200 if quick else 8000)
    characters = _size(docs)
    text = sum(len(document.text.encode()) for document in docs) / 1e6
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        forms = write_forms(folder, docs)
        best = dict.fromkeys(forms, float("inf"))
        for _ in range(2 if quick else 5):
            for form, config in forms.items():
                best[form] = min(best[form], seconds(config, characters))
        sizes = {form: _bytes(pathlib.Path(config.path)) / 1e6 for form, config in forms.items()}
    return {
        "benchmark": "readers",
        "forms": {
            form: {"mb": round(sizes[form], 2), "mb_per_s": round(text / best[form], 1), "over_jsonl": round(best["jsonl"] / best[form], 2)}
            for form in forms
        },
        "text_mb": round(text, 2),
        "documents": len(docs),
        "corpus": name,
    }  # fmt: skip


def _bytes(path: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds: few documents")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument(
        "--data", default=os.environ.get("LACY_DATA", "../shared/data"), help="folder of real text"
    )
    args = parser.parse_args()
    figures = run(pathlib.Path(args.data), args.quick)
    if not args.json:
        for form, found in figures["forms"].items():
            print(
                f"{form:>18}  {found['mb']:8.2f} MB on disk  {found['mb_per_s']:8.1f} MB of text/s  {found['over_jsonl']:6.2f} x jsonl"
            )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
