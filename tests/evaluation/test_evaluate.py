"""`evaluate_run` on two tiny runs with real datasets and checkpoints, against plain logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluated_runs import evaluation_config, naive_rows, plain_document, save_run

from lacy_jax.dataset import build_dataset
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.evaluation import evaluate
from lacy_jax.evaluation.inspection import add_scores
from lacy_jax.labels.inspect import inspect_documents, render_html
from lacy_jax.report.page import report_command
from lacy_jax.training import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs lacy/ and ntp/ on dataset/, and other/ on other_data/, which has another tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    for name, world_seed in (("dataset", 0), ("other_data", 1)):
        build_dataset(evaluation_config("lacy", folder / name, world_seed), folder / name)
    for seed, policy in enumerate(("lacy", "ntp")):
        save_run(folder / policy, evaluation_config(policy, folder / "dataset"), seed)
    save_run(folder / "other", evaluation_config("ntp", folder / "other_data"), 2)
    return folder


def test_losses_are_those_of_plain_logits_over_the_whole_split(runs):
    result = evaluate.evaluate_run(runs / "lacy", baseline=runs / "ntp")
    rows, base = naive_rows(runs, "lacy"), naive_rows(runs, "ntp")
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
    (shown,) = inspect_documents(evaluation_config("lacy", runs / "dataset"), 1, run.tokenizer)
    (scored,) = add_scores([shown], run)
    text = "".join(piece.text for piece in shown.pieces)
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode(text).tolist(), run.tokenizer.eos_id]
    assert len(ids) > 66, "the document must be longer than the context: its second part is tested, too"
    found = plain_document(run.model, np.array(ids, np.int32), 64)
    nll, call = found["nll"], 1 / (1 + np.exp(found["lse"] - found["call_logit"]))
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
    (words,) = inspect_documents(evaluation_config("lacy", runs / "dataset"), 1)
    with pytest.raises(ConfigError, match="does not show the tokens of run"):
        add_scores([words], run)
