"""The compact annotator: learns from annotated text, agrees with held-out annotations, and judges."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError
from lacy_jax.labels import Labels, annotator, get_labeller
from lacy_jax.labels.annotator import Annotator, agreement, held_out

CITIES = "Oslo Bergen Paris London Rome Vienna Berlin Madrid Warsaw Prague".split()
TEXT = "{name} was born in {city} in {year}. She liked tea and walked every day. She left {city} for {other}."


def annotated(number: int) -> dict[str, str]:
    """A text in which the first city, but not its year and not the second city, is looked up."""
    city, other = CITIES[number % 10], CITIES[(number + 3) % 10]
    text = TEXT.format(name=f"Ada Bell{number}", city=city, other=other, year=1900 + number)
    call = f"[dblookup('Ada', 'Birth Place') -> {city}] {city}"
    return {"text": text, "annotated_text": text.replace(city, call, 1), "original_dataset_ids": str(number)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotator")
    source = folder / "annotated.json"
    source.write_text(json.dumps({"examples": [annotated(number) for number in range(300)]}))
    return source, folder / "one.npz"


def test_it_learns_what_is_looked_up(made, capsys):
    source, out = made
    arguments = [str(source), f"--out={out}", "--epochs=10", "--batch=256"]
    assert annotator.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["training_documents"] + result["held_out_documents"] == 300
    assert result["held_out_documents"] == sum(held_out(Document(str(number), "x")) for number in range(300))
    assert result["annotator"]["f1"] > 0.9
    assert result["annotator"]["f1"] > result["bundled"]["f1"]
    assert result["annotator"]["annotated"] == result["bundled"]["annotated"]
    assert result["rules"]["GPE"]["recall"] > 0.9
    made_by_it = Annotator(out)
    text = TEXT.format(name="Ada Bell301", city="Oslo", other="Paris", year=1999)
    labels = made_by_it.label(Document("1", text))
    assert [text[start:end] for start, end in labels.factual] == ["Oslo"]
    assert labels.reasons == ("looked up",)
    assert pickle.loads(pickle.dumps(made_by_it)).label(Document("1", text)) == labels
    config = get_default_config().unlock()
    config.labels.labeller = f"annotator:{out}"
    assert get_labeller(config, "jsonl").version == made_by_it.version


def test_training_is_deterministic(tmp_path):
    documents = [annotated(number) for number in range(40)]
    (tmp_path / "annotated.json").write_text(json.dumps({"examples": documents}))
    for name in ("one", "two"):
        arguments = [
            str(tmp_path / "annotated.json"),
            f"--out={tmp_path / name}",
            "--epochs=2",
            "--batch=256",
        ]
        assert annotator.main(arguments) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_agreement_is_counted_by_hand():
    class Labeller:
        name, version = "own", "1"

        def label(self, document):
            return Labels(((0, 3), (4, 7)), reasons=("a", "b"))

    figures, rules = agreement(Labeller(), [Document("1", "Ada Bob Cyd Dee", judge=((0, 3), (8, 11)))])
    assert figures == {
        "precision": 0.5, "recall": 0.5, "f1": 0.5, "kappa": 0.0, "flagged": 0.5, "annotated": 0.5, "tokens": 4,
    }  # fmt: skip
    assert rules == {
        "a": {"tokens": 1, "annotated": 1.0, "recall": 0.5}, "b": {"tokens": 1, "annotated": 0.0, "recall": 0.0},
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, b"", b"text", "arrays"])
def test_what_is_no_annotator_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "arrays":
        np.savez(path, table=np.zeros((2, 2)))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="labeller annotator: no annotator in") as error:
        Annotator(path)
    assert "\n" not in str(error.value)


def test_one_that_reads_another_tagger_is_refused(tmp_path):
    """It has learnt what that tagger says of words, and may have another size."""
    part = {"W": np.zeros((2, 2), np.float32)}
    weights = {"table": np.zeros((2, 2), np.float32), "embed": part, "layers": [part], "out": part}
    (tmp_path / "a.npz").write_bytes(annotator._packed(weights, "5+2.0.0+967e5126"))
    with pytest.raises(DataError, match=r"a\.npz reads what the bundled tagger 5\+2.0.0\+967e5126 says"):
        Annotator(tmp_path / "a.npz")


def test_text_without_annotations_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([{"annotated_text": "Nothing is looked up here."}]))
    assert annotator.main([str(tmp_path / "a.json"), f"--out={tmp_path / 'a.npz'}"]) == 2
    assert "no annotated text to train on" in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()
