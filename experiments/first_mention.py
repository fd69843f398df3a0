"""What counts as a first mention: `labels.first_mention` per document or per window, and the models trained on either.

    python experiments/first_mention.py --workdir=runs/first_mention [--seeds=2]     # a second call goes on where the first was stopped

Whole Wikipedia biographies (`wiki/bios_train.jsonl.xz` below the folder that the environment variable LACY_DATA names, default
../shared/data), cut into rows of 256 tokens that begin where the windows of the labels do (`input.packing` = whole). Text,
tokenizer, steps, order and seeds are the same; only the labels differ. Then both models read the same held-out text with
either kind of label, so that the same tokens are compared:

  first   facts in both: the document's first mentions
  again   facts per window only: mentioned before in the document, but not in the window
  other   all else, repeats within the window among it

`get_config` args, comma-separated: `window` (else per document), `smoke` (seconds instead of minutes).
Cost: six to nine minutes a run on one shared CPU core, 2.1 M parameters. Expected and found (one seed): docs/labels.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import Any

import ml_collections
import numpy as np

from lacy_jax import files
from lacy_jax.config import changed, get_default_config, reading_one_dataset
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import LacyError
from lacy_jax.evaluation.calls import detector_table, gate_values
from lacy_jax.evaluation.detectors import top_share
from lacy_jax.evaluation.evaluate import score_run
from lacy_jax.formatting import aligned
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.training import load_run, train
from lacy_jax.training.validation import TokenScores

LABELS = ("document", "window")
GATE = "call_margin"
BUDGET = 0.22
ROW = 256


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = arg.split(",")
    smoke = "smoke" in words
    config = get_default_config()
    config.name = "first_mention"
    config.objective.policy = "lacy"
    config.labels.first_mention = f"window:{ROW}" if "window" in words else "document"

    config.corpus.kind = "jsonl"
    config.corpus.path = os.path.join(
        os.environ.get("LACY_DATA", "../shared/data"), "wiki/bios_train.jsonl.xz"
    )
    config.corpus.max_documents = 80 if smoke else 2400
    config.tokenizer.vocab_size = 1024 if smoke else 8192
    config.dataset.path = f"runs/first_mention/{'window' if 'window' in words else 'document'}"
    config.dataset.shards = 2
    config.dataset.valid_fraction = 0.1 if smoke else 0.05

    config.model.family = "llama"
    config.model.preset = "tiny"
    if not smoke:
        config.model.update({"d_model": 128, "n_heads": 4, "n_layers": 5, "d_ff": 384})
    config.input.seq_len = ROW
    config.input.batch_size = 4 if smoke else 8
    config.input.packing = "whole"
    config.train.steps = 6 if smoke else 450
    config.train.log_every = 2 if smoke else 25
    config.train.eval_every = 0
    config.checkpoint.every = 3 if smoke else 150
    config.checkpoint.keep = 1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 2 if smoke else 50
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, compare; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/first_mention"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        cells = {
            labels: [cell(options.workdir, labels, seed, options.smoke) for seed in range(options.seeds)]
            for labels in LABELS
        }
    except LacyError as error:
        print(f"first_mention: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "first_mention.json", cells)
    print(table(cells))
    return 0


def cell(workdir: pathlib.Path, labels: str, seed: int, smoke: bool) -> dict[str, float]:
    """The figures of one run; read again if they are there.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    place = workdir / f"{labels}-{seed}"
    record = place / "first_mention.json"
    if record.exists():
        return files.read_json(record, "figures of a run")
    for kind in LABELS:
        config = _config(workdir, kind, smoke)
        build_dataset(config, config.dataset.path)
    if train(changed(_config(workdir, labels, smoke), {"seed": seed}), place).interrupted:
        raise LacyError("stopped; the same command goes on")
    run = load_run(place)
    scores = [score_run(run, reading_one_dataset(run.config, place, workdir / kind), 0)[0] for kind in LABELS]
    figures = compared(*scores)
    files.write_json(record, figures)
    return figures


def _config(workdir: pathlib.Path, labels: str, smoke: bool) -> ml_collections.ConfigDict:
    """Config of the runs on one kind of label; the second dataset has the tokenizer of the first."""
    first = workdir / LABELS[0] / TOKENIZER_FILE
    return changed(
        get_config(labels + ",smoke" * smoke),
        {"dataset.path": str(workdir / labels), "tokenizer.path": "" if labels == LABELS[0] else str(first)},
    )


def compared(document: TokenScores, window: TokenScores) -> dict[str, float]:
    """The figures of one model from its scores of the same tokens with the labels of either kind."""
    if not np.array_equal(document.nll, window.nll):
        raise LacyError("the two datasets do not hold the same tokens in the same order")
    first, fact = document.factual.astype(bool), window.factual.astype(bool)
    groups = {"first": first, "again": fact & ~first, "other": ~(fact | first)}
    called = top_share(gate_values(document, True)[GATE], BUDGET)
    found: dict[str, float] = {"nll": float(document.nll.mean())}
    for name, chosen in groups.items():
        found |= {
            f"{name}: share": float(chosen.mean()),
            f"{name}: nll": float(document.nll[chosen].mean()),
            f"{name}: right alone": float(document.top1_correct[chosen].mean()),
            f"{name}: called at {BUDGET:.0%}": float(called[chosen].mean()),
        }
    for name, scores in zip(LABELS, (document, window)):
        row = detector_table(scores, True, (BUDGET,))[GATE]
        found[f"AUROC of wrong facts per {name}"] = row["wrong_fact_auroc"]
        found[f"facts per {name} right at {BUDGET:.0%}"] = row["factual_right"][f"{BUDGET:g}"]
    return found


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """One row a figure: each seed of each kind of labels, and the mean difference between the two."""
    rows = [
        [
            "",
            *(f"{labels} {seed}" for labels, runs in cells.items() for seed in range(len(runs))),
            "window - document",
        ]
    ]
    for name in cells[LABELS[0]][0]:
        values = {labels: [run[name] for run in runs] for labels, runs in cells.items()}
        gain = float(np.mean(np.subtract(values["window"], values["document"])))
        rows.append([name, *(f"{value:.4f}" for runs in values.values() for value in runs), f"{gain:+.4f}"])
    return "\n".join(aligned(rows))


if __name__ == "__main__":
    sys.exit(main())
