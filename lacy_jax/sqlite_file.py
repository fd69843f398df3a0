"""SQLite files, opened for reading; every error is one clear line, even if a page of the file is damaged."""

from __future__ import annotations

import pathlib
import sqlite3
from collections.abc import Sequence
from typing import Any

from lacy_jax.errors import DataError


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
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def rows(self, query: str, parameters: Sequence[Any] = (), of: tuple[type, ...] = (str,)) -> list[Any]:
        """The rows of a query.

        Args:
          of: the types of the columns, which SQLite does not enforce.

        Raises:
          DataError: it is not a database, a table is missing, a page is damaged, or a value has a wrong type.
        """
        try:
            found = self._db.execute(query, parameters).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # The latter if names are damaged.
            raise DataError(f"{self._name}: {' '.join(str(error).split())}; {self._advice}") from None
        for row in found:
            if tuple(map(type, row)) != of:
                raise DataError(f"{self._name}: damaged: a value is of another type; {self._advice}")
        return found

    def close(self) -> None:
        """Close the file."""
        self._db.close()
