"""Linking the factual spans of datasets to the entries of an index that they come from: what a query head learns to ask.

A span comes from an entry about the document's subject: from the one that has its value; else from a passage that states it.
The training loss needs no more than the entries' vectors, so the index may grow or be replaced afterwards, as long as its
encoder stays the same. Datasets that are trained on together are linked together: an entry has one number in all of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.entries import Entry, spans_of
from lacy_jax.cascade.fact_database import normal_name
from lacy_jax.dataset.extra_writer import write_extra
from lacy_jax.dataset.query_links import QUERY_ENTRY, forget_links, write_links
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import RecordSource, open_split, splits_of
from lacy_jax.errors import DataError
from lacy_jax.progress import Progress, Silent
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer

NEGATIVES = 4
"""Entries named for each as most like it, beside those of its document and batch."""


@dataclasses.dataclass
class _Linker:
    """Finds the entries of spans and numbers them in the order in which they are met."""

    by_title: dict[str, list[tuple[int, Entry]]]
    numbers: dict[int, int] = dataclasses.field(default_factory=dict)
    spans: int = 0
    linked: int = 0

    def labels(self, record: Record, tokenizer: Tokenizer) -> np.ndarray:
        """int32 [n]: the number of the entry of each token, 0 = none."""
        found = np.zeros(len(record.tokens), np.int32)
        about = self.by_title.get(normal_name(record.title), [])
        for start, end, _, value in spans_of(record, tokenizer):
            self.spans += 1
            identity = _source(about, value)
            if identity is not None:
                self.linked += 1
                found[start:end] = self.numbers.setdefault(identity, len(self.numbers) + 1)
        return np.where(record.labels["factual"], found, 0)


def link_spans(paths: Sequence[epath.PathLike], index: DenseIndex, *, shown: bool = False) -> dict[str, int]:
    """Write the links of the datasets in the folders `paths` to the entries of `index`; they replace earlier ones.

    Returns:
      "spans", "linked": factual spans, and those of them whose entry was found; "entries": how many different ones.

    Raises:
      DataError: no span comes from an entry, or a dataset or the index are missing or damaged.
    """
    named = ", ".join(map(os.fspath, paths))
    by_title: dict[str, list[tuple[int, Entry]]] = {}
    for identity, entry in index.entries():
        if entry.title:
            by_title.setdefault(normal_name(entry.title), []).append((identity, entry))
    linker = _Linker(by_title)
    sources = [open_split(path, split) for path in paths for split in splits_of(path)]
    total = sum(map(len, sources))
    for path in paths:
        forget_links(path)
    with Progress(f"link {named}", unit="doc", total=total) if shown else Silent() as progress:

        def labels(source: RecordSource) -> Iterator[np.ndarray]:
            tokenizer = Tokenizer.load(source.path / TOKENIZER_FILE)
            for at in range(len(source)):
                yield linker.labels(source[at], tokenizer)
                progress.update()

        for source in sources:
            write_extra(source.path, QUERY_ENTRY, source.split, labels(source))
    if not linker.numbers:
        raise DataError(
            f"dataset {named}: none of its {linker.spans} factual spans comes from an entry of {index.folder}: entries need the "
            "titles of the documents and values that they state"
        )
    vectors = index.vectors(list(linker.numbers))
    negatives = np.zeros((len(vectors), NEGATIVES), np.int32)
    for row, (identity, vector) in enumerate(zip(linker.numbers, vectors, strict=True)):
        near = [linker.numbers.get(other, 0) for other in index.nearest(vector, 4 * NEGATIVES)]
        others = [number for number in near if number and number != linker.numbers[identity]][:NEGATIVES]
        negatives[row, : len(others)] = others
    for path in paths:
        write_links(path, index.encoder.name, vectors, negatives)
    return {"spans": linker.spans, "linked": linker.linked, "entries": len(linker.numbers)}


def _source(about: list[tuple[int, Entry]], value: str) -> int | None:
    """The entry that a value is taken from: the first that has it; else the first passage that states it."""
    exact = (identity for identity, entry in about if entry.value == value)
    stating = (identity for identity, entry in about if not entry.value and value in entry.context)
    return next(exact, None) or next(stating, None)
