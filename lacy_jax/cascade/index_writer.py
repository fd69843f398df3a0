"""Building and editing a dense index; `dense_index` says what it is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lacy_jax.cascade.dense_index import (
    ADVICE,
    DATABASE,
    FORMAT,
    LEAST_OF_HEAD,
    check_encoder,
    graph_of,
    new_graph,
    open_file,
)
from lacy_jax.cascade.encoders import PROBE, Encoder
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.fact_database import normal_name
from lacy_jax.errors import DataError, LacyError, one_line
from lacy_jax.progress import Progress, Silent
from lacy_jax.sqlite_file import changing

_BATCH = 1024
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, attribute TEXT NOT NULL,
                      context TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX entries_by_title ON entries (title, attribute);
CREATE VIRTUAL TABLE words USING fts5(title, attribute, context, content='entries', content_rowid='id',
                                      tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
  INSERT INTO words (rowid, title, attribute, context) VALUES (new.id, new.title, new.attribute, new.context);
END;
CREATE TRIGGER entry_deleted AFTER DELETE ON entries BEGIN
  INSERT INTO words (words, rowid, title, attribute, context)
    VALUES ('delete', old.id, old.title, old.attribute, old.context);
END;
CREATE TABLE fresh (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE gone (id INTEGER PRIMARY KEY);
"""
"""An id is never used twice: an entry that is gone stays gone."""


def build(
    folder: str | pathlib.Path,
    entries: Iterable[Entry],
    encoder: Encoder,
    *,
    threads: int = 1,
    shown: bool = False,
) -> int:
    """Write an index to a new folder, all or nothing; returns the number of entries. Equal entries are written once.

    Args:
      threads: that build the graph; with 1 the same entries give the same file.
      shown: show progress.

    Raises:
      DataError: there are no entries. LacyError: the folder exists, cannot be written, or usearch is not installed.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise LacyError(f"cannot write the index {folder}: it exists; remove it or choose another folder")
    graph = new_graph(encoder.dim)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(temporary / DATABASE)) as db:
            db.executescript(_SCHEMA)
            progress = Progress(f"index {folder.name}", unit="entries") if shown else Silent()
            with progress:
                for batch in _batches(_distinct(entries)):
                    ids = _insert(db, batch)
                    graph.add(
                        np.array(ids, np.uint64), encoder.encode([e.key() for e in batch]), threads=threads
                    )
                    progress.update(len(batch))
            if not len(graph):
                raise DataError("nothing to index: there are no entries")
            probe = encoder.encode([PROBE])[0].astype(np.float32).tobytes().hex()
            about = {"format": str(FORMAT), "encoder": encoder.name, "dim": str(encoder.dim), "probe": probe}
            _set(db, about | _save_graph(temporary, graph, 0))
            db.execute("INSERT INTO words (words) VALUES ('optimize')")
            db.commit()
        temporary.rename(folder)
    except (OSError, sqlite3.Error) as error:
        raise LacyError(
            f"cannot write the index {folder}: {getattr(error, 'strerror', None) or error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(graph)


def edit(
    folder: str | pathlib.Path,
    encoder: Encoder,
    *,
    add: Iterable[Entry] = (),
    change: Iterable[Entry] = (),
    delete: Iterable[tuple[str, str, str]] = (),
) -> dict[str, int]:
    """Change an index that others may be reading, all or nothing; first deletions, then changes, then additions.

    Titles are compared by `normal_name`, so every spelling of a name is meant.

    Args:
      encoder: the index's own.
      add: entries; those that are there already are left as they are.
      change: facts whose values replace all values of the same title and attribute.
      delete: (title, attribute, value), where "" stands for any.

    Returns:
      How many entries were added, changed (written anew) and deleted.

    Raises:
      DataError: missing, damaged or another encoder's; or a change or deletion of what is not there.
    """
    folder = pathlib.Path(folder)
    counts = {"added": 0, "changed": 0, "deleted": 0}
    with _editing(folder) as db:
        check_encoder(folder, _read_about(db), encoder)
        spellings: dict[str, list[str]] = {}
        for (title,) in db.execute("SELECT DISTINCT title FROM entries"):
            spellings.setdefault(normal_name(title), []).append(title)
        for title, attribute, value in delete:
            ids = _matching(db, spellings.get(normal_name(title), ()), attribute, value)
            if not ids:
                raise DataError(
                    f"index {folder}: nothing to delete: {_named(title, attribute, value)}; nothing was changed"
                )
            _remove(db, ids)
            counts["deleted"] += len(ids)
        changes: dict[tuple[str, str], list[Entry]] = {}
        for entry in change:
            changes.setdefault((entry.title, entry.attribute), []).append(entry)
        for (title, attribute), values in changes.items():
            known = spellings.get(normal_name(title), ()) if attribute else ()
            ids = _matching(db, known, attribute, "")
            if not ids:
                raise DataError(
                    f"index {folder}: nothing to change: {_named(title, attribute)}; nothing was changed"
                )
            _remove(db, ids)
            counts["changed"] += _add(db, values, encoder)
        counts["added"] = sum(_add(db, batch, encoder) for batch in _batches(_distinct(add)))
        if not db.execute("SELECT 1 FROM entries LIMIT 1").fetchone():
            raise DataError(
                f"index {folder}: no entry would be left; remove the folder instead; nothing was changed"
            )
    return counts


def compact(folder: str | pathlib.Path, *, threads: int = 1) -> int:
    """Write the graph of an edited index anew, so that nothing is left of deleted entries; returns the number of entries.

    Readers go on with the old graph until the new one is complete. Editors wait. A graph that nothing was deleted from grows by what was
    added, which is as fast as building only that.

    Raises:
      DataError: missing or damaged. LacyError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    with _editing(folder) as db:
        about = _read_about(db)
        old = graph_of(folder, about)
        fresh = dict(db.execute("SELECT id, vector FROM fresh ORDER BY id"))
        grows = not db.execute("SELECT 1 FROM gone LIMIT 1").fetchone()
        graph = graph_of(folder, about, mapped=False) if grows else new_graph(old.ndim)
        every = (at for (at,) in db.execute("SELECT id FROM entries ORDER BY id"))
        for batch in _batches(fresh if grows else every):
            vectors = [np.frombuffer(fresh[at], np.float32) if at in fresh else old.get(at) for at in batch]
            if any(vector is None or len(vector) != old.ndim for vector in vectors):
                raise DataError(f"index {folder}: damaged: an entry has no vector; {ADVICE}")
            graph.add(np.array(batch, np.uint64), np.stack(vectors).astype(np.float32), threads=threads)
        before = folder / about["graph"]
        number = int(before.stem.rpartition("-")[2]) + 1
        _set(db, _save_graph(folder, graph, number))
        db.execute("INSERT INTO words (words) VALUES ('rebuild')")  # Without the words of what was deleted.
        db.execute("DELETE FROM fresh")
        db.execute("DELETE FROM gone")
    with contextlib.suppress(OSError):  # Some systems keep a file that is mapped.
        before.unlink()
    return len(graph)


