"""Arrays on disk with any bit flipped, cut or overwritten: the array, or one clear line; never numpy's own traceback."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax import files
from lacy_jax.errors import DataError

LENGTHS = np.arange(1, 40, dtype=np.uint32)


@pytest.mark.parametrize("mapped", [False, True])
def test_every_bit_of_a_header_may_flip(tmp_path, mapped):
    path = tmp_path / "lengths-train.npy"
    files.write_array(path, LENGTHS)
    whole = path.read_bytes()
    lines = 0
    for place in range(8 * (len(whole) - LENGTHS.nbytes)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        found, line = value_or_line(
            files.read_array,
            path,
            "dataset file",
            np.uint32,
            LENGTHS.shape,
            mapped=mapped,
            kinds=(DataError,),
        )
        lines += found is None
        if found is None:
            assert str(path) in line
        else:  # A flip in the padding, say.
            assert np.array_equal(found, LENGTHS)
    assert lines > 500


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.binary(max_size=80).map(lambda rest: b"\x93NUMPY\x01\x00" + rest))
def test_any_bytes_are_an_array_or_one_clear_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("array") / "x.npy"
    path.write_bytes(data)
    for mapped in (False, True):
        found, line = value_or_line(
            files.read_array, path, "file", np.uint32, mapped=mapped, kinds=(DataError,)
        )
        assert str(path) in line if found is None else found.dtype == np.uint32


@pytest.mark.parametrize(
    "array",
    [
        LENGTHS.astype(np.int32),
        LENGTHS.astype(">u4"),
        LENGTHS.astype(np.float32),
        LENGTHS[:-1],
        LENGTHS.reshape(3, 13),
        np.array("text"),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_another_array_is_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=r"x\.npy: .*expected uint32\[39\]"):
        files.read_array(tmp_path / "x.npy", "file", np.uint32, LENGTHS.shape)


def test_archives_and_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=LENGTHS)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("x.npz", "objects.npy"):
        with pytest.raises(DataError, match=name):
            files.read_array(tmp_path / name, "file", np.uint32)
    with pytest.raises(DataError, match="not found"):
        files.read_array(tmp_path / "none.npy", "file", np.uint32)
