"""Does quantised training disturb what is delegated? Real text: biographies of Wikipedia.

    python benchmarks/quantization.py [--data=FOLDER] [--steps=400] [--seeds=3] [--ways=int8,fp8] [--workdir=DIR] [--quick]

A small Llama-style model is trained with the policy `lacy`, once for each way of `train.quantization` (or those of `--ways`) and each seed. The
mask of the validation split (calls: the factual targets with the highest nll) is then compared in two ways.

  same parameters   those of the run without quantisation; the forward pass with and without. What one step delegates otherwise.
  own parameters    run against run, both evaluated without quantisation; beside it two runs that differ by the seed alone. What
                    a run learns otherwise, and how much two runs differ anyway.

The last line is one JSON object with these keys:

  benchmark   "quantization"
  ways        by way: same_overlap, same_rank (Spearman correlation of the nll of factual targets); of those trained also
              own_overlap, nll, nll_factual, seconds_per_step (median); each the mean over seeds, `_spread` its
              standard deviation
  seeds_apart overlap of two runs without quantisation that differ by the seed
  steps, seeds, parameters, targets, call_rate, device
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from scipy import stats

from lacy_jax import objectives
from lacy_jax.config import changed, get_default_config
from lacy_jax.dataset import Batch, build_dataset, make_input
from lacy_jax.errors import LacyError
from lacy_jax.models import count_params
from lacy_jax.training import load_run, sharding, train
from lacy_jax.training.metrics_files import read_metrics
from lacy_jax.training.quantization import QUANTIZATIONS, quantized
from lacy_jax.training.run import Run
from lacy_jax.training.validation import Evaluator, TokenScores, validation_metrics


def make_config(
    data: pathlib.Path | None, folder: pathlib.Path, steps: int, quick: bool
) -> ml_collections.ConfigDict:
    """A model that a CPU trains in minutes; without `data` on the embedded world."""
    config = get_default_config()
    config.dataset.path = str(folder / "dataset")
    config.dataset.valid_fraction = 0.05
    if data is not None:
        config.corpus.kind, config.corpus.path = "jsonl", str(data / "wiki" / "bios_train.jsonl.xz")
        config.corpus.max_documents = 200 if quick else 4000
        config.corpus.max_chars = 1500
    else:
        config.corpus.people = 100
    config.labels.labeller = "auto" if data else "world"
    config.tokenizer.vocab_size = 600 if quick else 4000
    config.model.family, config.model.preset = "llama", "tiny"
    if not quick:
        config.model.d_model, config.model.n_layers, config.model.n_heads, config.model.d_ff = 192, 6, 6, 512
    config.input.seq_len, config.input.batch_size = 128, 8
    config.train.steps, config.train.eval_every = steps, 0
    config.train.log_every, config.checkpoint.every = max(steps // 10, 1), steps
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-3, min(50, steps // 4)
    config.metrics.tensorboard = False
    return config


def validation(config: ml_collections.ConfigDict, run: Run, count: int) -> list[Batch]:
    """The first batches of the validation split."""
    pipeline = make_input(
        config, split="valid", epochs=1, tokenizer_hash=run.tokenizer.hash, drop_remainder=False
    )
    batches = list(itertools.islice(pipeline, count))
    pipeline.close()
    return batches


def nll_under(run: Run, way: str, batches: list[Batch]) -> np.ndarray:
    """float32 [n]: of every valid target, the layers computing as `way` says."""

    @jax.jit
    def score(params: Any, batch: Batch) -> jax.Array:
        network = run.definition.merge(params)
        hidden = quantized(network, way)(batch.tokens, batch.positions, batch.segment_ids)
        return objectives.token_statistics(
            hidden, network.head_kernel(), network.call_vector(), batch.targets
        ).nll

    return np.concatenate([np.asarray(score(run.params, batch))[batch.weights > 0] for batch in batches])


def calls(nll: np.ndarray, scores: TokenScores) -> np.ndarray:
    """bool [n]: as many factual targets as the call rate asks for, those with the highest nll."""
    ranked = np.argsort(-np.where(scores.factual, nll, -np.inf), kind="stable")
    chosen = np.zeros(len(nll), bool)
    chosen[ranked[: int(0.15 * len(nll))]] = True
    return chosen & scores.factual


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the calls of one that are calls of the other."""
    return float(np.sum(a & b) / max(np.sum(a), 1))


