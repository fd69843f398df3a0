"""A dense index as partner, and the command that builds and changes it."""

from __future__ import annotations

import json
import re
import sqlite3

import dataset_fakes
import pytest

from lacy_jax.cascade import FactDatabase, IndexPartner, get_partner
from lacy_jax.cascade.dense_index import DATABASE, DenseIndex
from lacy_jax.cli import main
from lacy_jax.errors import ConfigError, DataError

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")


@pytest.mark.parametrize(
    ("text", "reach", "answer"),
    [
        ("Ada Bell birth place", "span", " Oslo"),
        ("Ada Bell, birth place Oslo. Ada Bell birth place", "span", ""),  # Stated already.
        ("Ada Bell award", "span", " Orkla Medal"),
        ("Ada Bell, award Orkla Medal. Ada Bell award", "span", " Polar Prize"),
        ("Bea Crane birth place", "word", " New"),
        ("Bea Crane birth place New", "span", " York City"),
        ("Cy Dent was a painter who lived in", "span", " Hull"),
        ("Cy Dent was a painter who lived in ", "span", "Hull"),
        ("Bea Crane was a painter. She worked at", "span", " Orkla Works"),
        ("Kit Lane birth place", "span", ""),  # Somebody else's is no answer.
        ("", "span", ""),
    ],
)
def test_answers(index_folder, encoder, text, reach, answer):
    partner = IndexPartner(DenseIndex(index_folder, encoder), reach)
    assert partner.complete([text]) == [answer]
    assert partner.typical_texts()[0].startswith(" ")
    partner.close()


def test_the_spec_names_search_and_partner(index_folder, word, tmp_path):
    partner = get_partner(f"index:{index_folder}")
    assert partner.complete(["Ada Bell birth place"]) == [" Oslo"]
    partner.close()
    assert get_partner(f"index:{index_folder}#hybrid").by == "hybrid"
    rows = [("Ada Bell", "birth_place", "Rome")]
    FactDatabase.build(tmp_path / "facts.db", rows).close()
    behind = get_partner(f"index:{index_folder},database:{tmp_path}/facts.db")
    assert behind.name == "index, database"
    behind.close()
    with pytest.raises(
        ConfigError, match="after # expected one of dense, hybrid, words, dense_of_words, head"
    ):
        get_partner(f"index:{index_folder}#exact")
    with sqlite3.connect(index_folder / DATABASE) as db:
        db.execute("UPDATE about SET value = 'x' WHERE name = 'encoder'")
    db.close()
    with pytest.raises(DataError, match="built with encoder 'x'; known are minilm"):
        get_partner(f"index:{index_folder}")


# -- the command ---------------------------------------------------------------------------------------------


def lacy(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["index", *arguments])
    out, error = capsys.readouterr()
    return code, out, error.splitlines()[-1] if error else ""


def test_the_command_builds_and_edits(tmp_path, word, capsys):
    facts, articles = tmp_path / "facts.jsonl", tmp_path / "articles.jsonl"
    facts.write_text('{"entity": "Ada Bell", "attribute": "birth_place", "value": "Oslo"}\n')
    articles.write_text('{"title": "Bea", "text": "Bea was a painter."}\n')
    index = f"--index={tmp_path}/index"
    code, out, _ = lacy(
        capsys, index, "--encoder=word", f"--facts={facts}", f"--documents={articles}", "--json"
    )
    assert (code, json.loads(out)["entries"]) == (0, 2)
    (tmp_path / "new.jsonl").write_text(
        '{"entity": "Ada Bell", "attribute": "birth_place", "value": "Rome"}\n'
    )
    (tmp_path / "old.jsonl").write_text('{"title": "Bea"}\n')
    code, out, _ = lacy(
        capsys,
        index,
        f"--change={tmp_path}/new.jsonl",
        f"--delete={tmp_path}/old.jsonl",
        "--compact",
        "--json",
    )
    assert json.loads(out) == {
        "path": f"{tmp_path}/index",
        "added": 0,
        "changed": 1,
        "deleted": 1,
        "entries": 1,
    }
    partner = get_partner(f"index:{tmp_path}/index")
    assert partner.complete(["Ada Bell, birth place"]) == [" Rome"]
    partner.close()


def test_the_command_indexes_the_spans_of_a_dataset(tmp_path, word, capsys, tokenizer):
    records = dataset_fakes.make_records(6)
    dataset_fakes.write_dataset(tmp_path / "dataset", {"train": records, "valid": records[:1]})
    tokenizer.save(tmp_path / "dataset" / "tokenizer.model")
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from lacy_jax.config import get_default_config as get\ndef get_config(arg=''): return get()\n"
    )
    spans = ("--spans", f"--config={experiment}", f"--config.dataset.path={tmp_path}/dataset")
    code, out, error = lacy(capsys, f"--index={tmp_path}/index", "--encoder=word", *spans, "--json")
    assert code == 0, error
    assert json.loads(out)["entries"] > 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--facts=x.jsonl",), "give --index=FOLDER or --database=FILE"),
        (("--index=i", "--database=d", "--facts=x.jsonl"), "give --index=FOLDER or --database=FILE"),
        (("--index=i",), "give --documents, --facts or --spans"),
        (("--index=i", "--add", "--change=x.jsonl"), "give --documents, --facts or --spans"),
        (("--index=i", "--facts=x.jsonl", "--compact"), "with --add they are added"),
        (("--database=d", "--compact"), "--database: --spans, --compact"),
        (("--database=d", "--documents=x.jsonl"), "--facts=PATH is needed"),
        (("--database={t}/none.db", "--delete=x.jsonl"), "fact database .*none.db: not found"),
        (("--index=i", "--facts=x.jsonl", "--encoder=minilmm"), "did you mean 'minilm'"),
        (("--index=i", "--facts=x.jsonl", "--threads=0"), "--threads=0: must be at least 1"),
        (("--index={t}/none", "--compact"), "not found; build it with `lacy index`"),
        (("--index={t}/i", "--encoder=word", "--facts={t}/none.jsonl"), "file not found"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, word, capsys, arguments, says):
    code, _, error = lacy(capsys, *(argument.replace("{t}", str(tmp_path)) for argument in arguments))
    assert code == 2
    assert re.search(says, error)
    assert list(tmp_path.iterdir()) == []
