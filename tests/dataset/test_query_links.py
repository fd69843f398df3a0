"""The entries that a dataset's facts come from: what a batch gets of them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lacy_jax.dataset.query_links import QueryLinks, places_of, write_links
from lacy_jax.errors import DataError

VECTORS = np.eye(5, 4, dtype=np.float32) + np.eye(5, 4, -1, dtype=np.float32)
NEGATIVES = np.array([[2, 3], [1, 3], [2, 0], [5, 0], [4, 0]], np.int32)


@pytest.fixture
def links(tmp_path) -> QueryLinks:
    write_links(tmp_path, "word", VECTORS, NEGATIVES)
    return QueryLinks(tmp_path)


def test_a_row_has_its_entries_first_and_then_those_like_them(links):
    linked = np.zeros((3, 128), np.int32)
    linked[0, :3] = (4, 0, 1)
    linked[1, 5] = 3
    found = links.targets(linked)
    assert found.entries[:, :6].tolist() == [[1, 4, 2, 5, 3, 0], [3, 2, 0, 0, 0, 0], [0] * 6]
    assert found.entries.shape == (3, places_of(128)) == (3, 16)
    np.testing.assert_array_equal(found.vectors[0, :2], VECTORS[[0, 3]])
    assert not found.vectors[2].any()
    assert found.vectors.dtype == np.float32


def test_more_entries_than_places_leave_the_last_out(tmp_path):
    write_links(tmp_path, "word", np.ones((40, 4), np.float32), np.zeros((40, 1), np.int32))
    found = QueryLinks(tmp_path).targets(np.arange(1, 33, dtype=np.int32)[None])
    assert found.entries.tolist() == [[*range(1, 17)]]


def test_places_are_split_evenly_by_any_mesh():
    assert [places_of(n) for n in (8, 128, 129, 1024)] == [16, 16, 32, 128]


def test_what_is_damaged_is_one_line(links):
    with pytest.raises(
        DataError, match="numbers of entries that it does not have; write them with `lacy index"
    ):
        links.targets(np.full((1, 8), 6, np.int32))
    path = links.path
    with pytest.raises(DataError, match=r"none: its facts are not linked.*--link"):
        QueryLinks(path / "none")
    (path / "query-negatives.npy").write_bytes(b"half")
    with pytest.raises(DataError, match=r"query links unreadable: .*; write them"):
        QueryLinks(path)
    (path / "query.json").write_text(json.dumps({"encoder": "word"}))
    with pytest.raises(DataError, match=r"no dim; write them"):
        QueryLinks(path)
