"""The query head on real text: what a span is linked to, what is asked, and a toy of the whole."""

from __future__ import annotations

import json
import lzma
import pathlib
import runpy

import pytest
from word_encoder import WordEncoder

from lacy_jax.cascade.encoders import ENCODERS, EncoderKind
from lacy_jax.corpus import Document, World

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")
pytest.importorskip("torch", reason="no torch: pip install 'lacy_jax[export]'")
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "query_head_real.py"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Articles as the experiment reads them: each tells a life twice, in other words; and an encoder of words."""
    world = World(people=60, seed=3)

    def article(at: int) -> dict:
        text = f"{world.text(at, 0).text}\nLife.\n{world.text(at, 1).text}"
        return {"id": str(at), "title": world.people[at].name, "text": text}

    featured = [article(at) | {"infobox": {"birth_date": "1 May 1900"}} for at in (0, 50)]
    for name, records in {
        "bios_train": [article(at) for at in range(40)],
        "bios_unseen": [article(at) for at in range(40, 60)],
        "featured_bios": featured,
    }.items():
        path = tmp_path / "data" / "wiki" / f"{name}.jsonl.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(path, "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
    monkeypatch.setenv("LACY_DATA", str(tmp_path / "data"))
    list(ENCODERS)
    encoder = WordEncoder(384, name="minilm")
    monkeypatch.setitem(ENCODERS._entries, "minilm", EncoderKind("minilm", "of a test", lambda: encoder))


def test_an_article_has_an_opening_and_a_rest():
    script = runpy.run_path(str(SCRIPT))
    article = Document("1", f"Ada Eve was born in Rome. {'x' * 490}. She died in York.", "Ada Eve")
    head, rest = script["parts"](article)
    assert head.text == "Ada Eve was born in Rome."
    assert rest.text.endswith("She died in York.")
    assert script["place_of"]("York", article.text) == article.text.index("York")
    assert script["place_of"]("Rom", article.text) is None
    assert script["place_of"]("Rome", article.text, len(head.text)) is None


def test_a_toy_of_the_whole(data, tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    asked = [f"--workdir={tmp_path / 'run'}", "--smoke", "--people=2"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    every = result["every"]["every, unseen"]
    assert every["people"] == 2
    assert every["calls"] > 4
    partners = {"documents", "database", "dense", "words", "hybrid", "head", "head_of_words", "head_hybrid"}
    assert partners < every["partners"].keys()
    assert every["partners"]["dense"]["nearest"]["person"] > 0.5
    rows = result["factscore"]["rows"]
    assert {(row["group"], row["partner"]) for row in rows} == {
        (group, partner) for group in ("seen", "unseen") for partner in partners | {"alone"}
    }
    assert "unseen: head           minus documents" in shown
    assert main(asked) == 0  # Nothing is made again.
    assert capsys.readouterr().out == shown
