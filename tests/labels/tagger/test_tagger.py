"""The bundled labeller: its classes, its forward pass, its labels against the full rules, and making another one."""

from __future__ import annotations

import itertools
import json
import lzma
import pickle
import shutil

import numpy as np
import pytest
import spacy
from threadpoolctl import threadpool_info, threadpool_limits

from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError
from lacy_jax.labels import BundledLabeller, SpacyLabeller, align, label_parse
from lacy_jax.labels.parse import parse_of_record
from lacy_jax.labels.spacy_rules import load_pipeline, parse_text
from lacy_jax.labels.tagger import labeller as labeller_module
from lacy_jax.labels.tagger import network as network_module
from lacy_jax.labels.tagger import train
from lacy_jax.labels.tagger.classes import CLASSES, classes_of_parse, most_likely, parse_of_classes
from lacy_jax.labels.tagger.labeller import BUNDLED
from lacy_jax.tokenizer import Tokenizer

RECORD = {
    "title": "Marie Curie",
    "text": "Marie Curie was a Polish chemist. She left Warsaw for Paris at 23, and won the Nobel Prize in 1903.",
    "tok": [
        [0, 5, "NNP"], [6, 5, "NNP"], [12, 3, "VBD"], [16, 1, "DT"], [18, 6, "JJ"], [25, 7, "NN"], [32, 1, "."],
        [34, 3, "PRP"], [38, 4, "VBD"], [43, 6, "NNP"], [50, 3, "IN"], [54, 5, "NNP"], [60, 2, "IN"], [63, 2, "CD"],
        [65, 1, ","], [67, 3, "CC"], [71, 3, "VBD"], [75, 3, "DT"], [79, 5, "NNP"], [85, 5, "NNP"], [91, 2, "IN"],
        [94, 4, "CD"], [98, 1, "."],
    ],
    "ents": [[0, 11, "PERSON"], [18, 24, "NORP"], [43, 49, "GPE"], [54, 59, "GPE"], [75, 90, "WORK_OF_ART"], [94, 98, "DATE"]],
    "chunks": [[0, 11], [16, 32], [34, 37], [43, 49], [54, 59], [75, 90]],
}  # fmt: skip

TEXTS = (
    "Marie Curie was a Polish chemist. She left Warsaw for Paris in 1891, and Paris kept her.",
    "word " * 700 + "Oslo",  # longer than a block of the network
    'Ŝako 東京 😀 \n\n\t "Ünïcode" don\'t U.S. 3.5%',
    "x",
    "",
)


@pytest.fixture(scope="module")
def bundled() -> BundledLabeller:
    return BundledLabeller()


