"""Which library should hold the vectors of a dense index, in what form, and what does an index of ours cost with them?

    python benchmarks/index.py [--quick] [--json] [--entries N] [--vectors FILE.npy] [--only NAME ...] [--workdir DIR] [--minutes M]

Without FILE the vectors are drawn: points around centres, in a space of fewer dimensions than the vectors have, as those of texts
are. With FILE (float32 [n, dim], unit length: of real texts) they are its rows, and, where more are wanted, points between two
of them. A form is built on one thread, written to disk, mapped into memory, and asked with vectors that are near entries. "our
index" is a `DenseIndex` of the synthetic world's facts with those vectors, no encoder: a part of it built, the others added and
compacted one after the other, then read, and edited while it is read; its contexts, the texts that it is asked about, are those of biographies.

With --workdir nothing is done twice: finished forms and half-built graphs are kept there. With --minutes a graph is written after so
long and the command ends, our index after the part that it is at (of 1 M entries 5 to 20 minutes); the same command goes on. The last line is one JSON object with these keys:

  benchmark     "index"
  forms         {form: {"entries_per_s": built, "bytes_per_entry": on disk, "recall_at_10": against exact search, "ms_per_query",
                "open_s": mapping the file}}; of our index more: see `measure_ours`
  entries, dim, exact_ms_per_query

hnswlib is left out: it has had no release since December 2023, and has no wheels. `pip install faiss-cpu` for faiss.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from index_ours import OURS, Kept, Unfinished, asked, measure_ours

FORMS = ("usearch f16", "usearch i8", "faiss hnsw f16", "faiss ivfpq", OURS)
QUERIES = 200
AT_ONCE = 4096
UNFINISHED = 3
"""Exit status if the time of --minutes is over."""


def draw_vectors(count: int, dim: int, given: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors, float32 [count, dim]."""
    if given is not None:
        pairs = rng.integers(0, len(given), (count, 2))
        share = rng.uniform(0.5, 1.0, (count, 1)).astype(np.float32)
        vectors = np.empty((count, given.shape[1]), np.float32)
        for at in range(0, count, AT_ONCE):  # A million at once would be in memory three times.
            own = slice(at, at + AT_ONCE)
            vectors[own] = share[own] * given[pairs[own, 0]] + (1 - share[own]) * given[pairs[own, 1]]
        vectors[: len(given)] = given[:count]
    else:
        inner = 64
        centres = rng.standard_normal((max(count // 100, 1), inner), np.float32)
        places = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.standard_normal(
            (count, inner), np.float32
        )
        vectors = places @ rng.standard_normal((inner, dim), np.float32)
    for at in range(0, count, AT_ONCE):
        vectors[at : at + AT_ONCE] /= np.linalg.norm(vectors[at : at + AT_ONCE], axis=1, keepdims=True)
    return vectors


def exact(vectors: np.ndarray, queries: np.ndarray) -> tuple[list[list[int]], float]:
    """The 10 nearest of each query, and ms per query."""
    started = time.perf_counter()
    found = []
    for query in queries:
        scores = vectors @ query
        best = np.argpartition(-scores, 10)[:10]
        found.append(best[np.argsort(-scores[best])].tolist())
    return found, (time.perf_counter() - started) * 1e3 / len(queries)


@dataclasses.dataclass(frozen=True)
class Form:
    """A library's index: made for vectors, added to, written, read again to go on or (mapped) to be asked."""

    new: Callable[[np.ndarray], Any]
    add: Callable[[Any, int, np.ndarray], None]
    save: Callable[[Any, str], None]
    load: Callable[[str, bool], Any]
    ask: Callable[[Any, np.ndarray], Any]


def usearch_form(dtype: str) -> Form:
    """usearch's HNSW."""
    from usearch.index import Index

    def new(vectors: np.ndarray) -> Any:
        return Index(ndim=vectors.shape[1], metric="cos", dtype=dtype, connectivity=16, expansion_add=128)

    def add(index: Any, start: int, vectors: np.ndarray) -> None:
        index.add(np.arange(start, start + len(vectors), dtype=np.uint64), vectors, threads=1)

    def load(path: str, mapped: bool) -> Any:
        index = Index.restore(path, view=mapped)
        index.expansion_add = index.expansion_search = 128
        return index

    def ask(index: Any, query: np.ndarray) -> Any:
        return index.search(query, 10, threads=1).keys

    return Form(new, add, lambda index, path: index.save(path), load, ask)


def faiss_form(name: str) -> Form:
    """faiss's HNSW or IVFPQ."""
    import faiss

    faiss.omp_set_num_threads(1)

    def new(vectors: np.ndarray) -> Any:
        dim = vectors.shape[1]
        if name == "faiss hnsw f16":
            index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, 16, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 128
        else:  # As Co-LMLM's (arXiv:2607.07707) in kind.
            lists = max(int(4 * len(vectors) ** 0.5), 1)
            index = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 8}", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[: 40 * 4096])
        return index

    # Of an IVF index the lists are mapped.
    flag = faiss.IO_FLAG_MMAP if name == "faiss ivfpq" else faiss.IO_FLAG_MMAP_IFC

    def load(path: str, mapped: bool) -> Any:
        index = faiss.read_index(path, flag if mapped else 0)
        if name == "faiss hnsw f16":
            index.hnsw.efSearch = 128
        else:
            index.nprobe = 32
        return index

    return Form(
        new,
        lambda index, start, vectors: index.add(vectors),
        lambda index, path: faiss.write_index(index, path),
        load,
        lambda index, query: index.search(query[None], 10)[1][0],
    )


def measure(name: str, vectors: np.ndarray, queries: np.ndarray, truth: list[list[int]], kept: Kept) -> Any:
    """The figures of one form."""
    library, _, rest = name.partition(" ")
    form = usearch_form(rest) if library == "usearch" else faiss_form(name)
    path, part = kept.folder / f"{name}.graph", f"part of {name}"
    done, seconds = kept.figures.get(part, (0, 0.0))
    started = time.perf_counter()
    index = form.load(str(path), False) if done else form.new(vectors)
    if not done:
        seconds += time.perf_counter() - started
    while done < len(vectors):
        if time.monotonic() > kept.until:
            form.save(index, str(path))
            kept.keep(part, (done, seconds))
            raise Unfinished(f"{name}: {done:,} of {len(vectors):,} entries after {seconds:.0f} s")
        started = time.perf_counter()
        form.add(index, done, vectors[done : done + AT_ONCE])
        seconds += time.perf_counter() - started
        done = min(done + AT_ONCE, len(vectors))
    form.save(index, str(path))
    kept.keep(part, (done, seconds))
    del index
    started = time.perf_counter()
    index = form.load(str(path), True)
    opened = time.perf_counter() - started
    ms, recall = asked(lambda query: form.ask(index, query), queries, truth)
    size = path.stat().st_size
    path.unlink()
    return {
        "entries_per_s": len(vectors) / seconds,
        "bytes_per_entry": size / len(vectors),
        "recall_at_10": recall,
        "ms_per_query": ms,
        "open_s": opened,
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="3,000 entries")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384, help="of drawn vectors (default 384, as MiniLM's)")
    parser.add_argument("--vectors", default="", help="real ones: a .npy file")
    parser.add_argument("--only", nargs="*", default=FORMS, choices=FORMS, metavar="NAME", help="these forms")
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="keeps what is done; default: a folder that is removed"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="end after so long, to go on later"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(options.workdir or pathlib.Path(folder), time.monotonic() + 60 * options.minutes)
        kept.folder.mkdir(parents=True, exist_ok=True)
        try:
            if len(options.only) > 1:
                each_alone(options, kept)
            run(options, kept)
        except Unfinished as unfinished:
            print(f"index: {unfinished}; the same command goes on", file=sys.stderr)
            raise SystemExit(UNFINISHED) from None


def each_alone(options: argparse.Namespace, kept: Kept) -> None:
    """Measure each form in a process of its own: usearch and faiss in one have crashed, and memory is counted by process."""
    for form in options.only:
        if form in kept.figures:
            continue
        left = (kept.until - time.monotonic()) / 60
        command = [sys.executable, __file__, *sys.argv[1:], f"--workdir={kept.folder}", "--only", form]
        done = subprocess.run([*command, f"--minutes={left}"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode == UNFINISHED:
            raise Unfinished(f"{form} goes on next")
        if form not in kept.figures:
            print(f"{form}: left out: " + (done.stdout.strip() or f"ended with {done.returncode}"))
    options.only = [form for form in options.only if form in kept.figures]


def run(options: argparse.Namespace, kept: Kept) -> None:
    """Measure what is asked for."""
    count = 3000 if options.quick else options.entries
    rng = np.random.default_rng(0)
    given = np.load(options.vectors) if options.vectors else None
    vectors = draw_vectors(count + QUERIES, options.dim, given, rng)
    # A query is a vector of the same kind, not an entry itself.
    order = rng.permutation(len(vectors))
    queries, vectors = vectors[order[:QUERIES]].copy(), vectors[order[QUERIES:]]
    about = [count, vectors.shape[1], options.vectors]
    if kept.once("about", lambda: about) != about:
        raise SystemExit(f"index: {kept.folder} holds figures of other vectors: {kept.figures['about']}")
    truth, exact_ms = kept.once("exact", lambda: exact(vectors, queries))
    figures: dict[str, Any] = {
        "benchmark": "index", "entries": count, "dim": vectors.shape[1], "exact_ms_per_query": exact_ms, "forms": {},
    }  # fmt: skip
    for form in options.only:
        how = measure_ours if form == OURS else functools.partial(measure, form)
        try:
            found = kept.once(form, lambda how=how: how(vectors, queries, truth, kept))
        except ImportError as error:
            print(f"{form}: left out: {error}")
            continue
        figures["forms"][form] = found
        if not options.json:
            print(
                f"{form:16} " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
