"""`evaluate_run` on two tiny runs with real datasets and checkpoints, against plain logits."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from lacy_jax.config import get_default_config, to_json
from lacy_jax.dataset import build_dataset, make_input
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.evaluation import evaluate
from lacy_jax.evaluation.inspection import add_scores
from lacy_jax.evaluation.report import report_command
from lacy_jax.labels.inspect import inspect_documents, render_html
from lacy_jax.models import resolve_model_config
from lacy_jax.training import load_run
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.state import ModelDefinition

VOCAB = 400


def _config(policy, dataset, world_seed=0):
    config = get_default_config()
    config.objective.policy = policy
    config.corpus.people, config.corpus.texts_per_person, config.corpus.world_seed = 40, 2, world_seed
    config.tokenizer.vocab_size = VOCAB
    config.dataset.path, config.dataset.valid_fraction, config.dataset.shards = str(dataset), 0.2, 1
    config.model.preset, config.model.d_model, config.model.n_layers, config.model.n_heads = "tiny", 16, 1, 2
    config.input.seq_len, config.input.batch_size, config.input.threads, config.input.prefetch = 64, 8, 1, 1
    return config


def _save_run(folder, config, seed):
    """A run directory with a checkpoint of random parameters, large enough that nothing is near a tie."""
    definition = ModelDefinition(resolve_model_config(config.model, VOCAB, config.input.seq_len))
    leaves, structure = jax.tree.flatten(definition.abstract_params)
    rng = np.random.default_rng(seed)
    params = structure.unflatten([jax.numpy.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    shutil.copy(f"{config.dataset.path}/tokenizer.model", folder)
    with Checkpointer(folder, config) as checkpointer:
        checkpointer.save(1, params, {"count": jax.numpy.zeros(())}, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs lacy/ and ntp/ on dataset/, and other/ on other_data/, which has another tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    for name, world_seed in (("dataset", 0), ("other_data", 1)):
        build_dataset(_config("lacy", folder / name, world_seed), folder / name)
    for seed, policy in enumerate(("lacy", "ntp")):
        _save_run(folder / policy, _config(policy, folder / "dataset"), seed)
    _save_run(folder / "other", _config("ntp", folder / "other_data"), 2)
    return folder


@nnx.jit
def _logits(model, tokens, positions, segment_ids):
    return model.logits(model(tokens, positions, segment_ids))


def _naive(folder, policy):
    """Per batch: nll, c, factual of every valid target of the validation split by plain logits."""
    run = load_run(folder / policy)
    config = _config(policy, folder / "dataset")
    rows = []
    for batch in make_input(config, split="valid", epochs=1, drop_remainder=False):
        logits = _logits(run.model, batch.tokens, batch.positions, batch.segment_ids)
        z, c = (np.asarray(a, np.float64) for a in logits)
        log_p = z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
        nll = -np.take_along_axis(log_p, np.asarray(batch.targets)[..., None], -1)[..., 0]
        valid = np.asarray(batch.weights)
        rows.append((nll[valid], c[valid], np.asarray(batch.factual)[valid]))
    return rows


def test_losses_are_those_of_plain_logits_over_the_whole_split(runs):
    result = evaluate.evaluate_run(runs / "lacy", baseline=runs / "ntp")
    rows, base = _naive(runs, "lacy"), _naive(runs, "ntp")
    nll, c, factual = (np.concatenate(column) for column in zip(*rows, strict=True))
    base_nll = np.concatenate([row[0] for row in base])
    assert result["tokens"] == len(nll)
    assert result["nll"]["all"] == pytest.approx(nll.mean(), rel=1e-4)
    assert result["nll"]["factual"] == pytest.approx(nll[factual].mean(), rel=1e-4)
    mask = []
    for _, logits, _ in rows:
        chosen = np.zeros(len(logits), bool)
        chosen[np.argsort(-logits, kind="stable")[: int(0.15 * len(logits))]] = True
        mask.append(chosen)
    mask = np.concatenate(mask)
    assert len(c) == len(mask)
    own = result["masks"]["own"]
    assert own["call_nll"] == pytest.approx(nll[mask].mean(), rel=1e-4)
    assert own["baseline_other_nll"] == pytest.approx(base_nll[~mask].mean(), rel=1e-4)
    assert result["masks"]["baseline"]["score"] == "margin"
    assert json.loads((runs / "lacy" / "evaluation.json").read_text()) == result


def test_a_plain_run_has_no_call_figures_and_batches_limit_the_work(runs):
    result = evaluate.evaluate_run(runs / "ntp", batches=1, save=False)
    assert result["batches"] == 1
    assert not (runs / "ntp" / "evaluation.json").exists()
    assert result["call_calibration"] is None
    assert "call_logit" not in result["gates"]
    table = evaluate.evaluation_table(result)
    assert "AUROC wrong fact" in table
    assert all(gate in table for gate in ("entropy", "margin", "random"))
    assert "None" not in table


def test_table_and_report_show_the_baseline(runs):
    result = evaluate.evaluate_run(runs / "lacy", baseline=runs / "ntp", batches=1)
    table = evaluate.evaluation_table(result)
    assert "baseline: call" in table
    assert "calibration error" in table
    page = report_command([runs], runs / "report.html").read_text()
    assert "Validation nll, nats per token" in page
    assert "lacy: calibration of p(CALL)" in page


def test_bad_input_is_one_clear_line(runs, tmp_path):
    lacy = runs / "lacy"
    for error, words, call in (
        (ConfigError, "batches = -1", lambda: evaluate.evaluate_run(lacy, batches=-1)),
        (CheckpointError, "no run at", lambda: evaluate.evaluate_run(tmp_path / "missing")),
        (CheckpointError, "no run at", lambda: evaluate.evaluate_run(lacy, baseline=tmp_path / "missing")),
        (CheckpointError, "no checkpoint of step 77", lambda: evaluate.evaluate_run(lacy, step=77)),
        (DataError, "no dataset", lambda: evaluate.evaluate_run(lacy, tmp_path / "none")),
        (DataError, "made with tokenizer", lambda: evaluate.evaluate_run(lacy, runs / "other_data")),
        (ConfigError, "another tokenizer", lambda: evaluate.evaluate_run(lacy, baseline=runs / "other")),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_inspected_tokens_carry_loss_and_call(runs):
    run = load_run(runs / "lacy")
    (shown,) = inspect_documents(_config("lacy", runs / "dataset"), 1, run.tokenizer)
    (scored,) = add_scores([shown], run)
    text = "".join(piece.text for piece in shown.pieces)
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode(text).tolist(), run.tokenizer.eos_id]
    assert len(ids) > 66, "the document must be longer than the context: its second part is tested, too"
    nll, call = [], []
    for start in range(0, len(ids) - 1, 64):
        part = np.array([ids[start : start + 65]], np.int32)
        n = part.shape[1] - 1
        places, segments = np.arange(n, dtype=np.int32)[None], np.ones((1, n), np.int32)
        z, c = (np.asarray(a, np.float64)[0] for a in _logits(run.model, part[:, :-1], places, segments))
        lse = np.log(np.exp(z).sum(-1))
        nll += (lse - z[np.arange(n), part[0, 1:]]).tolist()
        call += (1 / (1 + np.exp(lse - c))).tolist()
    count = len(ids) - 2
    np.testing.assert_allclose(
        [piece.nll for piece in scored.pieces[:count]], nll[:count], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        [piece.call for piece in scored.pieces[:count]], call[:count], rtol=1e-4, atol=1e-5
    )
    ranks = np.array([piece.call_rank for piece in scored.pieces[:count]])
    assert ranks[np.argsort(call[:count], kind="stable")] == pytest.approx(
        np.arange(count) / count, abs=1.5 / count
    )
    page = render_html([scored])
    assert page.count("--call: ") == count
    assert f"nll {nll[0]:.2f}, p(CALL) {call[0]:.2f}" in page
    (words,) = inspect_documents(_config("lacy", runs / "dataset"), 1)
    with pytest.raises(ConfigError, match="not shown in the tokens of run"):
        add_scores([words], run)
