"""SQLite files, read by one process and changed by another; every error of reading is one clear line, even if a page of the file
is damaged."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from lacy_jax.errors import DataError

_WAIT_S = 60.0
"""How long to wait for somebody else who is writing."""


@contextlib.contextmanager
def changing(path: str | pathlib.Path) -> Iterator[sqlite3.Connection]:
    """One transaction on a file that others may be reading, undone if an error leaves it.

    Readers see the file as it was until the transaction ends. What is deleted is overwritten.

    Raises:
      sqlite3.Error: the file is damaged, or somebody else is changing it for too long.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_S)) as db:
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA cache_spill = OFF")  # Else a large change would lock readers out before its end.
        with db:
            db.execute("BEGIN IMMEDIATE")
            yield db


class SqliteFile:
    """A database that is only read.

    Args:
      path: of the file.
      what: names it in errors ("fact database").
      advice: what to do if it is missing or of another kind.

    Raises:
      DataError: it is missing.
    """

    def __init__(self, path: str | pathlib.Path, what: str, advice: str):
        path = pathlib.Path(path)
        self._name, self._advice = f"{what} {path}", advice
        if not path.is_file():
            raise DataError(f"{self._name}: not found; {advice}")
        self._path = path
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=_WAIT_S
        )

    def rows(self, query: str, parameters: Sequence[Any] = (), of: tuple[type, ...] = (str,)) -> list[Any]:
        """The rows of a query.

        Args:
          of: the types of the columns, which SQLite does not enforce.

        Raises:
          DataError: it is not a database, a table is missing, a page is damaged, or a value has a wrong type.
        """
        try:
            found = self._fetch(query, parameters)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # The latter if names are damaged.
            raise DataError(f"{self._name}: {' '.join(str(error).split())}; {self._advice}") from None
        for row in found:
            if tuple(map(type, row)) != of:
                raise DataError(f"{self._name}: damaged: a value is of another type; {self._advice}")
        return found

    def _fetch(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        try:
            return self._db.execute(query, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
        # Who changed the file died while writing it: whoever opens it for writing puts it back as it was.
        with contextlib.closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as db:
            db.execute("SELECT COUNT(*) FROM sqlite_master").fetchall()
        return self._db.execute(query, parameters).fetchall()

    def version(self) -> int:
        """A number that changes whenever somebody else has changed the file.

        Raises:
          DataError: see `rows`.
        """
        return int(self.rows("PRAGMA data_version", of=(int,))[0][0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
