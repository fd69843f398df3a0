"""Whoever scores text gets what plain logits give, also where the model computes in bfloat16."""

from __future__ import annotations

import itertools
import json
import types

import completions_server
import jax
import numpy as np
import pytest
from evaluated_runs import (
    evaluation_config,
    plain_batch,
    plain_document,
    plain_statistics,
    save_run,
)

from lacy_jax import cli
from lacy_jax.cascade import calibration_scores, generate
from lacy_jax.cascade.gates import batch_scores
from lacy_jax.dataset import build_dataset, make_input, open_split
from lacy_jax.evaluation.acceptability import EDGES
from lacy_jax.evaluation.harness import LacyLM
from lacy_jax.evaluation.inspection import add_scores
from lacy_jax.labels.inspect import inspect_documents
from lacy_jax.objectives import GATES, scored_gates
from lacy_jax.training import load_run, sharding
from lacy_jax.training.step import with_reference
from lacy_jax.training.validation import Evaluator

CLOSE = {"rtol": 1e-5, "atol": 5e-5}  # A kernel that is not rounded to bfloat16 is 1e-2 away.


def close(run):
    """Where rows are laid out otherwise: attention adds up in another order, which moves a last bit of bfloat16."""
    return CLOSE if run.config.model.dtype == "float32" else {"rtol": 1e-3, "atol": 2e-2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dataset"
    build_dataset(evaluation_config("lacy", path), path)
    return path


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request, dataset, tmp_path_factory):
    config = evaluation_config("lacy", dataset)
    config.model.dtype = request.param
    folder = tmp_path_factory.mktemp("run") / "lacy"
    save_run(folder, config, 0)
    return load_run(folder)


@pytest.fixture(scope="module")
def batches(run):
    return list(itertools.islice(make_input(run.config, split="valid", epochs=1, drop_remainder=False), 3))


@pytest.fixture(scope="module")
def plain(run, batches):
    return [plain_batch(run.model, batch) for batch in batches]


def valid(batches, columns):
    return np.concatenate([np.asarray(c)[b.weights] for b, c in zip(batches, columns, strict=True)])


def test_validation(run, batches, plain):
    mesh = jax.tree.leaves(run.params)[0].sharding.mesh
    scores = Evaluator(run.config, run.definition, mesh).collect(run.params, batches)
    for name in ("nll", "lse", "call_logit", "max_z", "second_z", "entropy"):
        want = valid(batches, [found[name] for found in plain])
        np.testing.assert_allclose(getattr(scores, name), want, **CLOSE, err_msg=name)
    right = [found["top1"] == batch.targets for found, batch in zip(plain, batches, strict=True)]
    np.testing.assert_array_equal(scores.top1_correct, valid(batches, right))


def test_the_reference_model_of_a_train_step(run, batches, plain):
    mesh = jax.tree.leaves(run.params)[0].sharding.mesh

    @jax.jit
    def labels(params, batch):
        return with_reference(batch, run.definition, params, mesh)

    with jax.set_mesh(mesh):
        found = labels(run.params, sharding.put_batch(batches[0], mesh))
    assert set(found) == {*batches[0].labels, "reference_nll"}
    np.testing.assert_allclose(found["reference_nll"], plain[0]["nll"], **CLOSE)


@pytest.mark.parametrize("gate", ["call_logit", "call_prob", "call_margin", "entropy", "margin"])
def test_calibration_of_gates(run, batches, plain, gate):
    heads = [types.SimpleNamespace(**found) for found in plain]
    want = valid(batches, [GATES[gate].score(head) for head in heads])
    np.testing.assert_allclose(calibration_scores(run.model, batches, gate), want, **CLOSE)


def test_the_fit_of_the_calibrated_gate(run, batches, plain):
    scores, first = batch_scores(run.model, batches[0])
    head = types.SimpleNamespace(**plain[0])
    for index, gate in enumerate(scored_gates(noise=False)):
        np.testing.assert_allclose(scores[..., index], GATES[gate].score(head), **CLOSE, err_msg=gate)
    np.testing.assert_array_equal(first, plain[0]["top1"])


def test_inspected_tokens(run):
    documents = inspect_documents(run.config, 3, run.tokenizer)
    for shown, scored in zip(documents, add_scores(documents, run), strict=True):
        ids = run.tokenizer.encode("".join(piece.text for piece in shown.pieces))
        want = plain_document(run.model, np.array([run.tokenizer.bos_id, *ids], np.int32), 64)
        pieces = scored.pieces[: len(ids)]
        np.testing.assert_allclose([piece.nll for piece in pieces], want["nll"], **close(run))
        call = 1 / (1 + np.exp(want["lse"] - want["call_logit"]))
        np.testing.assert_allclose([piece.call for piece in pieces], call, **close(run))


def test_acceptability(run, capsys):
    with completions_server.CompletionsServer(lambda prompt: "[]") as server:
        judge = f"--judge=chat+{server.url}#m"
        suite = ["--suite=acceptability", f"--workdir={run.workdir}", "--limit=6", "--json"]
        assert cli.main(["evaluate", *suite, judge]) == 0
    figures = json.loads(capsys.readouterr().out)
    source = open_split(run.config.dataset.path, "valid")
    nll, right = [], []
    for index in range(6):
        ids = source[index].tokens
        found = plain_document(run.model, ids, 64)
        nll.append(found["nll"][:-1])  # The end of a document is no position of the study.
        right.append((found["top1"] == ids[1:])[:-1])
    nll, right = np.concatenate(nll), np.concatenate(right)
    assert figures["all"]["positions"] == len(nll)
    assert figures["all"]["right"] == figures["all"]["acceptable"] == right.sum()
    for low, high in itertools.pairwise(EDGES):
        own = [row for row in figures["rows"] if row["low"] == low]
        assert sum(row["positions"] for row in own) == ((nll >= low) & (nll < high)).sum()


def test_the_harness(run):
    room = run.model.cfg.max_seq_len + 1
    harness = LacyLM(run.model, run.tokenizer, batch_size=2)
    pairs = [("He was born in", " Copperfield"), ("", "He is here."), ("She studied at" * 40, " the end")]
    found = harness.loglikelihood([types.SimpleNamespace(args=pair) for pair in pairs])
    for (context, own), (logs, greedy) in zip(pairs, found, strict=True):
        ids = np.array([run.tokenizer.bos_id, *run.tokenizer.encode(context + own)], np.int32)
        count = len(ids) - 1 - len(run.tokenizer.encode(context))
        ids = ids[-room:]  # A context that does not fit loses its beginning.
        want = plain_document(run.model, ids, room - 1)
        np.testing.assert_allclose(logs, -want["nll"][-count:].sum(), **close(run))
        assert greedy == (want["top1"] == ids[1:])[-count:].all()


@pytest.mark.parametrize("gate", ["call_margin", "entropy"])
def test_decoding_computes_what_calibration_computes(run, gate):
    """The score of each decision, by cache and token by token, is that of the same text read at once."""
    prompts = ["He was born in", "She studied"]
    for text in generate(run.model, run.tokenizer, prompts, gate=gate, max_new_tokens=24, progress=False):
        prompt = [run.tokenizer.bos_id, *run.tokenizer.encode(text.prompt)]
        ids = np.array([*prompt, *text.tokens], np.int32)[None]
        found = plain_statistics(run.model, ids[:, :-1], ids[:, 1:])
        want = GATES[gate].score(types.SimpleNamespace(**found))[0, len(prompt) - 1 :]
        np.testing.assert_allclose(text.gate_scores, want[: len(text.gate_scores)], **close(run))
