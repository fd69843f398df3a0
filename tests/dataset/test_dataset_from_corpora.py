"""What corpora bring beside their text reaches the dataset: labels of a judge, and the count of what was left out."""

from __future__ import annotations

import json

import numpy as np

from lacy_jax.config import get_default_config
from lacy_jax.dataset import build_dataset
from lacy_jax.dataset.source import open_split
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer

PLACES = ("Oslo", "Hull", "Bern", "Lyon", "Turin", "Porto", "Ghent", "Malmö")


def _config(kind, path, folder, vocab_size):
    config = get_default_config()
    config.corpus.kind, config.corpus.path = kind, str(path)
    config.tokenizer.vocab_size, config.labels.labeller = vocab_size, "rules"
    config.dataset.path, config.dataset.shards, config.dataset.valid_fraction = str(folder), 3, 0.3
    return config


def test_lookups_become_judge_labels_of_every_split(tmp_path):
    texts = [
        f"Person {k} was born in [dblookup('Person {k}', 'Birth Place') -> {PLACES[k % 8]}] {PLACES[k % 8]} and lived there."
        for k in range(40)
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"annotated_text": text, "id": f"d{k}"} for k, text in enumerate(texts)]))
    config = _config("lmlm", path, tmp_path / "data", 310)
    metadata = build_dataset(config, tmp_path / "data")
    assert metadata.extras == ("judge",)
    tokenizer = Tokenizer.load(tmp_path / "data" / TOKENIZER_FILE)
    seen = 0
    for split in ("train", "valid"):
        source = open_split(tmp_path / "data", split)
        for index in range(len(source)):
            record = source[index]
            flagged = tokenizer.decode(record.tokens[record.labels["judge"]]).strip()
            assert flagged == PLACES[int(record.id[1:]) % 8]
            seen += 1
    assert seen == 40
    assert not list((tmp_path / "data").glob("**/*-judge.npy.tmp"))
    assert build_dataset(config, tmp_path / "data") == metadata  # There already.


def test_what_a_dump_lost_is_in_the_metadata(tmp_path):
    pages = "".join(
        f"<page><title>P{k}</title><ns>0</ns><id>{k}</id><revision><text>Page {k} cost {{{{inflation|US|{k}}}}} in "
        f"{{{{convert|{k + 1}|km|mi}}}} of town.&lt;ref&gt;A&lt;/ref&gt;</text></revision></page>"
        for k in range(30)
    )
    (tmp_path / "wiki.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    metadata = build_dataset(
        _config("mediawiki", tmp_path / "wiki.xml", tmp_path / "data", 290), tmp_path / "data"
    )
    assert metadata.dropped == {"references": 30, "template inflation": 30}
    assert metadata.extras == ()
    assert "left out of the texts: 30 references, 30 template inflation" in metadata.summary()
    value = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert value["dropped"] == metadata.dropped
    del value["dropped"]  # As datasets of before.
    (tmp_path / "data" / "metadata.json").write_text(json.dumps(value))
    assert np.sum(open_split(tmp_path / "data", "train").lengths) == metadata.splits["train"].tokens
