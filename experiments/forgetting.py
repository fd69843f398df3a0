"""Editing and forgetting: what is delegated can be changed and deleted; what is memorised cannot.

    python experiments/forgetting.py --workdir=runs/forgetting [--seeds=3]     # a second call goes on where the first was stopped

A synthetic world that is small enough to be memorised: 100 people, each written about in eight ways, read sixteen times. `ntp`,
`loss` and `lacy` train at equal steps, data and seeds. Then a fact of every other person is changed in the database that the
cascade asks, and then deleted, and `lacy evaluate --suite=edit` asks for it again: does the cascade state the new value, does it
leave the other facts alone, and what does the model state by itself after the deletion? In the terms of TOFU
(arXiv:2401.06121), the edited facts are the forget set and all others the retain set; `full`, `deleted` and `alone` are FULL,
DEL-ON and DEL-OFF of arXiv:2607.00605.

`get_config` args, comma-separated: a policy name (default lacy), `smoke` (seconds instead of minutes).
Cost: about four minutes a policy and seed on 2 CPU cores. Expected: `ntp` states many of the deleted facts by itself, `lacy` few, at equal
losses elsewhere. Not yet run at this size.
"""

from __future__ import annotations

import argparse
import pathlib
import runpy
import sys
from typing import Any

import ml_collections
import numpy as np

from lacy_jax import files
from lacy_jax.config import changed
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import LacyError
from lacy_jax.evaluation.edits import COLUMNS
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.evaluation.suites.suite import Request
from lacy_jax.formatting import aligned, percent
from lacy_jax.run_files import DATASET_FOLDER
from lacy_jax.training import load_run, train

POLICIES = {"ntp": "entropy", "loss": "call_margin", "lacy": "call_margin"}
"""Policy -> gate by which its model calls."""
_QUICKSTART = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    config = _QUICKSTART["get_config"](arg)
    config.name = "forgetting"
    config.dataset.path = "runs/forgetting/dataset"
    config.corpus.people = 40 if "smoke" in arg else 100
    config.corpus.texts_per_person = 8
    config.tokenizer.vocab_size = 1000
    config.train.eval_every = 0
    config.train.steps = 30 if "smoke" in arg else 1000
    config.checkpoint.keep = 1
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, edit, summarise; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/forgetting"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        cells = {
            policy: [cell(options.workdir, policy, seed, options.smoke) for seed in range(options.seeds)]
            for policy in POLICIES
        }
    except LacyError as error:
        print(f"forgetting: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "forgetting.json", cells)
    print(table(cells))
    return 0


def cell(workdir: pathlib.Path, policy: str, seed: int, smoke: bool) -> dict[str, Any]:
    """The figures of one run; read again if they are there.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    place = workdir / f"{policy}-{seed}"
    record = place / "forgetting.json"
    if record.exists():
        return files.read_json(record, "figures of a run")
    config = changed(
        get_config(policy + ",smoke" * smoke),
        {"seed": seed, "dataset.path": str(workdir / DATASET_FOLDER), "generate.gate": POLICIES[policy]},
    )
    build_dataset(config, config.dataset.path)
    done = train(config, place)
    if done.interrupted:
        raise LacyError("stopped; the same command goes on")
    figures = SUITES["edit"].run(Request(place, load_run(place).config, {}))
    figures = {"nll": done.valid["nll"], **figures}
    files.write_json(record, figures)
    return figures


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Mean over seeds of each figure, with the least and the greatest."""

    def shown(values: list[float], form: Any) -> str:
        return f"{form(np.mean(values))} ({form(min(values))} to {form(max(values))})"

    rows = [("", *cells)]
    rows.append(
        ("validation nll", *(shown([run["nll"] for run in runs], "{:.3f}".format) for runs in cells.values()))
    )
    for name, (condition, kind, which) in COLUMNS.items():
        of = {
            policy: [run["shares"][condition][kind][which] for run in runs] for policy, runs in cells.items()
        }
        rows.append((name, *(shown(values, percent) for values in of.values())))
    return "\n".join(aligned(rows))


if __name__ == "__main__":
    sys.exit(main())
