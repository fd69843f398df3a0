"""A partner that is asked by the model's query head: linking, what is asked, and what comes of it."""

from __future__ import annotations

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small
from cascade_fakes import CONTEXT, Asked, Scripted, make_model
from word_encoder import WordEncoder

from lacy_jax.cascade import IndexPartner, generate, get_partner, index_writer, least_similarity
from lacy_jax.cascade.dense_index import DenseIndex, head_name
from lacy_jax.cascade.encoders import ENCODERS, EncoderKind
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.linking import link_spans
from lacy_jax.cascade.partners.metering import MeteredPartner
from lacy_jax.cli import main
from lacy_jax.config import get_default_config
from lacy_jax.dataset import build_dataset, make_input, open_split
from lacy_jax.dataset.query_links import QUERY_ENTRY, QueryLinks
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.files import write_json
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import load_run, train

OPTIONS = {"max_new_tokens": 40, "progress": False, "gate": "call_prob", "batch_size": 3, "budget": 0.3}


def test_the_partner_gets_the_query_of_the_place_of_the_call(tokenizer, world):
    model = make_model(tokenizer.vocab_size, query_dim=8)
    partner = Asked(" Oslo", "", " on 3 May")
    prompts = [world.prompt(at) for at in range(5)]
    texts = generate(model, tokenizer, prompts, MeteredPartner(partner), **OPTIONS)
    assert sum(sum(origin == "partner" for origin in text.origins) for text in texts) > 3
    assert len(partner.queries) == len(partner.asked) > 5
    for text, query in zip(partner.asked, partner.queries, strict=True):
        # The text of a call decodes tokens that the model has read, one by one; encoded anew they may be others.
        source = next(t for t in texts if (t.prompt + t.text).startswith(text))
        ids = [tokenizer.bos_id, *tokenizer.encode(source.prompt), *source.tokens]
        ends = [n for n in range(1, len(ids) + 1) if tokenizer.decode(np.array(ids[:n])) == text]
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(ids)] = ids
        hidden = model(padded, jnp.arange(CONTEXT)[None], jnp.ones((1, CONTEXT), jnp.int32))
        wanted = np.asarray(model.queries(hidden))[0]
        assert any(np.allclose(query, wanted[end - 1], atol=1e-3) for end in ends)


def test_texts_do_not_depend_on_the_head_or_the_batch(tokenizer, world, model):
    headed = make_model(tokenizer.vocab_size, query_dim=8)
    prompts = [world.prompt(at) for at in range(3)]

    def written(model, partner, **options):
        texts = generate(model, tokenizer, prompts, partner, **OPTIONS | options)
        return [(text.tokens, text.origins) for text in texts]

    plain = written(model, Scripted(" Oslo"))
    assert written(headed, Asked(" Oslo")) == plain
    assert written(headed, Asked(" Oslo"), batch_size=1) == plain


def test_a_model_without_the_head_cannot_ask(tokenizer, model):
    with pytest.raises(ConfigError, match=r"partner scripted: .*query head.*query_dim = 0"):
        generate(model, tokenizer, ["She"], Asked(" Oslo"), **OPTIONS)


# -- with an index ---------------------------------------------------------------------------------------------


@pytest.fixture
def facts(tmp_path, world, monkeypatch):
    """An index of the world's facts, by an encoder of words that the registry knows."""
    pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")
    encoder = WordEncoder(16)
    list(ENCODERS)
    monkeypatch.setitem(ENCODERS._entries, "word", EncoderKind("word", "of a test", lambda: encoder))
    entries = [Entry(name, attribute, value=value) for name, attribute, value in world.table()]
    index_writer.build(tmp_path / "facts", entries, encoder)
    return tmp_path / "facts"


