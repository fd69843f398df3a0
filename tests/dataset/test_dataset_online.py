"""Labels made on reading are bit for bit those made on building."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus.world import World
from lacy_jax.dataset import build_dataset, make_input
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.labels import BundledLabeller
from lacy_jax.run_files import METADATA_FILE
from lacy_jax.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Text, two tokenizers (the second merges spaces), and datasets of the same text by two labellers."""
    folder = tmp_path_factory.mktemp("online")
    documents = [World(14).text(person, 0) for person in range(14)]
    lines = [{"id": d.id, "title": d.title, "text": f"  {d.text}\n\nCareer.\n{d.text}"} for d in documents]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = get_default_config()
    config.tokenizer.vocab_size = 360
    for name, rule in (("exact", "identity"), ("nfkc", "nfkc")):
        config.tokenizer.normalization = rule
        model = train_tokenizer((document.text for document in documents), config.tokenizer)
        (folder / f"{name}.model").write_bytes(model)
    for name, model, labeller in (
        ("rules", "exact", "rules"),
        ("bundled", "exact", "bundled"),
        ("nfkc", "nfkc", "rules"),
    ):
        build_dataset(config_for(folder, name, model, labeller), folder / name)
    return folder


def config_for(folder, dataset: str, model: str = "exact", labeller: str = "bundled", online: bool = False):
    config = get_default_config()
    config.corpus.kind, config.corpus.path = "jsonl", str(folder / "text.jsonl")
    config.tokenizer.path = str(folder / f"{model}.model")
    config.dataset.path, config.dataset.shards, config.dataset.valid_fraction = str(folder / dataset), 1, 0.1
    config.labels.labeller, config.labels.online = labeller, online
    config.input.seq_len, config.input.batch_size = 48, 4
    return config


def test_the_same_batches_as_precomputed(place):
    stored = make_input(config_for(place, "bundled"), epochs=2)
    online = make_input(config_for(place, "rules", online=True), epochs=2)
    other = make_input(config_for(place, "rules"), epochs=2)
    differ, factual = 0, 0
    for batch, live, before in zip(stored, online, other, strict=True):
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(live), strict=True):
            np.testing.assert_array_equal(a, b)
        differ += int((batch.labels["factual"] != before.labels["factual"]).sum())
        factual += int(batch.labels["factual"].sum())
    assert factual > 50
    assert differ > 0, "both labellers agree: the test shows nothing"


def test_the_state_knows_the_labeller(place):
    online = make_input(config_for(place, "rules", online=True))
    assert online.sources[0].metadata.labeller == "bundled"
    state = online.get_state()
    with pytest.raises(CheckpointError, match="another data order"):
        make_input(config_for(place, "rules")).set_state(state)


def test_a_dataset_of_an_earlier_tagger_is_read_but_never_mixed(place, tmp_path):
    """It is known by the hash of the tagger's weights in its labeller's version."""
    folder = shutil.copytree(place / "bundled", tmp_path / "earlier")
    version, earlier = BundledLabeller().version, "5+1.0.0+153e0ca2"
    assert version != earlier
    metadata = (folder / METADATA_FILE).read_text()
    assert metadata.count(version) == 2
    (folder / METADATA_FILE).write_text(metadata.replace(version, earlier))
    config = config_for(place, "bundled")
    config.dataset.path = str(folder)
    now, before = make_input(config_for(place, "bundled")), make_input(config)
    assert before.sources[0].metadata.labeller_version == earlier
    np.testing.assert_array_equal(next(before).tokens, next(now).tokens)
    with pytest.raises(
        DataError, match=re.escape(f"labeller version = '{earlier}', but the config asks for '{version}'")
    ):
        build_dataset(config, folder)


def test_what_cannot_be_labelled_again_is_refused(place):
    with pytest.raises(DataError, match=r"tokenizer loses .*labels\.online=false") as lossy:
        make_input(config_for(place, "nfkc", "nfkc", online=True))
    assert "\n" not in str(lossy.value)
    config = get_default_config()
    config.corpus.people, config.tokenizer.path = 20, str(place / "exact.model")
    config.dataset.path, config.labels.online = str(place / "world"), True
    build_dataset(config, config.dataset.path)
    with pytest.raises(ConfigError, match="exact labels are not in the text"):
        make_input(config)
    (place / "texts.jsonl").write_text('{"annotated_text": "Ada Bell came from Oslo."}\n')
    config.corpus.kind, config.corpus.path = "lmlm", str(place / "texts.jsonl")
    config.labels.labeller, config.dataset.path = "lookups", str(place / "lookups")
    config.dataset.valid_fraction = 0.0
    build_dataset(config, config.dataset.path)
    with pytest.raises(ConfigError, match="exact labels are not in the text"):
        make_input(config)
