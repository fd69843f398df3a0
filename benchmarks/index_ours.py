"""A `DenseIndex` of ours, measured for benchmarks/index.py; and what measuring any form of an index needs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lacy_jax import files

OURS = "our index"
PARTS = 4


class Unfinished(Exception):
    """The time of --minutes is over."""


@dataclasses.dataclass
class Kept:
    """What is known so far, in a folder."""

    folder: pathlib.Path
    until: float

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of finished forms, and of the parts of others."""
        path = self.folder / "figures.json"
        return files.read_json(path, "figures") if path.exists() else {}

    def keep(self, name: str, value: Any) -> Any:
        """Keep a figure; it is given back."""
        files.write_json(self.folder / "figures.json", {**self.figures, name: value})
        return value

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A figure that is made only once."""
        return self.figures[name] if name in self.figures else self.keep(name, make())


def asked(
    ask: Callable[[np.ndarray], Any], queries: np.ndarray, truth: list[list[int]]
) -> tuple[float, float]:
    """ms per query, after some that bring pages into memory, and recall@10."""
    for query in queries[:20]:
        ask(query)
    started = time.perf_counter()
    found = [ask(query) for query in queries]
    ms = (time.perf_counter() - started) * 1e3 / len(queries)
    hits = [len(set(map(int, own)) & set(best)) / 10 for own, best in zip(found, truth, strict=True)]
    return ms, float(np.mean(hits))


def measure_ours(vectors: np.ndarray, queries: np.ndarray, truth: list[list[int]], kept: Kept) -> Any:
    """The figures of a `DenseIndex`: those of a form, where bytes are those of the graph, and more.

    "entries_per_s": of the first part. "grown_per_s": of those added and compacted later, in `PARTS` - 1 parts. "text_bytes_per_entry":
    of SQLite's file. "anonymous_mib", "mapped_mib": memory that opening it and asking takes. "ms_dense", "ms_words", "ms_of_words": a whole search by vectors, by words, and by vectors
    among what words found, 32 entries each. "edit_s": of adding 1,000 entries and changing and deleting 100 each; "seen_s": until a
    reader's next answer.
    """
    from lacy_jax.cascade import index_writer
    from lacy_jax.cascade.dense_index import DenseIndex
    from lacy_jax.cascade.entries import Entry, context_of
    from lacy_jax.corpus import World

    facts = len(next(iter(World(1).people)).attributes)
    world = World(-(-(len(vectors) + 1000) // facts))
    encoder = given_encoder(vectors, world)
    folder, ends = kept.folder / "ours", [len(vectors) * part // PARTS for part in range(PARTS + 1)]

    def entries(first: int, after: int) -> Iterator[Entry]:
        for at in range(first // facts, -(-after // facts)):
            person = world.people[at]
            for number, (attribute, value) in enumerate(person.attributes.items(), at * facts):
                if first <= number < after:
                    yield Entry(person.name, attribute, value=value)

    def timed(work: Callable[[], Any]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def stage(name: str, work: Callable[[], Any]) -> float:
        part = f"{OURS}: {name}"
        if part not in kept.figures and time.monotonic() > kept.until:
            raise Unfinished(f"{part} comes next")
        return float(kept.once(part, lambda: timed(work)))

    built = stage("build", lambda: index_writer.build(folder, entries(0, ends[1]), encoder))
    added = grown = 0.0
    for first, after in itertools.pairwise(ends[1:]):
        some = functools.partial(entries, first, after)
        added += stage(f"add from {first}", lambda some=some: index_writer.edit(folder, encoder, add=some()))
        grown += stage(f"compact at {after}", lambda: index_writer.compact(folder))
    people = np.random.default_rng(1).integers(0, len(vectors) // facts, 100).tolist()
    texts = [world.text(at) for at in people]
    contexts = [
        context_of(text.text[: text.facts[at % len(text.facts)].start]) for at, text in enumerate(texts)
    ]
    before = memory()
    started = time.perf_counter()
    index = DenseIndex(folder, encoder)
    opened = time.perf_counter() - started
    ms, recall = asked(
        lambda query: [at - 1 for at in index.nearest(query, 10)], queries, truth
    )  # SQLite counts from 1.

    def search(by: str) -> float:
        def of(some: slice) -> None:
            for context, query in zip(contexts[some], queries[some], strict=False):
                index.search([context], 32, by, query[None])

        of(slice(10))
        return timed(lambda: of(slice(100))) * 1e3 / len(contexts)

    searches = {
        name: search(by)
        for name, by in (("dense", "dense"), ("words", "words"), ("of_words", "head_of_words"))
    }
    after = memory()
    some = list(entries(0, 200))
    edit = timed(
        lambda: index_writer.edit(
            folder, encoder, add=entries(len(vectors), len(vectors) + 1000),
            change=[dataclasses.replace(entry, value="new") for entry in some[:100]],
            delete=[(entry.title, entry.attribute, "") for entry in some[100:]],
        )
    )  # fmt: skip
    seen = timed(lambda: index.nearest(queries[0], 10))
    found = index.search([some[0].key()], 32, "dense", encoder.encode([some[0].key()]))[0]
    if not any(one.entry.value == "new" for one in found):
        raise AssertionError("the reader does not see the edit")
    index.close()
    graph = next(folder.glob("*.usearch")).stat().st_size
    return {
        "entries_per_s": ends[1] / built,
        "grown_per_s": (len(vectors) - ends[1]) / (added + grown),
        "bytes_per_entry": graph / len(vectors),
        "text_bytes_per_entry": (folder / "entries.sqlite").stat().st_size / len(vectors),
        "recall_at_10": recall,
        "ms_per_query": ms,
        "open_s": opened,
        **{f"ms_{name}": value for name, value in searches.items()},
        "anonymous_mib": after[0] - before[0],
        "mapped_mib": after[1] - before[1],
        "edit_s": edit,
        "seen_s": seen,
    }


def given_encoder(vectors: np.ndarray, world: Any) -> Any:
    """An encoder that knows the vector of each fact of the world: row i for its i-th; of another text the last row's."""
    from lacy_jax.cascade.encoders import Encoder

    class Given(Encoder):
        name, dim = "given", vectors.shape[1]

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return vectors[[self._row(text) for text in texts]]

        def _row(self, text: str) -> int:
            person = world.lookup(text.partition(", ")[0])
            if person is None:
                return -1
            names = [name.replace("_", " ") for name in person.attributes]
            row = person.index * len(names) + names.index(text.partition(", ")[2])
            return row if row < len(vectors) else -1

    return Given()


def memory() -> tuple[float, float]:
    """MiB of this process in memory: its own, and of mapped files."""
    status = dict(
        line.split(":", 1)
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return float(status["RssAnon"].split()[0]) / 1024, float(status["RssFile"].split()[0]) / 1024
