"""A dense index: entries found by what they mean, by their words, or by both.

A folder of two files. `entries.sqlite` holds the entries, their words (SQLite's FTS5) and all that says what the index is;
`vectors-N.usearch` is a graph of the entries' vectors (HNSW, arXiv:1603.09320, by the library usearch), which is mapped into
memory and never changed. An edit is one SQLite transaction: vectors of new entries lie in the table `fresh` and are compared
one by one, and entries of the graph that are gone are named in the table `gone`. So a reader sees all of an edit or nothing,
while it reads on. `index_writer.compact` writes the next graph, without what is gone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade.encoders import PROBE, Encoder
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.passages import words
from lacy_jax.errors import DataError, LacyError, one_line
from lacy_jax.labels.keywords import FUNCTION_WORDS
from lacy_jax.sqlite_file import SqliteFile

FORMAT = 1
DATABASE = "entries.sqlite"


@dataclasses.dataclass(frozen=True)
class Search:
    """One way to search an index, by one list of what is found or by two.

    Attributes:
      vectors: whose vectors are compared: "encoder", of the query's text; "head", of the query head of the model that writes;
        "" = none.
      words: whether words are compared (BM25).
      among: vectors only order what words found; else the ranks of both are joined.
    """

    vectors: str
    words: bool
    among: bool = False


SEARCHES = {
    "dense": Search("encoder", words=False),
    "hybrid": Search("encoder", words=True),
    "words": Search("", words=True),
    "dense_of_words": Search("encoder", words=True, among=True),
    "head": Search("head", words=False),
    "head_hybrid": Search("head", words=True),
    "head_of_words": Search("head", words=True, among=True),
}
"""Ways to search by name. The first is the default."""
DEFAULT_SEARCH = next(iter(SEARCHES))
ADVICE = "build it with `lacy index`"
_RANK = 60
"""Reciprocal rank fusion adds 1 / (60 + rank) of each search (Cormack et al., SIGIR 2009)."""
_GRAPH = {"connectivity": 16, "expansion_add": 128, "expansion_search": 128}
LEAST_OF_HEAD = "least similarity of head "
"""`about` holds, under this and `head_name`, the least similarity of each search by that query head, as JSON."""
_SAME_ENCODER = 0.999
"""Least cosine between the kept vector of `PROBE` and the encoder's: rounding differs from machine to machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An entry that a search found, with the cosine of its vector and the query's."""

    entry: Entry
    similarity: float


def _load_usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise LacyError(
            f"a dense index needs usearch ({one_line(error, 100)}): pip install 'lacy_jax[index]'"
        ) from None
    return Index


def new_graph(dim: int) -> Any:
    """An empty graph for vectors of `dim` numbers, kept as float16.

    Raises:
      LacyError: usearch is not installed.
    """
    return _load_usearch()(ndim=dim, metric="cos", dtype="f16", **_GRAPH)


@dataclasses.dataclass(frozen=True)
class _State:
    """The vectors of an index between two edits.

    Attributes:
      graph: of most entries, mapped into memory; graph_name: its file.
      fresh: id -> row of `fresh_vectors`, of entries added since the graph was written.
      gone: ids in the graph whose entries were deleted.
    """

    graph_name: str
    graph: Any
    fresh: dict[int, int]
    fresh_vectors: Float32[np.ndarray, "fresh dim"]
    gone: frozenset[int]

    def nearest(self, vector: Float32[np.ndarray, " dim"], count: int) -> list[int]:
        """Ids of the nearest entries, nearest first."""
        distances: dict[int, float] = {}
        wanted, size = count + 8, len(self.graph)
        while size:
            found = self.graph.search(vector, min(wanted, size), threads=1)
            pairs = zip(found.keys.tolist(), found.distances.tolist(), strict=True)
            distances = {at: distance for at, distance in pairs if at not in self.gone}
            if len(distances) >= count or wanted >= size:
                break
            wanted *= 2  # Many of those found are gone.
        distances |= dict(zip(self.fresh, (1.0 - self.fresh_vectors @ vector).tolist(), strict=True))
        return sorted(distances, key=lambda at: (distances[at], at))[:count]

    def vector(self, identity: int) -> Float32[np.ndarray, " dim"] | None:
        """The unit vector of an entry; None if there is none."""
        if identity in self.fresh:
            return np.asarray(self.fresh_vectors[self.fresh[identity]])
        own = self.graph.get(identity)
        if own is None:
            return None
        own = np.asarray(own, np.float32)
        return np.asarray(own / max(float(np.linalg.norm(own)), 1e-9))


class DenseIndex:
    """An index, opened for reading; it follows edits that are made meanwhile.

    Args:
      folder: made by `index_writer.build`.
      encoder: the one it was built with, for queries.

    Raises:
      DataError: missing or damaged (also later), or built with another encoder. LacyError: usearch is not installed.
    """

    def __init__(self, folder: str | pathlib.Path, encoder: Encoder):
        self.folder, self.encoder = pathlib.Path(folder), encoder
        self._file = open_file(self.folder)
        self._state: _State | None = None
        self._version = -1
        try:
            check_encoder(self.folder, self._about(), encoder)
            self._refresh()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return int(self._file.rows("SELECT COUNT(*) FROM entries", of=(int,))[0][0])

    def search(
        self,
        queries: Sequence[str],
        count: int,
        by: str = DEFAULT_SEARCH,
        vectors: Float32[np.ndarray, "n dim"] | None = None,
    ) -> list[list[Found]]:
        """For each query the best entries, best first; see `SEARCHES`.

        Args:
          vectors: unit vectors of the queries, instead of the encoder's.

        Raises:
          DataError: damaged, or `vectors` are not of the index's length.
        """
        if not queries:
            return []
        self._refresh()
        if vectors is None:
            vectors = self.encoder.encode(queries)
        elif vectors.shape[1] != self.encoder.dim:
            raise DataError(
                f"index {self.folder}: its vectors have {self.encoder.dim} numbers, those of the query head {vectors.shape[1]}"
            )
        how, state = SEARCHES[by], self._now
        return [self._search(state, q, v, count, how) for q, v in zip(queries, vectors, strict=True)]

    def entries(self) -> list[tuple[int, Entry]]:
        """All entries with their numbers, in order."""
        query = "SELECT id, title, attribute, context, value FROM entries ORDER BY id"
        rows = self._file.rows(query, of=(int, str, str, str, str))
        return [(identity, Entry(*parts)) for identity, *parts in rows]

    def vectors(self, numbers: Sequence[int]) -> Float32[np.ndarray, "n dim"]:
        """The unit vectors of entries.

        Raises:
          DataError: an entry has none.
        """
        self._refresh()
        found = [self._now.vector(number) for number in numbers]
        kept = [vector for vector in found if vector is not None]
        if len(kept) < len(found):
            raise DataError(f"index {self.folder}: damaged: an entry has no vector; {ADVICE}")
        return np.asarray(kept, np.float32).reshape(-1, self.encoder.dim)

    def nearest(self, vector: Float32[np.ndarray, " dim"], count: int) -> list[int]:
        """The numbers of the entries nearest to a unit vector, nearest first."""
        self._refresh()
        return self._now.nearest(vector, count)

    def sample_values(self, count: int = 600) -> list[str]:
        """Some values, as examples of what a call returns; none if it holds only passages."""
        query = "SELECT value FROM entries WHERE value != '' LIMIT ?"
        return [value for (value,) in self._file.rows(query, (count,))]

    def least_similarity(self, head: str, by: str) -> float | None:
        """The least similarity found for search `by` of a query head (`head_name`); None if none was.

        Raises:
          DataError: damaged.
        """
        found = self._file.rows("SELECT value FROM about WHERE name = ?", (LEAST_OF_HEAD + head,))
        try:
            least = json.loads(found[0][0]).get(by) if found else None
            return None if least is None else float(least)
        except (ValueError, TypeError, AttributeError):
            raise DataError(
                f"index {self.folder}: damaged: the least similarity of a query head is no number; {ADVICE}"
            ) from None

    def close(self) -> None:
        """Close its files."""
        self._file.close()

    def _search(
        self, state: _State, query: str, vector: Float32[np.ndarray, " dim"], count: int, by: Search
    ) -> list[Found]:
        reach = 4 * count if by.vectors and by.words else count
        ranked: list[list[int]] = []
        if by.vectors and not by.among:
            ranked.append(state.nearest(vector, reach))
        if by.words:
            ranked.append(self._by_words(query, reach))
        if by.among:
            near = {at: float(own @ vector) for at in ranked[0] if (own := state.vector(at)) is not None}
            ranked = [sorted(near, key=lambda at: (-near[at], at))]
        scores: dict[int, float] = {}
        for ids in ranked:
            for rank, identity in enumerate(ids):
                scores[identity] = scores.get(identity, 0.0) + 1.0 / (_RANK + rank)
        best = sorted(scores, key=lambda identity: (-scores[identity], identity))[:count]
        entries = self._entries(best)
        vectors = {at: state.vector(at) for at in best if at in entries}
        if any(own is None for own in vectors.values()):
            raise DataError(f"index {self.folder}: damaged: an entry has no vector; {ADVICE}")
        return [Found(entries[at], float(own @ vector)) for at, own in vectors.items() if own is not None]

    def _by_words(self, query: str, count: int) -> list[int]:
        """Ids of the best entries by BM25 over the query's words, but for function words."""
        wanted = [word for word in dict.fromkeys(words(query)) if word not in FUNCTION_WORDS]
        if not wanted:
            return []
        match = " OR ".join(f'"{word}"' for word in wanted)
        best = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [at for (at,) in self._file.rows(best, (match, count), of=(int,))]

    def _entries(self, ids: Sequence[int]) -> dict[int, Entry]:
        marks = ",".join("?" * len(ids))
        query = f"SELECT id, title, attribute, context, value FROM entries WHERE id IN ({marks})"
        rows = self._file.rows(query, tuple(ids), of=(int, str, str, str, str))
        return {identity: Entry(*parts) for identity, *parts in rows}

    def _about(self) -> dict[str, str]:
        return dict(self._file.rows("SELECT name, value FROM about", of=(str, str)))

    @property
    def _now(self) -> _State:
        assert self._state is not None  # Since the first refresh.
        return self._state

    def _refresh(self) -> None:
        """Read again what an edit may have changed, if there was one."""
        while (version := self._file.version()) != self._version:
            try:
                state = self._read_state()
            except DataError:
                if version == self._file.version():
                    raise
                continue  # The graph was replaced meanwhile.
            if version == self._file.version():
                self._state, self._version = state, version

    def _read_state(self) -> _State:
        about = self._about()
        if self._state is not None and self._state.graph_name == about.get("graph"):
            graph = self._state.graph
        else:
            graph = graph_of(self.folder, about)
        rows = self._file.rows("SELECT id, vector FROM fresh ORDER BY id", of=(int, bytes))
        dim = self.encoder.dim
        if graph.ndim != dim or any(len(vector) != 4 * dim for _, vector in rows):
            raise DataError(f"index {self.folder}: damaged: vectors of another length; {ADVICE}")
        return _State(
            about["graph"],
            graph,
            {identity: place for place, (identity, _) in enumerate(rows)},
            np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(-1, dim),
            frozenset(at for (at,) in self._file.rows("SELECT id FROM gone", of=(int,))),
        )


