"""Readers of what is judged: texts, questions, tasks, answers that were kept. See tests/support/reader_checks.py."""

from __future__ import annotations

import bz2
import functools
import io
import json
import lzma
import pathlib
import tarfile
from typing import Any, ClassVar

from reader_checks import Reader, ReaderChecks, lines

from lacy_jax.clients import NoAnswer
from lacy_jax.clients.chat import ChatClient, Question
from lacy_jax.evaluation.factscore import formats
from lacy_jax.evaluation.harness_tasks import write_tasks
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.leakage_questions import read_popqa, read_trex
from lacy_jax.labels.judge import read_numbers
from lacy_jax.report.fact_marks import read_verdicts

FACTSCORE = {
    "topic": "Ada", "output": "Ada was.", "annotations": [{"text": "Ada was.", "model-atomic-facts": [{"text": "Ada was."}],
    "human-atomic-facts": [{"text": "Ada was.", "label": "S"}]}],
}  # fmt: skip


POPQA = [{"id": 1, "subj": "Ada", "prop": "occupation", "question": "What?", "possible_answers": '["poet"]'}]


INSTRUCTION = {
    "instruction": "Choose: What is it?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1",
    "answer": "answer2",
}


def tar(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _scores(path: pathlib.Path) -> None:
    texts = path.parent / "texts.jsonl"
    texts.write_bytes(lines(FACTSCORE))
    assert formats.output_path(texts) == path
    path.write_text(json.dumps({"decisions": [[{"atom": "Ada was.", "is_supported": True}]], "judge": "j"}))


def _tasks(task: str, path: pathlib.Path) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        write_tasks(path.parent, out, (task,))
        return [file.read_text() for file in sorted(pathlib.Path(out).glob("*.jsonl"))]


def _kept(path: pathlib.Path) -> Any:
    return Kept(path.with_name(path.name.removesuffix(".partial.jsonl"))).get("a") or "nothing kept"


def _chat(cache: pathlib.Path) -> tuple[ChatClient, Question[list[int]]]:
    client = ChatClient("chat+http://localhost:9/v1#m", cache, key=None)
    return client, Question("Which?", lambda text: read_numbers(text, 5))


def _cached(path: pathlib.Path) -> None:
    client, question = _chat(path.parent)
    file = pathlib.Path(client._file(question.prompt))
    file.parent.mkdir()
    path.write_text(json.dumps({"model": "m", "answer": "[1, 2]", "finish_reason": "stop", "usage": {}}))
    file.symlink_to(path)


def _ask_cache(path: pathlib.Path) -> Any:
    client, question = _chat(path.parent)
    found = client._kept(question)  # None that is damaged is taken: it is asked again.
    assert isinstance(found, NoAnswer) or (found and all(1 <= number <= 5 for number in found)) or found == []
    return found or "an empty list"


class TestReaders(ReaderChecks):
    readers: ClassVar[dict[str, Reader]] = {
        "texts to judge": Reader("t.jsonl", lines(FACTSCORE), formats.read_entries, json=True),
        "entities": Reader("e.txt", b'Ada\n{"topic": "Bob"}\n', formats.read_entities),
        "demonstrations": Reader(
            "d.json", b'{"Ada was.": ["Ada was."]}', formats.read_demonstrations, json=True
        ),
        "verdicts": Reader(
            "texts" + formats.OUTPUT_SUFFIX,
            _scores,
            lambda path: read_verdicts(path.parent / "texts.jsonl") or "none",
            json=True,
        ),
        "popqa": Reader("p.json", json.dumps(POPQA).encode(), read_popqa, json=True),
        "trex": Reader(
            "t.tar.xz",
            tar(
                **{
                    "lama_trex/P19.jsonl": lines({"sub_label": "Ada", "obj_label": "Oslo", "uuid": "u"}),
                    "pararel_patterns/graphs_json_P19.jsonl": lines({"pattern": "[X] was born in [Y] ."}),
                }
            ),
            read_trex,
        ),
        "arc": Reader(
            "ARC-Easy_test.json",
            json.dumps([INSTRUCTION]).encode(),
            functools.partial(_tasks, "arc_easy"),
            json=True,
        ),
        "social iqa": Reader(
            "social_i_qa_test.json",
            json.dumps([INSTRUCTION]).encode(),
            functools.partial(_tasks, "social_iqa"),
            json=True,
        ),
        "lambada": Reader(
            "lambada_test.jsonl.xz",
            lzma.compress(lines({"text": "Ada was a poet"})),
            functools.partial(_tasks, "lambada"),
        ),
        "hellaswag": Reader(
            "hellaswag_val_full.txt.bz2",
            bz2.compress(b"Ada\n1\na\nb\nc\nd\n"),
            functools.partial(_tasks, "hellaswag"),
        ),
        "blimp": Reader(
            "blimp.tar.xz",
            tar(**{"b/one.jsonl": lines({"sentence_good": "a", "sentence_bad": "b"})}),
            functools.partial(_tasks, "blimp"),
        ),
        "cached answer": Reader("answer.json", _cached, _ask_cache, json=True),
        "kept results": Reader("k.partial.jsonl", lines({"key": "a", "score": 1}), _kept, json=True),
    }