def test_the_vector_decides_what_is_found(facts, world):
    person = world.people[4]
    texts = [f"{person.name} was", "Nobody was"]
    for by in ("head", "head_hybrid", "head_of_words"):
        partner = get_partner(f"index:{facts}#{by}")
        assert isinstance(partner, IndexPartner)
        for attribute in ("birthplace", "award"):
            asked = WordEncoder(16).encode([f"{person.name}, {attribute}"] * 2)
            own, of_nobody = partner.complete_by_query(texts, asked)
            assert of_nobody == ""  # Whatever is asked: the entry is about another.
            if by != "head_hybrid":
                assert own == f" {person.attributes[attribute]}"
            else:  # All facts of the person have the same words.
                assert own.strip() in person.attributes.values()
        with pytest.raises(ConfigError, match=f"index:...#{by}: .*query head"):
            partner.complete(texts)
        with pytest.raises(DataError, match="16 numbers, those of the query head 8"):
            partner.complete_by_query(texts, np.ones((2, 8), np.float32))
        partner.close()


def linked(facts, tmp_path, capsys):
    """The config of a dataset of the world, linked by the command, and what the command said."""
    config = get_default_config()
    config.corpus.people, config.corpus.world_seed, config.corpus.texts_per_person = 60, 3, 1
    config.tokenizer.vocab_size, config.dataset.shards = 500, 1
    config.dataset.valid_fraction = 0.1
    config.dataset.path = str(tmp_path / "dataset")
    build_dataset(config, config.dataset.path)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from lacy_jax.config import get_default_config as get\ndef get_config(arg=''): return get()\n"
    )
    assert main(["index", f"--index={facts}", "--link", f"--config={experiment}",
                 f"--config.dataset.path={tmp_path}/dataset", "--json"]) == 0  # fmt: skip
    return config, json.loads(capsys.readouterr().out)


def test_spans_are_linked_to_the_entries_they_come_from(facts, world, tmp_path, capsys):
    config, said = linked(facts, tmp_path, capsys)
    assert said["spans"] == said["linked"]
    assert said["entries"] > 300
    links, encoder = QueryLinks(tmp_path / "dataset"), WordEncoder(16)
    assert (links.about.encoder, links.about.dim) == ("word", 16)
    source, pieces = (
        open_split(config.dataset.path, "train"),
        Tokenizer.load(tmp_path / "dataset/tokenizer.model"),
    )
    checked = 0
    for record in (source[at] for at in range(5)):
        numbers = record.labels[QUERY_ENTRY]
        assert ((numbers > 0) == record.labels["factual"]).all()
        person = world.lookup(record.title)
        vectors = links.targets(numbers[None].astype(np.int32))
        for number in np.unique(numbers[numbers > 0])[:5]:
            places = np.flatnonzero(numbers == number)
            value = pieces.decode(record.tokens[places[0] : places[-1] + 1]).strip()
            own = vectors.vectors[0, vectors.entries[0].tolist().index(number)]
            about = [a for a, v in person.attributes.items() if v == value]
            keys = encoder.encode([Entry(person.name, attribute).key() for attribute in about])
            assert np.max(keys @ own) > 0.99
            checked += 1
    assert checked > 20


