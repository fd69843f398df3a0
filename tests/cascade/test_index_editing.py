"""Editing a dense index under its readers' eyes, and editors that die."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cascade_fakes import answers_meanwhile
from index_small import FACTS, SPAN

from lacy_jax.cascade import IndexPartner, index_writer
from lacy_jax.cascade.dense_index import DATABASE, DenseIndex
from lacy_jax.cascade.entries import Entry
from lacy_jax.errors import DataError

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")


def test_a_reader_follows_edits(index_folder, encoder):
    index = DenseIndex(index_folder, encoder)

    def best(query):
        return index.search([query], 1)[0][0].entry.value

    assert best("Ada Bell, birth place") == "Oslo"
    counts = index_writer.edit(
        index_folder,
        encoder,
        add=[Entry("Dee Eck", "birth_place", value="Bergen"), FACTS[1]],
        change=[Entry("Ada Bell", "birth_place", value="Rome")],
        delete=[("Bea Crane", "birth_place", "")],
    )
    assert counts == {"added": 1, "changed": 1, "deleted": 1}
    assert best("Ada Bell, birth place") == "Rome"
    assert best("Dee Eck, birth place") == "Bergen"
    for by in ("dense", "words"):
        [found] = index.search(["Bea Crane, birth place"], 6, by)
        assert FACTS[3] not in [one.entry for one in found]
    before = [index.search([e.key()], 4) for e in FACTS]
    assert index_writer.compact(index_folder) == 6
    assert [p.name for p in sorted(index_folder.glob("*.usearch"))] == ["vectors-1.usearch"]
    for old, entry in zip(before, FACTS, strict=True):
        [new] = index.search([entry.key()], 4)
        assert {one.entry for one in new} == {one.entry for one in old[0]}
    index.close()


def test_a_graph_that_nothing_was_deleted_from_grows(tmp_path, encoder):
    entries = [Entry(f"Person {at % 40}", f"attribute {at}", value=str(at)) for at in range(1200)]
    index_writer.build(tmp_path / "index", entries[:800], encoder)
    index = DenseIndex(tmp_path / "index", encoder)
    for first in (800, 1000):
        index_writer.edit(tmp_path / "index", encoder, add=entries[first : first + 200])
        assert index_writer.compact(tmp_path / "index") == first + 200
    assert [path.name for path in (tmp_path / "index").glob("*.usearch")] == ["vectors-2.usearch"]
    keys = encoder.encode([entry.key() for entry in entries])
    for query in keys[::60]:
        best = set(np.argsort(-(keys @ query), kind="stable")[:10].tolist())
        assert len(best & {at - 1 for at in index.nearest(query, 10)}) >= 9
    [found] = index.search([entries[-1].key()], 1)
    assert found[0].entry == entries[-1]
    index.close()


def test_a_deleted_fact_leaves_no_trace_once_compacted(index_folder, encoder):
    index_writer.edit(index_folder, encoder, add=[Entry("Zzyzx Quux", "birth_place", value="Wherever")])
    index_writer.edit(
        index_folder, encoder, delete=[("Zzyzx Quux", "", ""), ("Ada Bell", "birth_place", "Oslo")]
    )
    assert b"Wherever" not in (index_folder / DATABASE).read_bytes()
    index_writer.compact(index_folder)
    everything = b"".join(path.read_bytes() for path in index_folder.iterdir()).lower()
    assert b"zzyzx" not in everything
    assert b"oslo" not in everything
    assert b"polar prize" in everything
    gone = encoder.encode([FACTS[0].key()])[0].astype(np.float16)
    assert gone.tobytes() not in everything


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"delete": [("Nobody", "", "")]}, "nothing to delete: Nobody; nothing was changed"),
        ({"change": [Entry("Ada Bell", "height", value="2 m")]}, "nothing to change: Ada Bell, height"),
        ({"delete": [(e.title, "", "") for e in (FACTS[0], FACTS[3], SPAN)]}, "no entry would be left"),
    ],
)
def test_an_edit_that_cannot_be_made_changes_nothing(index_folder, encoder, changes, says):
    with pytest.raises(DataError, match=says):
        index_writer.edit(index_folder, encoder, **changes)
    index = DenseIndex(index_folder, encoder)
    assert len(index) == 6
    index.close()


def test_readers_and_editors_at_once(index_folder, encoder):
    """Each answer is of before or after an edit, while another thread edits and compacts."""

    def edits():
        for at in range(30):
            index_writer.edit(
                index_folder, encoder, change=[Entry("Ada Bell", "birth_place", value=f"City {at}")]
            )
            if at % 10 == 9:
                index_writer.compact(index_folder)

    index = DenseIndex(index_folder, encoder)
    seen = []
    for [found] in answers_meanwhile(edits, lambda: index.search(["Ada Bell, birth place"], 2, "dense")):
        seen += [
            one.entry.value
            for one in found
            if one.entry == found[0].entry or one.entry.attribute == "birth_place"
        ][:1]
    assert index.search(["Ada Bell, birth place"], 1)[0][0].entry.value == "City 29"
    order = [
        -1 if value == "Oslo" else int(value.removeprefix("City "))
        for value in seen
        if value != "New York City"
    ]
    assert order == sorted(order)
    index.close()


def test_additions_and_deletions_under_a_partner_that_is_asked(index_folder, encoder):
    """A fact comes and goes, again and again: each answer is the whole value or none, and the others stay."""
    fact = Entry("Dee Eck", "birth_place", value="Bergen")

    def edits():
        for _ in range(20):
            index_writer.edit(index_folder, encoder, add=[fact])
            index_writer.edit(index_folder, encoder, delete=[("DEE ECK", "birth_place", "")])

    partner = IndexPartner(DenseIndex(index_folder, encoder))
    texts = ["Dee Eck, birth place", "Ada Bell, birth place"]
    said = answers_meanwhile(edits, lambda: partner.complete(texts))
    assert {new for new, _ in said} <= {"", " Bergen"}
    assert {kept for _, kept in said} == {" Oslo"}
    assert partner.complete(texts) == ["", " Oslo"]
    index_writer.edit(index_folder, encoder, add=[fact])
    assert partner.complete(texts) == [" Bergen", " Oslo"]
    partner.close()


def test_an_editor_that_dies_leaves_the_index_as_it_was(index_folder, encoder):
    code = (
        "import os, sys; from lacy_jax.cascade import index_writer\n"
        "from lacy_jax.cascade.entries import Entry; from word_encoder import WordEncoder\n"
        "def dying():\n"
        "    for at in range(2000): yield Entry(f'Person {at}', 'a', value='b' * 500)\n"
        "    os.kill(os.getpid(), 9)\n"
        f"index_writer.edit({str(index_folder)!r}, WordEncoder(), add=dying())"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], check=False
    )
    assert done.returncode == -9
    index_writer.edit(index_folder, encoder, add=[Entry("New", "a", value="b")])
    index = DenseIndex(index_folder, encoder)
    assert len(index) == 7
    index.close()


def test_a_change_that_was_cut_off_while_it_was_written_is_undone(index_folder, encoder):
    """As a killed process or a power cut leaves it: pages written, the transaction not ended."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "for at in range(500): db.execute('INSERT INTO entries (title, attribute, context, value) VALUES (?, ?, ?, ?)', (f'P{at}', 'a', 'c' * 900, 'v'))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(index_folder / DATABASE)], check=False)
    assert (index_folder / f"{DATABASE}-journal").exists()
    index = DenseIndex(index_folder, encoder)
    assert len(index) == 6
    assert index.search(["Ada Bell, birth place"], 1)[0][0].entry == FACTS[0]
    index.close()
