"""gs:// paths against a real storage server: what our ways of reading and writing do there, and the server's faults."""

from __future__ import annotations

import pytest
from etils import epath

from lacy_jax import files


def test_files_are_written_read_listed_and_deleted(bucket, gcs):
    folder = epath.Path(bucket) / "a" / "b"
    files.write_text(folder / "one.txt", "größer\n")
    files.write_json(folder / "two.json", {"x": 1})
    assert (folder / "one.txt").read_text() == "größer\n"
    assert files.read_json(folder / "two.json", "record") == {"x": 1}
    assert sorted(p.name for p in folder.iterdir()) == ["one.txt", "two.json"]
    assert gcs.read(f"{bucket}/a/b/two.json") == b'{\n  "x": 1\n}\n'
    (folder / "one.txt").unlink()
    assert list(gcs.objects(bucket)) == ["a/b/two.json"]


def test_a_fault_meets_what_it_fits_and_heals(bucket, gcs):
    path = epath.Path(bucket) / "x.txt"
    fault = gcs.fail(403, frozenset(("POST", "PUT")))
    with pytest.raises(Exception, match=r"403|Forbidden|injected"):
        path.write_text("never")
    assert fault.hits
    gcs.heal()
    path.write_text("now")
    assert path.read_text() == "now"
    assert len(gcs.writes(r"x\.txt")) == 1


@pytest.mark.parametrize("kind", [503, 429, "reset"])
def test_what_passes_is_retried_by_the_client(bucket, gcs, kind):
    fault = gcs.fail(kind, frozenset(("POST", "PUT")), every=2)
    for i in range(3):
        (epath.Path(bucket) / f"{i}.txt").write_text(str(i))
    assert fault.hits >= 1
    assert len(gcs.objects(bucket)) == 3