@pytest.fixture(scope="module")
def parsed(shared_data):
    with lzma.open(shared_data / "labels" / "parsed_valid.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, 150)]


def spans_of(record) -> list[tuple[int, int]]:
    return [(start, start + length) for start, length, *_ in record["tok"]]


def test_classes_say_what_the_rules_read():
    parse = parse_of_record(RECORD)
    classes = classes_of_parse(parse, spans_of(RECORD))
    named = [CLASSES[index] for index in classes]
    assert named[:7] == ["B-PERSON", "I-PERSON", "VB", "-", "B-NORP", "NN", "-"]
    assert named[13] == "CD"  # no entity
    assert named[17:20] == ["B-WORK_OF_ART", "I-WORK_OF_ART", "I-WORK_OF_ART"]  # with its article
    back = parse_of_classes(parse.text, spans_of(RECORD), classes)
    assert back.entities == parse.entities
    assert label_parse(back, "Marie Curie") == label_parse(parse, "Marie Curie")


def test_odd_sequences_of_classes():
    index = {name: i for i, name in enumerate(CLASSES)}
    spans = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    classes = [index[name] for name in ("I-GPE", "I-DATE", "B-GPE", "VB", "NN")]
    parse = parse_of_classes("a b c d e", spans, classes)
    assert [(e.start, e.end, e.label) for e in parse.entities] == [(0, 3, "GPE"), (4, 5, "GPE")]
    assert parse.chunks == ((0, 9),)
    assert parse_of_classes("", [], []).tokens == ()


def test_classes_lose_little(parsed):
    """With perfect classes the labels are almost those of the full parse, although spaCy 3 cuts words anew."""
    tokenizer = spacy.blank("en").tokenizer
    both = either = 0
    for record in parsed[:40]:
        parse = parse_of_record(record)
        spans = [(word.idx, word.idx + len(word)) for word in tokenizer(parse.text)]
        again = parse_of_classes(parse.text, spans, classes_of_parse(parse, spans))
        a, b = (set(label_parse(p, record["title"]).factual) for p in (parse, again))
        both, either = both + len(a & b), either + len(a | b)
    assert both / either > 0.98


def test_numpy_and_spacy_agree(bundled):
    nlp = spacy.load(BUNDLED)
    for text in TEXTS:
        doc = nlp(text)
        spans = [(word.idx, word.idx + len(word)) for word in doc]
        (scores,) = nlp.get_pipe("tagger").model.predict([doc])  # type: ignore[attr-defined]
        read = doc.to_array(list(network_module.FEATURES))
        ours = np.concatenate([scores[:0], *bundled._network.scores(read)])
        np.testing.assert_allclose(ours, scores, rtol=1e-3, atol=1e-3)
        assert bundled.parse(text) == parse_of_classes(text, spans, most_likely(scores))


@pytest.mark.parametrize(
    ("probabilities", "best"),
    [
        ({"-": 0.4, "B-ORG": 0.35, "B-PERSON": 0.25}, "B-ORG"),  # The best single class is none of a name.
        ({"-": 0.4, "NN": 0.2, "B-ORG": 0.3, "NNP": 0.1}, "-"),
        ({"-": 0.4, "NNP": 0.31, "B-ORG": 0.29}, "NNP"),
        ({"-": 0.1, "I-ORG": 0.35, "B-GPE": 0.3, "B-PERSON": 0.25}, "B-GPE"),
        ({"NN": 0.4, "-": 0.3, "B-GPE": 0.3}, "NN"),
    ],
)
def test_from_the_general_to_the_particular(probabilities, best):
    scores = np.log([probabilities.get(name, 1e-6) for name in CLASSES])
    assert [CLASSES[index] for index in most_likely(np.stack([scores, scores + 3.0]))] == [best, best]


def test_labels_depend_on_the_text_alone(bundled, monkeypatch):
    """Not on what came before, on what is remembered, or on the process."""
    documents = [Document(str(i), text) for i, text in enumerate(TEXTS)]
    expected = [bundled.label(document) for document in documents]
    assert expected[0].reasons == ("PERSON", "NORP", "occupation", "GPE", "GPE", "DATE")
    fresh = pickle.loads(pickle.dumps(bundled))
    assert (fresh.name, fresh.version) == (bundled.name, bundled.version)
    assert [fresh.label(document) for document in reversed(documents)] == expected[::-1]
    monkeypatch.setattr(network_module, "_CACHE", 0)
    monkeypatch.setattr(labeller_module, "_STRINGS", 0)
    assert [bundled.label(document) for document in documents] == expected
    assert len(bundled._network._known) <= len(TEXTS[2])  # forgotten before each text


def test_products_start_no_threads(bundled, monkeypatch):
    """One process per core labels; a product that started threads of its own would take the others' cores."""

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen = []
    maxout = network_module._maxout
    monkeypatch.setattr(network_module, "_maxout", lambda *given: (seen.append(threads()), maxout(*given))[1])
    if not threads():
        pytest.skip("threadpoolctl does not know the library of numpy's products here")
    with threadpool_limits(2, user_api="blas"):
        bundled.parse("Marie Curie was a Polish physicist who left Wroclawice.")
        assert threads() == {2}
    assert set.union(*seen) == {1}


def test_f1_against_the_full_rules(bundled, parsed, shared_data):
    """At least 0.93 per token on held-out text (measured: docs/labels.md)."""
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "sentencepiece_cc_all.32000.100extra.model")
    both = found = wanted = 0
    for record in parsed:
        text, title = record["text"], record["title"]
        _, starts, ends = tokenizer.encode_with_offsets(text)
        mine = align(bundled.label(Document("", text, title)).factual, starts, ends, text)
        full = align(label_parse(parse_of_record(record), title).factual, starts, ends, text)
        both, found, wanted = both + (mine & full).sum(), found + mine.sum(), wanted + full.sum()
    assert 2 * both / (found + wanted) >= 0.93


def test_f1_against_its_teacher_on_whole_articles(bundled, shared_data):
    """At least 0.95 per word on articles that it never saw (measured on all: 0.958, docs/labels.md)."""
    teacher = load_pipeline(str(shared_data / "labels" / "en_core_web_sm-3.8.0"))
    with lzma.open(shared_data / "wiki" / "general_valid.jsonl.xz", "rt") as file:
        articles = [json.loads(line) for line in itertools.islice(file, 60)]
    parses = ((parse_text(teacher, article["text"]), article["title"]) for article in articles)
    assert train.score(bundled, parses)["f1"] >= 0.95


def test_what_is_shipped(bundled):
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*")) < 8e6
    assert bundled.name == "bundled"
    assert bundled.version.split("+")[1:] == list(spacy.load(BUNDLED).meta["version"].split("+"))


