"""Every reader of files from outside: whatever stands in one, its content or one clear line that names it.

Each entry of `READERS` writes a small good file and reads it. Then any bytes stand there, the file with bytes that were
changed, cut out or put in, and, where it is JSON, the file with any value in any place. Readers with tests of their own kind
lie elsewhere: dumps (`test_dumps`), arrays (`test_damaged_arrays`), lines (`test_json_lines`), answers of servers
(`test_servers`), tokenizer.json (`test_strange_tokenizers`), GGUF (tests/export), checkpoints and shards (tests/training,
tests/dataset).
"""

from __future__ import annotations

import bz2
import copy
import dataclasses
import functools
import gzip
import io
import json
import lzma
import pathlib
import tarfile
from collections.abc import Callable
from typing import Any

import dataset_fakes
import export_small
import pytest
import safetensors.numpy
import strange_models
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import value_or_line
from word_encoder import WordEncoder

from lacy_jax import config as run_config
from lacy_jax.cascade import index_writer
from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.fact_database import FactDatabase, read_rows
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.cascade.texts import Generation, read_generations, read_prompts, write_generations
from lacy_jax.clients import NoAnswer
from lacy_jax.clients.chat import ChatClient, Question
from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus
from lacy_jax.dataset.metadata import SplitCounts, read_metadata
from lacy_jax.dataset.shard import read_result
from lacy_jax.evaluation.factscore import formats
from lacy_jax.evaluation.factscore.knowledge import KnowledgeSource
from lacy_jax.evaluation.harness_tasks import write_tasks
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.leakage_questions import read_popqa, read_trex
from lacy_jax.export import provenance
from lacy_jax.export.hub_folder import HubFolder
from lacy_jax.export.import_hf import open_folder
from lacy_jax.labels import label_parse
from lacy_jax.labels.judge import read_numbers
from lacy_jax.labels.tagger.train import _reader as read_parses
from lacy_jax.report.fact_marks import read_verdicts
from lacy_jax.report.run_record import read_run
from lacy_jax.run_files import CONFIG_FILE, ENVIRONMENT_FILE, METADATA_FILE, METRICS_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training.metrics_files import read_metrics
from lacy_jax.training.reference import _read as read_note

GENERATION = Generation("1", "Ada was", " born.", [1], ["a"], ["model"], [None], [(0, 1, "model")], 0, 0.0, 0.0, "g", True, "", 0, "eos")  # fmt: skip
DOCUMENTS = [{"id": "1", "title": "Ada", "text": "Ada was a poet."}, {"text": "Bob was none."}]
ANNOTATED = {
    "examples": [
        {"id": "1", "annotated_text": "Ada was born in [dblookup('Ada', 'Birth Place') -> Oslo] Oslo."}
    ]
}
FACTSCORE = {
    "topic": "Ada", "output": "Ada was.", "annotations": [{"text": "Ada was.", "model-atomic-facts": [{"text": "Ada was."}],
    "human-atomic-facts": [{"text": "Ada was.", "label": "S"}]}],
}  # fmt: skip
POPQA = [{"id": 1, "subj": "Ada", "prop": "occupation", "question": "What?", "possible_answers": '["poet"]'}]
PARSE = {
    "title": "Ada",
    "text": "Ada was born.",
    "tok": [[0, 3, "NNP"], [4, 3, "VBD"], [8, 4, "VBN"]],
    "ents": [[0, 3, "PERSON"]],
    "chunks": [[0, 3]],
}
INSTRUCTION = {
    "instruction": "Choose: What is it?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1",
    "answer": "answer2",
}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def corpus(kind: str, path: pathlib.Path) -> list[Document]:
    config = get_default_config().corpus
    config.kind, config.path = kind, str(path)
    return list(open_corpus(config))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow

    stream, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _saved(path: pathlib.Path) -> None:
    """As `save_to_disk` of `datasets` leaves a folder."""
    (path.parent / "data-00000-of-00001.arrow").write_bytes(arrow(DOCUMENTS))
    (path.parent / "dataset_info.json").write_text("{}")
    path.write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})
    )