def keep_least(folder: str | pathlib.Path, head: str, least: Mapping[str, float]) -> None:
    """Keep the least similarity of each search by a query head (`dense_index.head_name`); readers follow at once.

    Raises:
      DataError: missing or damaged. LacyError: it cannot be written.
    """
    with _editing(pathlib.Path(folder)) as db:
        _set(db, {LEAST_OF_HEAD + head: json.dumps(dict(least))})


@contextlib.contextmanager
def _editing(folder: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """One transaction on the entries of an index; undone if an error leaves it."""
    open_file(folder).close()
    try:
        with changing(folder / DATABASE) as db:
            yield db
    except (OSError, sqlite3.Error, KeyError, ValueError) as error:
        raise LacyError(
            f"cannot change the index {folder}: {one_line(error, 200)}; nothing was changed"
        ) from error


def _read_about(db: sqlite3.Connection) -> dict[str, str]:
    return {str(name): str(value) for name, value in db.execute("SELECT name, value FROM about")}


def _set(db: sqlite3.Connection, about: dict[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.items())


def _save_graph(folder: pathlib.Path, graph: Any, number: int) -> dict[str, str]:
    """Write a graph; gives what `about` says of it, which makes the file part of the index."""
    path = folder / f"vectors-{number}.usearch"
    graph.save(str(path))
    with path.open("rb") as stream:
        return {"graph": path.name, "graph_sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _insert(db: sqlite3.Connection, entries: Sequence[Entry]) -> list[int]:
    statement = "INSERT INTO entries (title, attribute, context, value) VALUES (?, ?, ?, ?)"
    return [int(db.execute(statement, dataclasses.astuple(entry)).lastrowid or 0) for entry in entries]


def _add(db: sqlite3.Connection, entries: Sequence[Entry], encoder: Encoder) -> int:
    """Add entries that are not there yet to an index that has a graph."""
    query = "SELECT 1 FROM entries WHERE title = ? AND attribute = ? AND context = ? AND value = ?"
    new = [e for e in entries if not db.execute(query, dataclasses.astuple(e)).fetchone()]
    if new:
        vectors = encoder.encode([entry.key() for entry in new]).astype(np.float32)
        rows = zip(_insert(db, new), (vector.tobytes() for vector in vectors), strict=True)
        db.executemany("INSERT INTO fresh VALUES (?, ?)", rows)
    return len(new)


def _matching(db: sqlite3.Connection, titles: Iterable[str], attribute: str, value: str) -> list[int]:
    query = (
        "SELECT id FROM entries WHERE title = ?1 AND (?2 = '' OR attribute = ?2) AND (?3 = '' OR value = ?3)"
    )
    return [at for title in titles for (at,) in db.execute(query, (title, attribute, value))]


def _remove(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    for at in ids:
        db.execute("DELETE FROM entries WHERE id = ?", (at,))
        if not db.execute("DELETE FROM fresh WHERE id = ?", (at,)).rowcount:
            db.execute("INSERT INTO gone VALUES (?)", (at,))


def _named(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _distinct(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, each once; only 64-bit hashes are held, so that a corpus of spans fits into memory."""
    seen: set[int] = set()
    for entry in entries:
        if (mark := hash(entry)) not in seen:
            seen.add(mark)
            yield entry


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    stream = iter(items)
    while batch := list(itertools.islice(stream, _BATCH)):
        yield batch
