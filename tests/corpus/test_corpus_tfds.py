"""TFDS datasets as a corpus, read without TensorFlow."""

from __future__ import annotations

import functools
import sys

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus import open_corpus
from lacy_jax.errors import DataError

TEXTS = ["First text.", "Zweiter Text: Äpfel.", "第三"]


def _corpus(path, **fields):
    config = get_default_config().corpus
    config.kind, config.path = "tfds", str(path)
    for name, value in fields.items():
        config[name] = value
    return open_corpus(config)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a small prepared dataset in ArrayRecord."""
    import tensorflow_datasets as tfds

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"text": text, "title": text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for k, text in enumerate(TEXTS):
                yield k, {"text": text, "title": f"T{k}"}

    builder = TinyTexts(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_prepared_folder(prepared):
    corpus = _corpus(prepared)
    documents = list(corpus)
    assert sorted((d.title, d.text) for d in documents) == [(f"T{k}", text) for k, text in enumerate(TEXTS)]
    assert len({d.id for d in documents}) == 3
    assert corpus.name == "tfds:tiny_texts/1.0.0/train"
    assert dict(corpus.shard(1, 2)) == {1: documents[1]}
    assert "tensorflow" not in sys.modules


def test_dataset_by_name(prepared, monkeypatch):
    import tensorflow_datasets as tfds

    # The real call, with a data folder of the test in place of ~/tensorflow_datasets.
    here = functools.partial(tfds.data_source, data_dir=prepared.parent.parent)
    monkeypatch.setattr(tfds, "data_source", here)
    assert len(list(_corpus("tiny_texts:1.0.0"))) == 3


def test_unknown_name_split_and_field(prepared):
    with pytest.raises(DataError, match="no TFDS dataset named 'no_such_texts'"):
        _corpus("no_such_texts")
    with pytest.raises(DataError, match="split 'nope'"):
        _corpus(prepared, split="nope")
    with pytest.raises(DataError, match=r"no field 'body' \(it has text, title\)"):
        list(_corpus(prepared, text_field="body"))
    with pytest.raises(DataError, match=r"config\.corpus\.path is empty"):
        _corpus("")
