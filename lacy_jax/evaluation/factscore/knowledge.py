"""The knowledge source: one article per title in SQLite, and BM25 over the passages of a topic's article.

The table is that of the original tool, documents(title PRIMARY KEY, text), with the passages of an article joined by its
separator, so each tool can read the other's databases. A second table finds articles by normalised name.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import sqlite3
import urllib.parse
import uuid
from collections.abc import Iterable
from typing import Any

from lacy_jax.cascade.fact_database import normal_name
from lacy_jax.cascade.passages import Passage, bm25s_library, split_passages, words
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError
from lacy_jax.sqlite_file import SqliteFile

SEPARATOR = "####SPECIAL####SEPARATOR####"
_ENCODED = re.compile(r"%[0-9A-F]{2}")
PASSAGE_WORDS = 180
"""The original cuts passages at 256 RoBERTa tokens, which are about 190 English words."""
PASSAGES = 5
"""Passages shown to a judge, as in the original."""


class KnowledgeSource:
    """Articles by title.

    Args:
      path: SQLite file made by `build` or by the original tool.

    Raises:
      DataError: the file is missing, not such a database, or has no articles; or, later, a row is damaged.
    """

    def __init__(self, path: str | pathlib.Path):
        path = pathlib.Path(path)
        self._file = SqliteFile(
            path,
            "knowledge source",
            "make it with KnowledgeSource.build (it needs the table documents(title, text))",
        )
        self.name = path.stem
        stat = path.stat()
        self.identity = f"{path.stem} {stat.st_size} {stat.st_mtime_ns}"
        try:
            if not self._file.rows("SELECT title, text FROM documents LIMIT 1", of=(str, str)):
                raise DataError(f"knowledge source {path}: no articles in it")
            self._has_names = ("names",) in self._file.rows("SELECT name FROM sqlite_master")
        except DataError:
            self._file.close()
            raise
        self._index = functools.lru_cache(maxsize=64)(self._index_of)

    @classmethod
    def build(cls, path: str | pathlib.Path, documents: Iterable[Document]) -> KnowledgeSource:
        """Write a database, completely or not at all, and open it. Of two articles with one title the first is kept.

        URL-encoded titles ("Andr%C3%A9_Weil") are decoded.

        Raises:
          DataError: no document has a title.
          LacyError: `path` exists, or cannot be written.
        """
        path = pathlib.Path(path)
        if path.exists():
            raise LacyError(f"cannot write the knowledge source {path}: it exists")
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(temporary)) as db:
                db.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
                db.execute("CREATE TABLE names (name, title)")
                for document in documents:
                    if document.title:
                        parts = SEPARATOR.join(split_passages(document.text, PASSAGE_WORDS))
                        row = (_title(document.title), parts)
                        db.execute("INSERT OR IGNORE INTO documents VALUES (?, ?)", row)
                        db.execute("INSERT INTO names VALUES (?, ?)", (normal_name(row[0]), row[0]))
                db.execute("CREATE INDEX names_by_name ON names (name)")
                db.commit()
                count = db.execute("SELECT COUNT(*) FROM documents").fetchone()[0]
            if not count:
                temporary.unlink()
                raise DataError("no articles for the knowledge source: no document has a title")
            temporary.rename(path)
        except (OSError, sqlite3.Error) as error:
            temporary.unlink(missing_ok=True)
            raise LacyError(f"cannot write the knowledge source {path}: {error}") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return cls(path)

    def title(self, topic: str, *, exact: bool = False) -> str | None:
        """The title of the topic's article: the topic itself, or the only title with the same normalised name; else None.

        Args:
          exact: accept only the topic itself, as the original does: "Tim Fischer" is not "Tim Fischer (wrestler)".
        """
        found = self._file.rows("SELECT title FROM documents WHERE title = ?", (topic,))
        if not found and self._has_names and not exact:
            found = self._file.rows(  # Older databases have names in lower case, with their diacritics.
                "SELECT DISTINCT title FROM names WHERE name IN (?, ?) LIMIT 2",
                (normal_name(topic), " ".join(words(re.sub(r"\s*\([^()]*\)\s*$", "", topic)))),
            )
        return str(found[0][0]) if len(found) == 1 else None

    def passages(self, title: str) -> list[Passage]:
        """All passages of an article, in order; [] if there is no such article."""
        found = self._file.rows("SELECT text FROM documents WHERE title = ? LIMIT 1", (title,))
        parts = [] if not found else found[0][0].replace("<s>", "").replace("</s>", "").split(SEPARATOR)
        return [Passage(title, part.strip()) for part in parts if part.strip()]

    def retrieve(self, title: str, fact: str, count: int = PASSAGES) -> list[Passage]:
        """The passages of an article that match a fact best by BM25 (query: title and fact), best first."""
        passages, index = self._index(title)
        if len(passages) <= 1:
            return passages[:count]
        known = [word for word in words(f"{title} {fact}") if word in index.vocab_dict]
        if not known:
            return passages[:count]
        found, _ = index.retrieve(
            [known],
            k=min(count, len(passages)),
            show_progress=False,
            backend_selection="numpy",  # Not JAX.
        )
        return [passages[place] for place in found[0].tolist()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _index_of(self, title: str) -> tuple[list[Passage], Any]:
        passages = self.passages(title)
        index = bm25s_library().BM25()
        if len(passages) > 1:
            index.index([words(passage.text) for passage in passages], show_progress=False)
        return passages, index


def _title(title: str) -> str:
    return urllib.parse.unquote(title).replace("_", " ") if _ENCODED.search(title) else title