def measure(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    seeds: int,
    batches: int,
    trained: Sequence[str] = tuple(QUANTIZATIONS),
) -> dict[str, Any]:
    """The figures; see the module's docstring.

    Raises:
      LacyError: a training was stopped before its end.
    """
    found: dict[str, list[dict[str, float]]] = {way: [] for way in QUANTIZATIONS}
    masks, scores = [], None
    for seed in range(seeds):
        exact, scores, valid, own = trained_run(config, folder, "none", seed, batches)
        masks.append(calls(scores.nll, scores))
        plain = nll_under(exact, "none", valid)
        for way in QUANTIZATIONS:
            rounded = nll_under(exact, way, valid)
            rank = stats.spearmanr(plain[scores.factual], rounded[scores.factual]).statistic
            row = {
                "same_overlap": overlap(calls(plain, scores), calls(rounded, scores)),
                "same_rank": float(rank),
            }
            if way == "none" or way in trained:
                theirs, figures = scores, own
                if way != "none":
                    _, theirs, _, figures = trained_run(config, folder, way, seed, batches)
                row |= {"own_overlap": overlap(masks[-1], calls(theirs.nll, theirs)), **figures}
            found[way].append(row)
            print(f"seed {seed} {way}: {row}", file=sys.stderr, flush=True)
    assert scores is not None
    apart = [overlap(a, b) for a, b in itertools.combinations(masks, 2)]
    ways = {}
    for way, rows in found.items():
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        ways[way] = {name: round(float(np.mean(values)), 4) for name, values in columns.items()} | {
            f"{name}_spread": round(float(np.std(values)), 4) for name, values in columns.items()
        }
    return {
        "benchmark": "quantization",
        "ways": ways,
        "seeds_apart": round(float(np.mean(apart)), 4) if apart else None,
        "steps": config.train.steps,
        "seeds": seeds,
        "parameters": count_params(exact.definition.config),
        "targets": len(scores),
        "call_rate": 0.15,
        "device": jax.devices()[0].device_kind,
    }


def trained_run(
    config: ml_collections.ConfigDict, folder: pathlib.Path, way: str, seed: int, batches: int
) -> tuple[Run, TokenScores, list[Batch], dict[str, float]]:
    """Train, or go on; (run, scores of the validation batches without quantisation, those batches, figures).

    Raises:
      LacyError: stopped before its end.
    """
    own, workdir = changed(config, {"seed": seed, "train.quantization": way}), folder / f"{way}-{seed}"
    if train(own, workdir, jax.devices()[:1]).interrupted:
        raise LacyError("stopped; with --workdir the same command goes on")
    run = load_run(workdir)
    valid = validation(config, run, batches)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    scores = Evaluator(own, run.definition, mesh).collect(run.params, valid)
    summary = validation_metrics(scores, uses_call=True)
    seconds = [line["step_s"] for line in read_metrics(workdir) if "step_s" in line]
    figures = {
        "nll": summary["nll"],
        "nll_factual": summary["nll_factual"],
        "seconds_per_step": float(np.median(seconds)),
    }
    return run, scores, valid, figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=pathlib.Path, default=os.environ.get("LACY_DATA"), help="folder with wiki/"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--ways",
        default=",".join(QUANTIZATIONS),
        help="those that are trained; all are compared at the same parameters",
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="keep the runs here; the same command goes on")
    parser.add_argument("--quick", action="store_true", help="a toy, to see that it works")
    arguments = parser.parse_args()
    data = arguments.data
    if data is not None and not (data / "wiki" / "bios_train.jsonl.xz").exists():
        data = None
    steps, seeds = (8, 2) if arguments.quick else (arguments.steps, arguments.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.workdir or pathlib.Path(temporary)
        config = make_config(data, folder, steps, arguments.quick)
        try:
            if not pathlib.Path(config.dataset.path).exists():
                build_dataset(config, config.dataset.path)
            trained = [QUANTIZATIONS.named(way).name for way in arguments.ways.split(",")]
            print(json.dumps(measure(config, folder, seeds, 4 if arguments.quick else 64, trained)))
        except LacyError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
