"""JSON as a dataclass, field by field; and SQLite files, value by value."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from typing import Any

import pytest

from lacy_jax.errors import DataError
from lacy_jax.sqlite_file import SqliteFile
from lacy_jax.typed_json import from_json


@dataclasses.dataclass
class _Part:
    count: int
    names: tuple[str, ...] = ()


@dataclasses.dataclass
class _Whole:
    parts: dict[str, _Part]
    pairs: list[tuple[int, str]]
    score: float | None = None
    anything: Any = None


def test_a_dataclass_comes_back():
    value = {
        "parts": {"a": {"count": 1, "names": ["x"]}},
        "pairs": [[1, "y"]],
        "score": 2,
        "anything": {"z": [None]},
    }
    assert from_json(_Whole, value) == _Whole({"a": _Part(1, ("x",))}, [(1, "y")], 2, {"z": [None]})
    assert from_json(_Whole, {"parts": {}, "pairs": []}) == _Whole({}, [])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], r"_Whole is list, expected an object"),
        ({"pairs": []}, "no parts"),
        ({"parts": {}, "pairs": [], "more": 1}, "unknown 'more'"),
        ({"parts": {"a": {"count": True}}, "pairs": []}, r"parts\.a\.count is bool, expected int"),
        ({"parts": {"a": {"count": 1, "names": "x"}}, "pairs": []}, r"parts\.a\.names is str"),
        ({"parts": {"a": None}, "pairs": []}, r"parts\.a is null, expected an object"),
        ({"parts": {}, "pairs": [[1]]}, r"pairs\[0\] is list"),
        ({"parts": {}, "pairs": [[1, 2]]}, r"pairs\[0\]\[1\] is int, expected str"),
        ({"parts": {}, "pairs": [], "score": "1"}, "score is str, expected float"),
    ],
)
def test_what_is_not_as_declared_is_named(value, says):
    with pytest.raises(ValueError, match=says):
        from_json(_Whole, value)


def test_a_database_is_read_value_by_value(tmp_path):
    path = tmp_path / "a b#c?.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE t (name, count); INSERT INTO t VALUES ('x', 1), (NULL, 2)")
    file = SqliteFile(path, "table", "make it again")
    assert file.rows("SELECT name, count FROM t WHERE count = ?", (1,), of=(str, int)) == [("x", 1)]
    for query, says in (
        ("SELECT name FROM t", "of another type"),
        ("SELECT name FROM u", "no such table: u"),
    ):
        with pytest.raises(DataError, match=rf"table .*\.db: .*{says}.*; make it again"):
            file.rows(query)
    file.close()
    with pytest.raises(DataError, match=r"table .*: not found; make it again"):
        SqliteFile(tmp_path / "none.db", "table", "make it again")