def head_name(kernel: Float32[Any, "Q D"]) -> str:
    """By which an index knows a model's query head: a hash of its numbers."""
    return hashlib.sha256(np.ascontiguousarray(kernel, np.float32).tobytes()).hexdigest()[:16]


def open_file(folder: pathlib.Path) -> SqliteFile:
    """The entries of an index, for reading.

    Raises:
      DataError: there are none.
    """
    return SqliteFile(folder / DATABASE, "index", ADVICE)


def encoder_name(folder: str | pathlib.Path) -> str:
    """The name of the encoder that an index was built with.

    Raises:
      DataError: missing or damaged.
    """
    file = open_file(pathlib.Path(folder))
    try:
        found = file.rows("SELECT value FROM about WHERE name = 'encoder'")
    finally:
        file.close()
    if not found:
        raise DataError(f"index {folder}: damaged: it does not say what encoder it was built with; {ADVICE}")
    return str(found[0][0])


def check_encoder(folder: pathlib.Path, about: dict[str, str], encoder: Encoder) -> None:
    """Whether an index is one we can read with this encoder.

    Raises:
      DataError: it is not; says why.
    """
    if about.get("format") != str(FORMAT):
        raise DataError(f"index {folder}: format {about.get('format')}, expected {FORMAT}; {ADVICE}")
    if (about.get("encoder"), about.get("dim")) != (encoder.name, str(encoder.dim)):
        raise DataError(
            f"index {folder}: built with encoder {about.get('encoder')} ({about.get('dim')} numbers a text), "
            f"not {encoder.name} ({encoder.dim})"
        )
    try:
        kept = np.frombuffer(bytes.fromhex(about.get("probe", "")), np.float32)
    except ValueError:
        kept = np.zeros(0, np.float32)
    if len(kept) != encoder.dim or not float(kept @ encoder.encode([PROBE])[0]) > _SAME_ENCODER:
        raise DataError(
            f"index {folder}: built with other weights of encoder {encoder.name}, or damaged; {ADVICE}"
        )


def graph_of(folder: pathlib.Path, about: dict[str, str], mapped: bool = True) -> Any:
    """The graph of an index, mapped into memory or, to be added to, read; usearch trusts its files, so their hash is compared first.

    Raises:
      DataError: missing, damaged, or of another version of usearch.
    """
    path = folder / pathlib.PurePath(about.get("graph", "") or "no graph").name
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name.
        raise DataError(
            f"index {folder}: {path.name}: {getattr(error, 'strerror', None) or error}; {ADVICE}"
        ) from None
    if digest != about.get("graph_sha256"):
        raise DataError(f"index {folder}: {path.name}: damaged or half copied; {ADVICE}")
    graph = _load_usearch().restore(str(path), view=mapped)
    if graph is None:
        raise DataError(f"index {folder}: {path.name}: not a graph that this usearch reads; {ADVICE}")
    for name in ("expansion_add", "expansion_search"):  # Not kept in the file.
        setattr(graph, name, _GRAPH[name])
    return graph
