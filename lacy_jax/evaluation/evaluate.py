"""The suite `calls` of `lacy evaluate`: losses and calls of a trained model on held-out text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.config import changed, reading_one_dataset
from lacy_jax.dataset import Batch, make_input
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.evaluation import calls
from lacy_jax.evaluation.kinds import kinds_of
from lacy_jax.evaluation.run_texts import SAMPLING_SEED
from lacy_jax.formatting import aligned, percent
from lacy_jax.labels import RuleLabeller
from lacy_jax.objectives import get_policy
from lacy_jax.progress import Progress
from lacy_jax.run_files import EVALUATION_FILE
from lacy_jax.training.reference import reference_of
from lacy_jax.training.run import Run, load_run
from lacy_jax.training.run_setup import check_labels
from lacy_jax.training.validation import Evaluator, TokenScores

_CLASSES = ("all", "factual", "other", "called", "learned")


def evaluate_run(
    workdir: epath.PathLike,
    dataset_path: epath.PathLike | None = None,
    baseline: epath.PathLike | None = None,
    batches: int = 0,
    step: int = 0,
    save: bool = True,
) -> dict[str, Any]:
    """Evaluate the calls and losses of a run.

    Args:
      workdir: run directory.
      dataset_path: dataset; None = the one that the run was trained on.
      baseline: another run directory with the same tokenizer (usually the `ntp` run). Its losses are reported on this
        run's call mask, and both runs' losses on its own mask.
      batches: number of validation batches of the run's size; 0 = the whole split once.
      step: checkpoint step; 0 = the latest.
      save: also write WORKDIR/evaluation.json, which `lacy report` shows.

    Returns:
      The figures of `calls.call_figures`, JSON-safe, and "run", "policy", "step", "split", "dataset",
      "baseline".

    Raises:
      CheckpointError: there is no run or checkpoint.
      DataError: the dataset is missing, has no validation text, or was made with another tokenizer.
      ConfigError: a negative number of batches, or the baseline has another tokenizer.
    """
    if batches < 0:
        raise ConfigError(f"batches = {batches}: expected the number of validation batches, or 0 for all")
    run = load_run(workdir, step)
    # A fixed seed, so that the first batches are the same for every run.
    config = changed(reading_one_dataset(run.config, run.workdir, dataset_path), {"seed": SAMPLING_SEED})
    other = None if baseline is None else load_run(baseline)
    if other is not None and other.tokenizer.hash != run.tokenizer.hash:
        raise ConfigError(
            f"baseline {baseline} has another tokenizer than {workdir}: "
            "their losses cannot be compared token by token"
        )
    scores, sizes, kinds = score_run(run, config, batches)
    if not len(scores):
        raise DataError(f"dataset {config.dataset.path}: split 'valid' has no target to evaluate")
    baseline_scores = None if other is None else score_run(other, config, batches)[0]
    result = {
        "run": str(workdir),
        "policy": run.config.objective.policy,
        "step": run.step,
        "split": "valid",
        "dataset": str(config.dataset.path),
        "baseline": None if baseline is None else str(baseline),
        **calls.call_figures(
            scores,
            sizes,
            get_policy(run.config.objective.policy).uses_call,
            baseline=baseline_scores,
            kinds=kinds,
            baseline_uses_call=other is not None and get_policy(other.config.objective.policy).uses_call,
        ),
    }
    if save:
        files.write_json(epath.Path(workdir) / EVALUATION_FILE, result)
    return result


def evaluation_table(result: dict[str, Any]) -> str:
    """The figures of `evaluate_run` as plain text for a terminal."""
    nll, masks = result["nll"], result["masks"]
    lines = [
        f"{result['run']} (policy {result['policy']}, step {result['step']}): {result['tokens']} tokens of "
        f"{result['split']}, {percent(result['factual_rate'])} factual",
        "",
        "nll (nats)   " + "   ".join(f"{name} {_figure(nll[name])}" for name in _CLASSES),
    ]
    for name, mask in masks.items():
        line = f"{name} call mask ({mask['score']}, top {percent(mask['rate'])})"
        line += f"   call {_figure(mask['call_nll'])}   other {_figure(mask['other_nll'])}"
        line += f"   factual {percent(mask['factual_share'])}"
        if mask["baseline_call_nll"] is not None:
            line += f"   baseline: call {_figure(mask['baseline_call_nll'])}"
            line += f", other {_figure(mask['baseline_other_nll'])}"
        lines.append(line)
    lines += ["", *_gate_lines(result["gates"])]
    lines.append(
        "right at B: factual tokens right if the truth is filled in at the share B of positions with the highest scores; "
        f"the model alone: {percent(result['factual_right_alone'])}"
    )
    lines += ["", *_kind_lines(result["by_kind"])] if result["by_kind"] else []
    calibration = result["call_calibration"]
    if calibration is not None:
        lines.append(
            f"p(CALL) as the probability of a wrong fact: calibration error {_figure(calibration['ece'])}, "
            f"Brier {_figure(calibration['brier'])}; > 0.5: {percent(calibration['above_half'])} of tokens"
        )
    return "\n".join(lines)


def _gate_lines(gates: dict[str, Any]) -> list[str]:
    """A heading and one aligned line per gate."""
    budgets = list(next(iter(gates.values()))["factual_right"])
    rights = [f"right at {percent(float(budget))}" for budget in budgets]
    last = budgets[-1]
    called = [f"{name} at {percent(float(last))}" for name in ("precision", "recall")]
    rows = [["gate", "AUROC wrong fact", "AP", "AUROC label", "AUROC mask", *called, *rights]]
    for gate, row in gates.items():
        figures = [row[key] for key in ("wrong_fact_auroc", "wrong_fact_ap", "label_auroc", "mask_auroc")]
        at = [percent(row["at_budget"][last][name]) for name in ("precision", "recall")]
        shares = [percent(row["factual_right"][budget]) for budget in budgets]
        rows.append([gate, *map(_figure, figures), *at, *shares])
    return aligned(rows)


def _kind_lines(kinds: dict[str, Any]) -> list[str]:
    """A heading and one aligned line per kind of fact, with the share of its wrong tokens that each gate calls."""
    gates = list(next(iter(kinds.values()))["gates"])
    rows = [["kind of fact", "tokens", "wrong", *(f"recall {gate}" for gate in gates)]]
    for kind, row in kinds.items():
        recalls = [percent(row["gates"][gate]["recall"]) for gate in gates]
        rows.append([kind, str(row["tokens"]), percent(row["wrong"]), *recalls])
    return aligned(rows)


def score_run(
    run: Run, config: ml_collections.ConfigDict, batches: int
) -> tuple[TokenScores, list[int], np.ndarray]:
    """Scores of the first `batches` validation batches, their numbers of valid tokens, and each token's kind of fact."""
    mesh = jax.tree.leaves(run.params)[0].sharding.mesh
    reference = reference_of(run, mesh)
    evaluator = Evaluator(run.config, run.definition, mesh, reference.definition if reference else None)
    pipeline = make_input(
        config, split="valid", epochs=1, tokenizer_hash=run.tokenizer.hash, drop_remainder=False
    )
    check_labels(run.config, pipeline)
    sizes: list[int] = []
    kinds: list[np.ndarray] = []
    labeller = RuleLabeller()

    def counted(progress: Progress) -> Iterator[Batch]:
        for batch in itertools.islice(pipeline, batches or None):
            sizes.append(int(np.count_nonzero(batch.weights)))
            kinds.append(kinds_of(batch, run.tokenizer, labeller))
            yield batch
            progress.update()

    total = min(batches, pipeline.steps or batches) if batches else pipeline.steps
    try:
        with Progress(f"evaluate {run.workdir.name}", total, unit="batch") as progress:
            scores = evaluator.collect(run.params, counted(progress), reference.params if reference else None)
    finally:
        pipeline.close()
    return scores, sizes, np.concatenate(kinds) if kinds else np.zeros(0, np.int8)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
