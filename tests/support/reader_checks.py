"""Every reader of files from outside: whatever stands in one, its content or one clear line that names it.

A class of tests derived from `ReaderChecks` has a table `readers`; each entry writes a small good file and reads it. Then any
bytes stand there, the file with bytes that were changed, cut out or put in, and, where it is JSON, the file with any value in any
place. Readers with tests of their own kind lie elsewhere in tests/strangers: dumps, arrays, lines, answers of servers, tokenizer.json;
GGUF in tests/export, checkpoints and shards in tests/training and tests/dataset.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import value_or_line

_EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=3
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([10**30, 1e308, float("nan"), "", " ", "x", "\ud800", "0", "../x", "Ada"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "x", "text"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def folder_of(path: pathlib.Path) -> str:
    """What an error names where a folder is read."""
    return str(path.parent)


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
      name: of the file; sample: its content, or what writes it and what lies beside it.
      read: its path -> something that is not empty, or raises.
      json: whether it is JSON, or lines of it; names: what an error names, of the file's path.
      cost: divides the number of examples.
      makes_folder: `sample` makes the file's folder.
    """

    name: str
    sample: bytes | Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    json: bool = False
    names: Callable[[pathlib.Path], str] = lambda path: path.name
    cost: int = 1
    makes_folder: bool = False

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """The good file."""
        path = folder / self.name
        if not self.makes_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if callable(self.sample):
            self.sample(path)
        else:
            path.write_bytes(self.sample)
        return path


class ReaderChecks:
    """The tests of every reader in `readers`."""

    readers: ClassVar[dict[str, Reader]]

    def pytest_generate_tests(self, metafunc):
        of_json = "any_value" in metafunc.function.__name__
        names = [name for name, reader in sorted(self.readers.items()) if reader.json or not of_json]
        metafunc.parametrize("opened", names, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, request, tmp_path_factory):
        """(reader, its file, the file's good content)."""
        reader = cls.readers[request.param]
        path = reader.write(tmp_path_factory.mktemp("reader"))
        return reader, path, path.read_bytes()

    def test_the_good_file_is_read(self, opened):
        reader, path, data = opened
        path.write_bytes(data)
        found, line = value_or_line(reader.read, path)
        assert found, line

    def test_any_bytes_are_read_or_one_clear_line(self, opened):
        _explore(opened, 40, st.binary(max_size=60))

    def test_a_damaged_file_is_read_or_one_clear_line(self, opened):
        def damaged(edits):
            data = bytearray(opened[2])
            for place, cut, put in edits:
                place %= len(data) + 1
                data[place : place + cut] = put
            return bytes(data)

        _explore(opened, 60, _EDITS.map(damaged))

    def test_any_value_in_any_place_is_read_or_one_clear_line(self, opened):
        _, path, good = opened
        parts = [json.loads(part) for part in (good.splitlines() if path.suffix == ".jsonl" else [good])]

        @st.composite
        def changed(draw):
            value = copy.deepcopy(parts)
            *into, last = draw(st.sampled_from(_places(parts)[1:]))
            inner = functools.reduce(lambda node, key: node[key], into, value)
            if isinstance(inner, dict) and draw(st.booleans()):
                del inner[last]
            else:
                inner[last] = draw(_VALUES)
            return lines(*value)

        _explore(opened, 150, changed())


def _explore(
    opened: tuple[Reader, pathlib.Path, bytes], examples: int, data: st.SearchStrategy[bytes]
) -> None:
    reader, path, _ = opened

    @settings(max_examples=examples // reader.cost, deadline=None)
    @given(data)
    def look(data):
        path.write_bytes(data)
        found, line = value_or_line(reader.read, path)
        if line:
            assert reader.names(path) in line or path.name in line, line
        else:
            assert found, found

    look()


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in _places(one, (*at, key)))]