def tar(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _database(path: pathlib.Path) -> None:
    FactDatabase.build(path, [("Ada", "birth_place", "Oslo"), ("Bob", "birth_place", "Rome")]).close()


def _ask_database(path: pathlib.Path) -> Any:
    database = FactDatabase(path)
    try:
        return (
            database.entity("Ada") and database.values("Ada"),
            database.cue(["birth", "place"]),
            database.sample_values(),
        )
    finally:
        database.close()


def _knowledge(path: pathlib.Path) -> None:
    KnowledgeSource.build(path, [Document("1", "Ada was a poet. She died.", "Ada")]).close()


def _ask_knowledge(path: pathlib.Path) -> Any:
    source = KnowledgeSource(path)
    try:
        return source.retrieve("Ada", "Ada was a poet.", 2) or "no article"
    finally:
        source.close()


def _index(path: pathlib.Path) -> None:
    folder = path.parent.parent if path.parent.name == "bm25" else path.parent
    PassageIndex.build([Document("1", "Ada was a poet.", "Ada"), Document("2", "Bob was none.", "Bob")]).save(
        folder
    )


def _ask_index(path: pathlib.Path) -> Any:
    index = PassageIndex.load(path.parent.parent if path.parent.name == "bm25" else path.parent)
    return [index.search(query, 2) for query in ("Ada poet", "Bob none was")]


def _dense(path: pathlib.Path) -> None:
    path.parent.rmdir()
    entries = [Entry("Ada", "birth_place", value="Oslo"), Entry("Bob", context="Bob was none.")]
    index_writer.build(path.parent, entries, WordEncoder(16))
    index_writer.edit(
        path.parent, WordEncoder(16), add=[Entry("Cy", "award", value="Medal")], delete=[("Bob", "", "")]
    )


def _ask_dense(path: pathlib.Path) -> Any:
    index = DenseIndex(path.parent, WordEncoder(16))
    try:
        return index.search(["Ada, birth place", "Cy", "Bob was"], 3), index.sample_values()
    finally:
        index.close()


def _hub(path: pathlib.Path) -> None:
    strange_models.make(path.parent)
    (path.parent / "tokenizer_config.json").write_text(
        '{"eos_token": "<|endoftext|>", "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}}}'
    )
    if path.name.endswith("index.json"):
        tensors = path.parent / "model.safetensors"
        names = list(safetensors.numpy.load_file(tensors))
        tensors.rename(path.parent / "model-00001-of-00001.safetensors")
        path.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))


def _open_hub(path: pathlib.Path) -> Any:
    """All of it where tensors are read; else what is read before them."""
    if path.name in ("generation_config.json", "tokenizer_config.json"):
        return HubFolder(path.parent, "a test").tokenizer
    return open_folder(path.parent)


def _dataset(path: pathlib.Path) -> None:
    records = dataset_fakes.make_records(4)
    dataset_fakes.write_dataset(path.parent, {"train": records, "valid": records[:1]})


def _built(path: pathlib.Path) -> None:
    counts = dataclasses.asdict(SplitCounts(1, 2, 1, 0, (1,), (10,)))
    path.write_text(json.dumps({"splits": {"train": counts}, "skipped": 0, "dropped": {}, "judged": False}))


def _run(path: pathlib.Path) -> None:
    (path.parent / "samples").mkdir(parents=True)
    (path.parent / CONFIG_FILE).write_text(run_config.to_json(get_default_config()))
    (path.parent / METRICS_FILE).write_bytes(lines({"step": 1, "split": "train", "loss": 1.0}))
    (path.parent / ENVIRONMENT_FILE).write_text('[{"git": null, "lacy_jax": "1", "devices": "cpu"}]')


def _scores(path: pathlib.Path) -> None:
    texts = path.parent / "texts.jsonl"
    texts.write_bytes(lines(FACTSCORE))
    assert formats.output_path(texts) == path
    path.write_text(json.dumps({"decisions": [[{"atom": "Ada was.", "is_supported": True}]], "judge": "j"}))