def test_a_teachers_texts_are_linked_with_the_corpus_each_to_its_own_fact(facts, world, tmp_path, capsys):
    """All the way: `lacy synthesise`, a dataset of its texts, `lacy index --link` of the mixture, a run's batches."""
    rows = [dict(zip(("entity", "attribute", "value"), row, strict=True)) for row in world.table()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["synthesise", f"--facts={tmp_path}/rows.jsonl", "--teacher=world:60,3", "--limit=100",
                 f"--out={tmp_path}/texts.jsonl"]) == 0  # fmt: skip
    capsys.readouterr()
    config, _ = linked(facts, tmp_path, capsys)
    own = config.copy_and_resolve_references()
    own.corpus.kind, own.corpus.path, own.labels.labeller = "lmlm", str(tmp_path / "texts.jsonl"), "lookups"
    own.tokenizer.path, own.dataset.path = str(tmp_path / "dataset/tokenizer.model"), str(tmp_path / "texts")
    build_dataset(own, own.dataset.path)
    config.dataset.mixture = ((config.dataset.path, 1.0), (own.dataset.path, 1.0))
    config.model.query_dim, config.input.seq_len, config.input.batch_size = 16, 256, 4
    with pytest.raises(DataError, match="texts: its facts are not linked"):
        make_input(config)
    assert main(["index", f"--index={facts}", "--link", f"--config={tmp_path}/experiment.py",
                 f"--config.dataset.path={config.dataset.path}", f"--config.dataset.mixture={config.dataset.mixture}", "--json"]) == 0  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert said["spans"] == said["linked"]
    assert said["path"] == f"{config.dataset.path}, {own.dataset.path}"
    source, links, encoder = (
        open_split(own.dataset.path, "train"),
        QueryLinks(own.dataset.path),
        WordEncoder(16),
    )
    told = {row["id"]: row for row in map(json.loads, (tmp_path / "texts.jsonl").read_text().splitlines())}
    assert len(source) > 200
    for record in (source[at] for at in range(len(source))):
        numbers = record.labels[QUERY_ENTRY]
        assert ((numbers > 0) == record.labels["factual"]).all()
        (number,) = np.unique(numbers[numbers > 0])
        targets, row = links.targets(numbers[None].astype(np.int32)), told[record.id]
        vector = targets.vectors[0, targets.entries[0].tolist().index(number)]
        assert encoder.encode([Entry(row["title"], row["attribute"]).key()])[0] @ vector > 0.99
    pipeline = make_input(config)
    batch = next(pipeline)
    pipeline.close()
    for entries, numbers in zip(batch.queries.entries, batch.labels[QUERY_ENTRY], strict=True):
        assert set(entries[: len(np.unique(numbers)) - 1]) <= set(numbers[numbers > 0]) <= set(entries)


def test_a_dataset_that_states_nothing_of_the_index_is_refused(facts, tmp_path):
    path = small.write_dataset(tmp_path / "dataset", documents=4, valid=1)
    index = DenseIndex(facts, WordEncoder(16))
    with pytest.raises(DataError, match="none of its 5 factual spans comes from an entry"):
        link_spans([path], index)
    index.close()
    with pytest.raises(DataError, match="not linked"):
        QueryLinks(path)


def test_the_command_finds_the_least_similarity_of_a_run(facts, tmp_path, capsys, monkeypatch):
    linked(facts, tmp_path, capsys)
    config = small.make_config(
        str(tmp_path / "dataset"),
        model__query_dim=16,
        train__steps=2,
        optimizer__warmup_steps=1,
        input__seq_len=256,
    )
    train(config, tmp_path / "run", jax.devices()[:1])
    monkeypatch.setattr(least_similarity, "FEWEST", 1)
    command = ["index", f"--index={facts}", "--calibrate", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["head_of_words"]
    assert 0 < found["right"] <= found["asked"] > 30
    assert found["asked"] == found["idle"]
    index = DenseIndex(facts, WordEncoder(16))
    head = head_name(load_run(tmp_path / "run").model.query_head[...])
    assert index.least_similarity(head, "head_of_words") == found["least"]
    assert index.least_similarity("another", "head_of_words") is None
    index.close()
    assert main(command) == 0
    assert f"#head_of_words: least similarity {found['least']:.3f}" in capsys.readouterr().out
    small.write_dataset(tmp_path / "other")
    assert main([*command, f"--config.dataset.path={tmp_path}/other"]) == 2
    assert "other: has no extra query_entry; write them with `lacy index" in capsys.readouterr().err


def test_the_command_links_or_calibrates_and_does_nothing_else(capsys):
    for name in ("link", "calibrate"):
        assert main(["index", "--index=i", f"--{name}", "--compact"]) == 2
        assert f"--{name} needs --index=FOLDER alone" in capsys.readouterr().err


def test_a_run_without_the_head_has_no_least_similarity(tmp_path, capsys, monkeypatch):
    write_json(tmp_path / "config.json", small.make_config("").to_dict())
    run = types.SimpleNamespace(model_config=types.SimpleNamespace(query_dim=0))
    monkeypatch.setattr("lacy_jax.training.load_run", lambda workdir: run)
    assert main(["index", "--index=i", "--calibrate", f"--workdir={tmp_path}"]) == 2
    assert "it is asked by the model's query head, and this model has none" in capsys.readouterr().err
