"""JSON Lines as others write them: whatever may stand in a string does, and every reader of lines takes it."""

from __future__ import annotations

import io
import json
import lzma
import pathlib
import re
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import value_or_line

import lacy_jax
from lacy_jax import json_lines
from lacy_jax.cascade import Generation, PassageIndex, read_generations, read_prompts, write_generations
from lacy_jax.cascade.fact_database import read_rows
from lacy_jax.cascade.passages import read_documents
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError
from lacy_jax.evaluation.factscore import Entry, read_entities, read_entries, write_entries
from lacy_jax.evaluation.harness_tasks import write_tasks
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.leakage_questions import read_trex
from lacy_jax.report.run_record import read_run

BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Everything but line feed and carriage return at which `str.splitlines` breaks."""
STRANGE = f"Ada{BREAKS}Bell"
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inside: st.lists(inside, max_size=3),
    max_leaves=4,
)
_objects = st.dictionaries(
    st.text(alphabet=f"ab{BREAKS}\r\n"), _values | st.text(alphabet=f"x{BREAKS}"), max_size=3
)


def _lines(*rows) -> str:
    """As a writer that leaves Unicode as it is."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@given(
    rows=st.lists(_objects, max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    whole=st.booleans(),
)
def test_what_is_written_is_read(rows, end, bom, whole):
    text = ("\ufeff" if bom else "") + end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    data = (text + (end if whole else "")).encode("utf-8", "surrogatepass")
    assert [row for _, row in json_lines.objects(json_lines.split_lines(data), "f")] == rows


@given(data=st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ud8001e\n ', max_size=40).map(str.encode))
def test_anything_is_an_object_or_one_clear_line(data):
    rows, line = value_or_line(lambda: list(json_lines.objects(json_lines.split_lines(data), "f")))
    assert line.startswith("f:") if rows is None else all(isinstance(row, dict) for _, row in rows)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON we can read"),
        (rb'{"a": "\ud83d"}', "lone surrogate"),
        (b'"a"', "expected a JSON object, not a str"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line, says):
    with pytest.raises(DataError, match=f"^f:2: .*{says}"):
        list(json_lines.objects([b"", line], "f"))
    assert list(json_lines.objects([rb'{"a": "\ud83d\ude00"}'], "f")) == [("f:1", {"a": "\U0001f600"})]


def _tar(path, name, text):
    with tarfile.open(path, "w:xz") as archive:
        for member, content in zip(name, text, strict=True):
            info = tarfile.TarInfo(member)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


def test_every_reader_of_lines_takes_what_may_stand_in_a_string(tmp_path):
    text = Generation("1", STRANGE, STRANGE, [1], ["a"], ["model"], [None], [(0, 1, "model")], 0, 0.0, 0.0, "g", True, "", 0, "eos")  # fmt: skip
    write_generations(tmp_path / "g.jsonl", [text, text])
    assert read_generations(tmp_path / "g.jsonl") == [text, text]
    (tmp_path / "p.jsonl").write_text(_lines({"prompt": STRANGE}))
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.jsonl")] == [STRANGE]
    write_entries(tmp_path / "e.jsonl", [Entry(STRANGE, STRANGE)] * 2)
    assert [entry.output for entry in read_entries(tmp_path / "e.jsonl")] == [STRANGE] * 2
    (tmp_path / "names").write_text(f"{STRANGE}\n" + _lines({"topic": f"Émile{BREAKS}"}))
    assert read_entities(tmp_path / "names") == [STRANGE, f"Émile{BREAKS}"]
    (tmp_path / "rows.jsonl").write_text(_lines(dict.fromkeys(("entity", "attribute", "value"), STRANGE)))
    assert list(read_rows(str(tmp_path / "rows.jsonl"))) == [(STRANGE,) * 3]
    (tmp_path / "c.jsonl").write_text(_lines({"text": STRANGE, "title": STRANGE}))
    assert [document.text for document in read_documents(str(tmp_path / "c.jsonl"))] == [STRANGE]
    PassageIndex.build([Document("1", STRANGE, STRANGE)]).save(tmp_path / "index")
    assert PassageIndex.load(tmp_path / "index").passages[0].title == STRANGE


def test_kept_results_survive_strange_breaks_and_a_line_cut_inside_a_character(tmp_path):
    kept = Kept(tmp_path / "x")
    for key in ("a", "b"):
        kept.put(key, {"text": STRANGE})
    file = tmp_path / "x.partial.jsonl"
    file.write_bytes(file.read_bytes() + '\n{"key": "c", "text": "é'.encode()[:-1])
    again = Kept(tmp_path / "x")
    assert [again.get(key) for key in "abc"] == [{"text": STRANGE}] * 2 + [None]
    again.put("c", {"text": "whole"})
    assert Kept(tmp_path / "x").get("c") == {"text": "whole"}


def test_test_sets_and_run_directories_too(tmp_path):
    facts = _lines({"sub_label": STRANGE, "obj_label": "Oslo", "uuid": "u"})
    names = ("d/lama_trex/P19.jsonl", "d/pararel_patterns/graphs_json_P19.jsonl")
    _tar(tmp_path / "trex.tar.xz", names, (facts, _lines({"pattern": "[X] was born in [Y] ."})))
    assert read_trex(tmp_path / "trex.tar.xz")[0].subject == STRANGE
    pair = {"sentence_good": STRANGE, "sentence_bad": "b"}
    _tar(tmp_path / "blimp.tar.xz", ("blimp/one.jsonl",), (_lines(pair, pair),))
    (tmp_path / "lambada_test.jsonl.xz").write_bytes(lzma.compress(_lines({"text": STRANGE}).encode()))
    (tmp_path / "piqa_valid.jsonl").write_text(_lines({"goal": STRANGE, "sol1": "a", "sol2": "b"}))
    (tmp_path / "piqa_valid-labels.lst").write_text("0\n")
    write_tasks(tmp_path, tmp_path / "tasks", ("blimp", "lambada", "piqa"))
    for name, rows in (("blimp_one", 2), ("lambada", 1), ("piqa", 1)):
        read = list(json_lines.read_objects(tmp_path / "tasks" / f"{name}.jsonl", "task"))
        assert len(read) == rows
        assert "Ada" in json.dumps(read)
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "samples" / "s.jsonl").write_text(_lines({"prompt": STRANGE, "text": STRANGE}))
    record = read_run(run)
    assert [line["text"] for line in record.samples["s"].lines] == [STRANGE]
    assert record.notes == ()


def test_nobody_else_splits_lines_of_json():
    """Adding a reader: use `lacy_jax.json_lines`. `splitlines` is for messages of programs."""
    for path in pathlib.Path(lacy_jax.__file__).parent.rglob("*.py"):
        source = path.read_text()
        if "json_lines" in source or ("jsonl" in source and "loads(" in source):
            assert not re.search(r"\.splitlines\(", source), path