def _export(path: pathlib.Path) -> None:
    path.parent.mkdir(exist_ok=True)
    (path.parent / "x.bin").write_bytes(b"x")
    record = {"dataset": None, "trained_at": None, "steps": [1], "form": "hf", "dtype": "float32", "parameters": 5, "lacy_jax": "1",
              "exported": "today", "config": {"objective": {"policy": "lacy", "call_rate": 0.1}}, "call": None, "checks": {}, "format": provenance.FORMAT}  # fmt: skip
    provenance.write(path.parent, record)


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


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
      name: of the file; sample: its content, or what writes it and what lies beside it.
      read: its path -> something that is not empty, or raises.
      json: whether it is JSON, or lines of it; names: what an error names, of the file's path.
      cost: divides the number of examples.
    """

    name: str
    sample: bytes | Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    json: bool = False
    names: Callable[[pathlib.Path], str] = lambda path: path.name
    cost: int = 1


_folder = lambda path: str(path.parent)  # noqa: E731
_index_files = (
    "passages.jsonl",
    *(
        f"bm25/{name}"
        for name in (
            "params.index.json",
            "vocab.index.json",
            "data.csc.index.npy",
            "indices.csc.index.npy",
            "indptr.csc.index.npy",
        )
    ),
)
_hub_files = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
READERS = {
    "corpus jsonl": Reader("c.jsonl", lines(*DOCUMENTS), functools.partial(corpus, "jsonl"), json=True),
    "corpus jsonl.gz": Reader(
        "c.jsonl.gz", gzip.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
    ),
    "corpus jsonl.bz2": Reader(
        "c.jsonl.bz2", bz2.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
    ),
    "corpus jsonl.xz": Reader(
        "c.jsonl.xz", lzma.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
    ),
    "corpus jsonl.zst": Reader(
        "c.jsonl.zst", zstandard.compress(lines(*DOCUMENTS)), functools.partial(corpus, "jsonl")
    ),
    "corpus text": Reader("c.txt", b"Ada was.\n<|endoftext|>\nBob was.\n", functools.partial(corpus, "text")),
    "corpus parquet": Reader("c.parquet", parquet(DOCUMENTS), functools.partial(corpus, "parquet")),
    "corpus arrow": Reader("c.arrow", arrow(DOCUMENTS), functools.partial(corpus, "parquet")),
    "corpus hf, state": Reader(
        "hf/state.json", _saved, lambda path: corpus("hf", path.parent), json=True, names=_folder
    ),
    "corpus lmlm": Reader(
        "c.json", json.dumps(ANNOTATED).encode(), functools.partial(corpus, "lmlm"), json=True
    ),
    "corpus lmlm lines": Reader(
        "c.jsonl", lines(*ANNOTATED["examples"]), functools.partial(corpus, "lmlm"), json=True
    ),
    "facts": Reader(
        "f.jsonl",
        lines({"entity": "Ada", "attribute": "b", "value": "Oslo"}),
        lambda path: list(read_rows(str(path))),
        json=True,
    ),
    "facts of LMLM": Reader(
        "f.json",
        json.dumps({"triplets": [["Ada", "Birth Place", "Oslo"]]}).encode(),
        lambda path: list(read_rows(str(path))),
        json=True,
    ),
    "fact database": Reader("facts.sqlite", _database, _ask_database),
    "knowledge": Reader("knowledge.db", _knowledge, _ask_knowledge),
    **{
        f"index, {name}": Reader(
            f"index/{name}", _index, _ask_index, json=".json" in name, names=lambda path: "index", cost=2
        )
        for name in _index_files
    },
    **{
        f"dense index, {name}": Reader(f"dense/{name}", _dense, _ask_dense, names=lambda path: "dense")
        for name in ("entries.sqlite", "vectors-0.usearch")
    },
    **{
        f"model, {name}": Reader(
            f"hf/{name}",
            _hub,
            _open_hub,
            json=name.endswith(".json"),
            names=_folder,
            cost=1 if name[0] in "gt" else 5,
        )
        for name in _hub_files
    },
    "prompts": Reader("p.jsonl", lines({"prompt": "Ada was", "id": "1"}), read_prompts, json=True),
    "generations": Reader(
        "g.jsonl", lambda path: write_generations(path, [GENERATION]), read_generations, json=True
    ),
    "texts to judge": Reader("t.jsonl", lines(FACTSCORE), formats.read_entries, json=True),
    "entities": Reader("e.txt", b'Ada\n{"topic": "Bob"}\n', formats.read_entities),
    "demonstrations": Reader("d.json", b'{"Ada was.": ["Ada was."]}', formats.read_demonstrations, json=True),
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
    "dataset metadata": Reader(
        f"d/{METADATA_FILE}",
        _dataset,
        lambda path: (read_metadata(path.parent).summary(), read_metadata(path.parent).fingerprint),
        json=True,
        names=_folder,
    ),
    "run config": Reader(
        f"r/{CONFIG_FILE}",
        _run,
        lambda path: run_config.validate(run_config.read_run_config(path.parent)) or "good",
        json=True,
        names=lambda path: "config",
    ),
    "run config in a report": Reader(f"r/{CONFIG_FILE}", _run, lambda path: read_run(path.parent), json=True),
    "metrics": Reader(f"r/{METRICS_FILE}", _run, lambda path: read_metrics(path.parent) or "none", json=True),
    "metrics in a report": Reader(f"r/{METRICS_FILE}", _run, lambda path: read_run(path.parent), json=True),
    "environment": Reader(f"r/{ENVIRONMENT_FILE}", _run, lambda path: read_run(path.parent), json=True),
    "build state": Reader(
        "d/.build/00000.json",
        _built,
        lambda path: read_result(path.parent.parent, 0),
        json=True,
        names=lambda path: ".build",
    ),
    "note on an extra": Reader("n.json", b'{"model": "x"}', lambda path: [read_note(path)], json=True),
    "tokenizer": Reader(
        "t.model",
        lambda path: path.write_bytes(export_small.tokenizer().model_bytes),
        lambda path: Tokenizer.load(path).encode("Ada").tolist(),
    ),
    "parses": Reader(
        "p.jsonl",
        lines(PARSE),
        lambda path: [label_parse(parse, title) for parse, title in read_parses("")(str(path))],
        json=True,
    ),
    "export record": Reader(
        f"x/{provenance.FILE}",
        _export,
        lambda path: provenance.summary(provenance.read(path.parent)),
        json=True,
        names=_folder,
    ),
}


def _good(reader: Reader, folder: pathlib.Path) -> pathlib.Path:
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True) if not reader.name.startswith("index") else None
    if callable(reader.sample):
        reader.sample(path)
    else:
        path.write_bytes(reader.sample)
    return path


@pytest.fixture(scope="module", params=sorted(READERS))
def opened(request, tmp_path_factory):
    """(reader, its file, the file's good content)."""
    reader = READERS[request.param]
    path = _good(reader, tmp_path_factory.mktemp("reader"))
    return reader, path, path.read_bytes()


def _look(reader: Reader, path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)
    found, line = value_or_line(reader.read, path)
    if line:
        assert reader.names(path) in line or path.name in line, line
    else:
        assert found, found


def test_the_good_file_is_read(opened):
    reader, path, data = opened
    path.write_bytes(data)
    found, line = value_or_line(reader.read, path)
    assert found, line


def _explore(opened, examples: int, data: st.SearchStrategy[bytes]) -> None:
    reader, path, _ = opened

    @settings(max_examples=examples // reader.cost, deadline=None)
    @given(data)
    def look(data):
        _look(reader, path, data)

    look()


def test_any_bytes_are_read_or_one_clear_line(opened):
    _explore(opened, 40, st.binary(max_size=60))


_EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=3
)


def test_a_damaged_file_is_read_or_one_clear_line(opened):
    def damaged(edits):
        data = bytearray(opened[2])
        for place, cut, put in edits:
            place %= len(data) + 1
            data[place : place + cut] = put
        return bytes(data)

    _explore(opened, 60, _EDITS.map(damaged))


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


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in _places(one, (*at, key)))]


@pytest.mark.parametrize(
    "opened", sorted(name for name, reader in READERS.items() if reader.json), indirect=True
)
def test_any_value_in_any_place_is_read_or_one_clear_line(opened):
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