# -- making one ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[dict, str]:
    """A tagger that has learnt one text by heart."""
    folder = tmp_path_factory.mktemp("trained")
    return _made(folder, folder / "one", epochs=25), str(folder / "one")


def _made(folder, out, epochs: int, *more: str) -> dict:
    (folder / "parsed.jsonl").write_text((json.dumps(RECORD) + "\n") * 60)
    arguments = [f"--out={out}", f"--epochs={epochs}", "--batch=256", "--version=7.1", *more]
    source = str(folder / "parsed.jsonl")
    return train.train(train._options([source, f"--valid={source}", *arguments]))


def test_training_is_deterministic(tmp_path):
    one, two = (_made(tmp_path, tmp_path / name, epochs=2)["version"] for name in ("one", "two"))
    assert one == two


def test_another_size(tmp_path, capsys):
    _made(tmp_path, tmp_path / "out", 1, "--width=32", "--depth=2")
    _, shape = BundledLabeller(tmp_path / "out").weights
    assert (shape.width, shape.depth) == (32, 2)
    with pytest.raises(SystemExit):
        _made(tmp_path, tmp_path / "none", 1, "--depth=0")
    assert "--width and --depth are at least 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_one_of_ones_own(trained):
    result, folder = trained
    assert result["f1"] > 0.9
    own = BundledLabeller(folder)
    assert own.name == "bundled:en_factual"
    assert f"+{result['version']}+" in own.version
    assert own.version.startswith(BundledLabeller().version.split("+")[0])
    text = RECORD["text"]
    assert ("Warsaw", "GPE") in [
        (text[start:end], reason)
        for (start, end), reason in zip(*(getattr(own.label(Document("", text)), f) for f in ("factual", "reasons")))
    ]  # fmt: skip


def test_a_teacher_parses_plain_text(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "GPE", "pattern": "Oslo"}])  # type: ignore[attr-defined]
    nlp.to_disk(tmp_path / "teacher")
    (tmp_path / "plain.jsonl").write_text('{"text": "She left Oslo."}\n')
    ((parse, title),) = train._reader(str(tmp_path / "teacher"))(str(tmp_path / "plain.jsonl"))
    assert ([entity.label for entity in parse.entities], title) == (["GPE"], "")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"text": "Plain."}\n', "bad.jsonl:1: not a parsed text.*--teacher=PIPELINE"),
        ("no json\n", "bad.jsonl:1: not JSON"),
        ("", "no texts in it"),
    ],
)
def test_bad_training_text(tmp_path, capsys, lines, says):
    (tmp_path / "bad.jsonl").write_text(lines)
    assert train.main([str(tmp_path / "bad.jsonl"), f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    with pytest.raises(DataError, match=says):
        raise DataError(error)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tagger_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no spaCy .* pipeline in .*missing.*labeller=rules"):
        BundledLabeller(tmp_path / "missing")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(DataError, match=r"no tagger of ours.*tagger\.train"):
        BundledLabeller(tmp_path / "blank")


def test_gradients_reach_every_weight():
    """One step moves all weights: the forward pass of `fit` uses them."""
    from lacy_jax.labels.tagger.fit import Options, fit, initial
    from lacy_jax.labels.tagger.network import Shape

    shape = Shape(len(CLASSES), rows=(40, 20, 20, 20), width=8, depth=1)
    words = train.words_of(iter([parse_of_record(RECORD)]), shape)
    options = Options(epochs=1, batch=64, warmup=1, seed=3)
    steps: list[int] = []
    after = fit(
        words, shape, Options(epochs=12, batch=64, warmup=1, seed=3), lambda step, *_: steps.append(step)
    )
    before = initial(shape, options.seed)
    assert steps == sorted(steps)
    for name in ("W", "b"):
        assert not np.array_equal(after["out"][name], before["out"][name])
        assert not np.array_equal(after["embed"][name], before["embed"][name])
        assert not np.array_equal(after["layers"][0][name], before["layers"][0][name])
    assert not np.array_equal(after["table"], before["table"])


@pytest.mark.parametrize(
    ("file", "content"), [("vocab/vectors", b""), ("vocab/key2row", b"\x01"), ("config.cfg", b"\x80")]
)
def test_a_damaged_folder_is_one_line(tmp_path, file, content):
    """Whatever spaCy raises of it: EOFError of the first, AttributeError of the second."""
    folder = shutil.copytree(BUNDLED, tmp_path / "mine")
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=r"labeller bundled: no spaCy .* pipeline in .*mine"):
        BundledLabeller(str(folder))
    with pytest.raises(DataError, match=r"labeller spacy: '.*mine' is not a pipeline"):
        SpacyLabeller(str(folder))
