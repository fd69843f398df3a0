"""Which library should hold the vectors of a dense index: usearch or faiss, and in what form?

    python benchmarks/index.py [--quick] [--json] [--entries N] [--vectors FILE.npy] [--only NAME ...]

Without FILE the vectors are drawn: points around centres, in a space of fewer dimensions than the vectors have, as those of texts
are. With FILE (float32 [n, dim], unit length: of real texts) they are its rows, and, where more are wanted, points between two
of them. A form is built on one thread, written to disk, mapped into memory, and asked with vectors that are near entries. The
last line is one JSON object with these keys:

  benchmark     "index"
  forms         {form: {"entries_per_s": built, "bytes_per_entry": on disk, "recall_at_10": against exact search, "ms_per_query",
                "open_s": mapping the file}}
  entries, dim, exact_ms_per_query

hnswlib is left out: it has had no release since December 2023, and has no wheels. `pip install faiss-cpu` for faiss.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FORMS = ("usearch f16", "usearch i8", "faiss hnsw f16", "faiss ivfpq")
QUERIES = 200


def draw_vectors(count: int, dim: int, given: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors, float32 [count, dim]."""
    if given is not None:
        pairs = rng.integers(0, len(given), (count, 2))
        share = rng.uniform(0.5, 1.0, (count, 1)).astype(np.float32)
        vectors = share * given[pairs[:, 0]] + (1 - share) * given[pairs[:, 1]]
        vectors[: len(given)] = given[:count]
    else:
        inner = 64
        centres = rng.standard_normal((max(count // 100, 1), inner), np.float32)
        places = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.standard_normal(
            (count, inner), np.float32
        )
        vectors = places @ rng.standard_normal((inner, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact(vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """The 10 nearest of each query, and ms per query."""
    started = time.perf_counter()
    found = []
    for query in queries:
        scores = vectors @ query
        best = np.argpartition(-scores, 10)[:10]
        found.append(best[np.argsort(-scores[best])])
    return np.stack(found), (time.perf_counter() - started) * 1e3 / len(queries)


def usearch_form(
    dtype: str,
) -> tuple[Callable[..., Any], Callable[[Any, str], None], Callable[[str], Any], Any]:
    from usearch.index import Index

    def build(vectors: np.ndarray) -> Any:
        index = Index(ndim=vectors.shape[1], metric="cos", dtype=dtype, connectivity=16, expansion_add=128)
        for start in range(0, len(vectors), 4096):
            keys = np.arange(start, min(start + 4096, len(vectors)), dtype=np.uint64)
            index.add(keys, vectors[keys.astype(np.int64)], threads=1)
        return index

    def load(path: str) -> Any:
        index = Index.restore(path, view=True)
        index.expansion_search = 128
        return index

    return (
        build,
        lambda index, path: index.save(path),
        load,
        lambda index, q: index.search(q, 10, threads=1).keys,
    )


def faiss_form(name: str) -> tuple[Callable[..., Any], Callable[[Any, str], None], Callable[[str], Any], Any]:
    import faiss

    faiss.omp_set_num_threads(1)

    def build(vectors: np.ndarray) -> Any:
        dim = vectors.shape[1]
        if name == "faiss hnsw f16":
            index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, 16, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 128
        else:  # As Co-LMLM's (arXiv:2607.07707) in kind.
            lists = max(int(4 * len(vectors) ** 0.5), 1)
            index = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 8}", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[: 40 * 4096])
        index.add(vectors)
        return index

    def load(path: str) -> Any:
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        if name == "faiss hnsw f16":
            index.hnsw.efSearch = 128
        else:
            index.nprobe = 32
        return index

    return (
        build,
        lambda index, path: faiss.write_index(index, path),
        load,
        lambda index, q: index.search(q[None], 10)[1][0],
    )


def measure(form: str, vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The figures of one form."""
    library, _, rest = form.partition(" ")
    build, save, load, ask = usearch_form(rest) if library == "usearch" else faiss_form(form)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vectors"
        started = time.perf_counter()
        index = build(vectors)
        built = time.perf_counter() - started
        save(index, str(path))
        del index
        started = time.perf_counter()
        index = load(str(path))
        opened = time.perf_counter() - started
        for query in queries[:20]:
            ask(index, query)
        started = time.perf_counter()
        found = [ask(index, query) for query in queries]
        took = time.perf_counter() - started
        recalled = [
            len(set(map(int, own)) & set(map(int, best))) / 10 for own, best in zip(found, truth, strict=True)
        ]
        return {
            "entries_per_s": len(vectors) / built,
            "bytes_per_entry": path.stat().st_size / len(vectors),
            "recall_at_10": float(np.mean(recalled)),
            "ms_per_query": took * 1e3 / len(queries),
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
    options = parser.parse_args()
    count = 3000 if options.quick else options.entries
    rng = np.random.default_rng(0)
    given = np.load(options.vectors) if options.vectors else None
    vectors = draw_vectors(count + QUERIES, options.dim, given, rng)
    # A query is a vector of the same kind, not an entry itself.
    order = rng.permutation(len(vectors))
    queries, vectors = vectors[order[:QUERIES]].copy(), np.ascontiguousarray(vectors[order[QUERIES:]])
    truth, exact_ms = exact(vectors, queries)
    figures: dict[str, Any] = {
        "benchmark": "index", "entries": count, "dim": vectors.shape[1], "exact_ms_per_query": exact_ms, "forms": {},
    }  # fmt: skip
    for form in options.only:
        try:
            figures["forms"][form] = found = measure(form, vectors, queries, truth)
        except ImportError as error:
            print(f"{form}: left out: {error}")
            continue
        if not options.json:
            print(
                f"{form:16} " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
