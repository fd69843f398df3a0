"""Does Muon change what is delegated? The mask ranks tokens by loss, and another optimiser leaves other losses.

    python experiments/muon.py --workdir=runs/muon        # all of it; a second call goes on

AdamW and Muon (docs/running.md) at equal steps on the openings of Wikipedia biographies: corpus, tokenizer, labels and
the model of 2.1 M parameters are those of experiments/wiki_openings.py, policy `lacy` at a call rate of 22 %. Each
optimiser takes the better of two peak learning rates for seed 0, by validation nll, and then trains seeds 1 and 2 at it. All
six are compared on the same held-out text: losses, AUROC of "factual and wrong", and how much of what two of them would
delegate is the same, within an optimiser and across (`lacy_jax.studies.overlap`).

`get_config` args, comma-separated:
  (none)   AdamW.
  muon     Muon.
  smoke    a toy of everything; under a minute.

Cost: about half an hour on one CPU core. Results: docs/results/muon.md.
"""

from __future__ import annotations

import argparse
import pathlib
import runpy
import sys

import ml_collections

from lacy_jax import files
from lacy_jax.config import changed
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import LacyError
from lacy_jax.run_files import DATASET_FOLDER
from lacy_jax.studies.overlap import overlap_study, overlap_table
from lacy_jax.training import train

OPTIMIZERS = ("adamw", "muon")
LEARNING_RATES = (2e-3, 4e-3)
SEEDS = 3
_OPENINGS = runpy.run_path(str(pathlib.Path(__file__).parent / "wiki_openings.py"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    smoke, muon = "smoke" in words, "muon" in words
    config = _OPENINGS["get_config"](",".join(sorted(words - {"muon"})))
    config.name = "muon"
    config.dataset.path = "runs/muon/dataset" + ("_smoke" if smoke else "")
    config.objective.call_rate = 0.22
    config.optimizer.name = "muon" if muon else "adamw"
    config.input.batch_size = 4  # On a CPU, many small steps learn more per minute.
    config.train.steps = 12 if smoke else 400
    config.train.eval_every = 0
    config.corpus.max_documents = 300 if smoke else 16_000  # More than the steps read.
    config.checkpoint.every = 6 if smoke else 100
    config.checkpoint.keep = 1
    config.optimizer.warmup_steps = 4 if smoke else 40
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, compare; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/muon"))
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        result = compare(options.workdir, ",smoke" * options.smoke)
    except LacyError as error:
        print(f"muon: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "overlap.json", result)
    print(overlap_table(result))
    return 0


def compare(workdir: pathlib.Path, extra: str = "") -> dict[str, object]:
    """Every run, then `overlap_study` of the best rate of each optimiser.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    groups: dict[str, list[pathlib.Path]] = {}
    chosen: dict[str, dict[str, float]] = {}
    for name in OPTIMIZERS:
        config = get_config(("muon" if name == "muon" else "") + extra)
        config.dataset.path = str(workdir / DATASET_FOLDER)
        build_dataset(config, config.dataset.path)

        def run(
            rate: float, seed: int, name: str = name, config: ml_collections.ConfigDict = config
        ) -> float:
            place = _place(workdir, name, rate, seed)
            done = train(changed(config, {"optimizer.learning_rate": rate, "seed": seed}), place)
            if done.interrupted:
                raise LacyError("stopped; the same command goes on")
            return done.valid["nll"]

        nll = {rate: run(rate, 0) for rate in LEARNING_RATES}
        best = min(nll, key=nll.__getitem__)
        for seed in range(1, SEEDS):
            run(best, seed)
        groups[name] = [_place(workdir, name, best, seed) for seed in range(SEEDS)]
        chosen[name] = {f"{rate:g}": value for rate, value in nll.items()}
    return {"nll of seed 0 by learning rate": chosen, **overlap_study(groups)}


def _place(workdir: pathlib.Path, name: str, rate: float, seed: int) -> pathlib.Path:
    return workdir / f"{name}-{rate:g}-{seed}"


if __name__ == "__main__":
    sys.exit(main())
