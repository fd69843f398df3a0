"""The comparison on real text: policies and seeds, each with its own best gate, on openings of Wikipedia biographies.

    python experiments/wiki_comparison.py --workdir=runs/wiki_comparison            # all of it; a second call goes on
    python experiments/wiki_comparison.py --workdir=W --size=6m --jobs=8 --model=hf:SMOLLM2.gguf    # on a GPU

Corpus, people, documents, database and judge are those of experiments/wiki_openings.py, labels by the parser that
`--parser` names. Each cell, one policy with one seed, is trained with equal optimiser steps, chooses its gate on held-out
people with the documents as partner, and then writes about people of the training text and people whom no model has read
about: alone, and at a call budget of 22 % (with documents also 5 and 10 %) with BM25 over documents, a database, and a
larger model. `ntp_equal` is `ntp` with fewer steps, so that it sees as many ground-truth targets as `lacy` does; `lacy_full` is
`lacy` with `objective.call_objective=full`; `judge` calls where the compact annotator, trained here on LMLM's annotations,
would look something up.
Every text is judged by FActScore with the embedded splitter and judge; leakage is measured with CALL off.

A finished cell is one JSON file of a few KB, WORKDIR/cells/SIZE/NAME.json; `--only=table` reads those. Intervals resample seeds
and people (`bootstrap_seeds_difference`).

`get_config` args, comma-separated: a policy, `seed=N`, a size (1m, 2m, 6m, 30m), `epochs=N`, `cpu` (8 rows, float32; what 1m and
2m have anyway), `smoke`.

Cost and results: docs/results/wiki_comparison.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time
from typing import Any

import jax
import ml_collections

from lacy_jax import cli, files
from lacy_jax.cascade import FactDatabase, Prompt
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.config import changed
from lacy_jax.dataset import build_dataset, read_metadata
from lacy_jax.errors import LacyError
from lacy_jax.evaluation.evaluate import evaluate_run
from lacy_jax.evaluation.factscore import KnowledgeSource
from lacy_jax.evaluation.run_texts import make_partner
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.evaluation.suites.suite import Request
from lacy_jax.labels import annotator
from lacy_jax.models import count_params
from lacy_jax.objectives import POLICIES as ALL_POLICIES
from lacy_jax.objectives import scored_gates
from lacy_jax.run_files import DATASET_FOLDER
from lacy_jax.studies.gate_study import Setting, gate_study, verdict_counts
from lacy_jax.studies.seed_study import seed_study, seed_table
from lacy_jax.training import load_run, train
from lacy_jax.training.reference import score_dataset

POLICIES = (
    "ntp", "ntp_equal", "loss", "rho", "spacy", "lacy", "lacy_full", "lacy_ignorefacts", "hardest", "judge",
)  # fmt: skip
VARIANTS = {"ntp_equal": "ntp", "lacy_full": "lacy"}
"""What is no policy of its own -> the policy that it is one of."""
ANNOTATED = "labels/lmlm/dwiki_1k_annotated_llama.json.xz"
"""LMLM's annotations, below the folder that LACY_DATA names."""
BUDGET = 0.22
DOCUMENTS = "documents"
BUDGETS = {DOCUMENTS: (0.05, 0.10, BUDGET), "database": (BUDGET,), "model": (BUDGET,)}
REACH = {DOCUMENTS: "span", "database": "span", "model": "token"}
SIZES = {
    "1m": {"d_model": 64, "n_heads": 2, "n_layers": 5, "d_ff": 192},
    "2m": {"d_model": 128, "n_heads": 4, "n_layers": 5, "d_ff": 384},
    "6m": {"d_model": 256, "n_heads": 4, "n_layers": 5, "d_ff": 704},
    "30m": {"d_model": 512, "n_heads": 8, "n_layers": 8, "d_ff": 1408},
}
PARTNER = "partner"
"""The cell of the larger model."""
DEV_PEOPLE = 40
LEAKAGE_QUESTIONS = 200
TOKENS_PER_EPOCH = 5.9e6
_OPENINGS = runpy.run_path(str(pathlib.Path(__file__).parent / "wiki_openings.py"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    size = next((word for word in words if word in SIZES), "2m")
    smoke = "smoke" in words
    policy = next((word for word in words if word in (*POLICIES, *ALL_POLICIES)), "lacy")
    config = _OPENINGS["get_config"](",".join([VARIANTS.get(policy, policy)] + ["smoke"] * smoke))
    config.name = "wiki_comparison"
    config.seed = int(given.get("seed", 0))
    config.dataset.path = "runs/wiki_comparison/dataset" + "_smoke" * smoke
    config.objective.reference = "dataset" if policy == "rho" else ""
    if not smoke:
        config.model.update(SIZES[size])
        on_cpu = "cpu" in words or size in ("1m", "2m")
        config.input.batch_size = 8 if on_cpu else 64
        tokens = TOKENS_PER_EPOCH * float(given.get("epochs", 1.2 if on_cpu else 5))
        config.train.steps = round(tokens / (config.input.batch_size * config.input.seq_len))
        config.model.dtype = "float32" if on_cpu else "bfloat16"
        config.train.eval_every = 0
        config.checkpoint.every = 500 if on_cpu else config.train.steps
        config.checkpoint.keep = 1
        config.train.log_every = 100
        config.generate.batch_size = 100
    if policy == "lacy_full":
        config.objective.call_objective = "full"
    if policy == "ntp_equal":  # `lacy` gives its call rate of the targets away.
        config.train.steps = round(config.train.steps * (1 - config.objective.call_rate))
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, write, judge, compare; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/wiki_comparison"))
    parser.add_argument("--size", default="2m", choices=SIZES)
    parser.add_argument("--epochs", default="", help="passes over the training text; default: by size")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--people", type=int, default=100, help="of each kind, seen and unseen")
    parser.add_argument(
        "--parser", default="", help="folder of a spaCy pipeline for the labels; default: config.labels"
    )
    parser.add_argument(
        "--model", default="", help="the larger model, as a partner is named; default: one trained here"
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in its own process")
    parser.add_argument("--cpu", action="store_true", help="8 rows a step and float32, whatever the size")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="of the settings only documents at 22 %% with the chosen gate, and alone",
    )
    parser.add_argument("--only", choices=("prepare", "table"), help="only this part")
    parser.add_argument("--cell", default="", help="POLICY,seed=N: only this cell")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        if options.cell:
            run_cell(options)
            return 0
        if options.only != "table":
            prepare(options)
            if "judge" in options.policies.split(","):
                annotate(options)
        if options.only is None:
            run_cells(options, sys.argv[1:] if argv is None else argv)
        if options.only != "prepare":
            result = seed_study(sorted(_cells(options).glob("*.json")), reference="lacy")
            files.write_json(options.workdir / "comparison.json", result)
            print(seed_table(result))
    except LacyError as error:
        print(f"wiki_comparison: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options: argparse.Namespace) -> None:
    """The dataset, the people, what their texts are judged by, documents and database."""
    workdir = options.workdir
    if (
        workdir / "people.json"
    ).exists():  # The last to be written; the rest may have been made on another machine.
        return
    config = _config(options, "ntp")
    if options.parser:
        config.labels.labeller, config.labels.spacy_model = "spacy", options.parser
    build_dataset(config, config.dataset.path)
    groups = _OPENINGS["choose_people"](options.people)
    others = _OPENINGS["choose_people"](options.people + DEV_PEOPLE)["unseen"]
    taken = {document.title for document in groups["unseen"]}
    dev = [document for document in others if document.title not in taken][:DEV_PEOPLE]
    everyone = [*itertools.chain(*groups.values()), *dev]
    KnowledgeSource.build(workdir / "knowledge.db", everyone)
    read = _OPENINGS["_read"]
    FactDatabase.build(
        workdir / "facts.db", _OPENINGS["_facts"](), read("bios_train", _OPENINGS["MAX_CHARS"])
    )
    PassageIndex.build(itertools.chain(everyone, read("bios_unseen"))).save(workdir / "passages")
    with open(workdir / "titles.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"title": d.title, "text": d.title}) + "\n" for d in read("bios_train"))
    named = {"dev": dev, **groups}
    files.write_json(
        workdir / "people.json", {kind: [d.title for d in documents] for kind, documents in named.items()}
    )


def annotate(options: argparse.Namespace) -> None:
    """The labels of policy `judge`, by an annotator that is trained first.

    Raises:
      LacyError: one of the two failed and has said why.
    """
    dataset, network = options.workdir / DATASET_FOLDER, options.workdir / "annotator.npz"
    if "judge" in read_metadata(dataset).extras:
        return
    config = f"--config={__file__}:judge" + ",smoke" * options.smoke
    judge = ["judge", config, f"--config.dataset.path={dataset}", f"--judge=annotator:{network}"]
    if annotator.main([str(_data() / ANNOTATED), f"--out={network}"]) or cli.main(judge):
        raise LacyError("no labels for policy judge")


def run_cells(options: argparse.Namespace, argv: list[str]) -> None:
    """All cells that are not finished, `--jobs` at a time; `rho` waits for its reference model.

    Raises:
      LacyError: some cells failed; names them.
    """
    policies = [name for name in options.policies.split(",") if name]
    cells = [f"{policy},seed={seed}" for seed in range(options.seeds) for policy in policies]
    cells = [cell for cell in cells if not _cell_file(options, cell).exists()]

    def start(cell: str) -> tuple[str, int]:
        log = options.workdir / "logs" / f"{_name(options, cell)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as out:
            done = subprocess.run(
                [sys.executable, __file__, *argv, f"--cell={cell}"], stdout=out, stderr=out, check=False
            )
        print(
            f"{cell}: {'done' if done.returncode == 0 else f'failed, see {log}'}", file=sys.stderr, flush=True
        )
        return cell, done.returncode

    if not _scored(options).exists() and any(_waits(options, cell) for cell in cells):
        cells.insert(0, PARTNER)  # The others wait for it.
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(start, cells))
    if failed := [cell for cell, code in results if code]:
        raise LacyError(f"cells failed: {' '.join(failed)}; the same command tries them again")


def run_cell(options: argparse.Namespace) -> None:
    """Train, choose a gate, write, judge; or, for `partner`, train the larger plain model and score the dataset with it."""
    workdir, place = options.workdir, options.workdir / "runs" / _name(options, options.cell)
    if options.cell == PARTNER:
        _scored(options).unlink(missing_ok=True)
        config = _config(options, "ntp")
        if not options.smoke:
            config.model.update(SIZES["6m" if options.size == "2m" else "30m"])
        train(config, place)
        files.write_json(_scored(options), score_dataset(place, config.dataset.path))
        return
    policy = options.cell.split(",")[0]
    config = _config(options, options.cell)
    if policy == "rho":
        _wait_for_partner(options)
    start = time.monotonic()
    done = train(config, place)
    if done.interrupted:
        raise LacyError("stopped; the same command goes on")
    trained_s = time.monotonic() - start
    if _waits(options, options.cell):
        _wait_for_partner(options)
    run = load_run(place)
    budgets = {DOCUMENTS: (BUDGET,)} if options.brief else BUDGETS
    titles = files.read_json(workdir / "people.json", "the people to write about")
    people = {k: [Prompt(re.sub(r"\s*\(.*\)$", "", t), t) for t in names] for k, names in titles.items()}
    specs = {
        DOCUMENTS: f"documents:{workdir / 'passages'}",
        "database": f"database:{workdir / 'facts.db'}",
        "model": options.model or f"checkpoint:{workdir / 'runs' / _name(options, PARTNER)}",
    }
    partners: dict[str, Any] = {
        name: (
            make_partner(changed(config, {"generate.partner": spec, "generate.partner_reach": REACH[name]})),
            REACH[name],
        )
        for name, spec in specs.items()
        if name in budgets
    }
    knowledge = KnowledgeSource(workdir / "knowledge.db")

    def study(
        folder: str, settings: list[Setting], groups: tuple[str, ...], budget: float
    ) -> list[dict[str, Any]]:
        chosen = {name: people[name] for name in groups}
        result = gate_study(
            settings, {policy: run}, partners, chosen, knowledge, place / folder, reference=(policy, "random"),
            budget=budget,
        )  # fmt: skip
        return [
            {
                **{key: row[key] for key in ("group", "gate", "partner", "call_share", "init_score")},
                "budget": budget,
                "verdicts": verdict_counts(
                    place / folder, row["group"], Setting(policy, row["gate"], row["partner"])
                ),
            }
            for row in result["rows"]
        ]

    uses_call = ALL_POLICIES[config.objective.policy].uses_call
    dev = study(
        "dev",
        [Setting(policy, gate, DOCUMENTS) for gate in (*scored_gates(uses_call), "calibrated")],
        ("dev",),
        BUDGET,
    )
    scores = {row["gate"]: row["init_score"] or 0.0 for row in dev}
    best = max(scores, key=scores.__getitem__)
    written: list[dict[str, Any]] = []
    for budget in sorted(set(itertools.chain(*budgets.values()))):
        settings = [
            Setting(policy, best, name) for name, of_partner in budgets.items() if budget in of_partner
        ]
        settings += [Setting(policy)] * (budget == BUDGET)
        if budget == BUDGET and not options.brief:
            settings += [Setting(policy, "oracle", "database")]
            settings += [Setting(policy, "random", DOCUMENTS)] * (best != "random")
        written += study(f"{budget:g}", settings, ("seen", "unseen"), budget)
    record = {
        "policy": policy,
        "seed": config.seed,
        "size": options.size,
        "parameters": count_params(run.definition.config),
        "steps": config.train.steps,
        "tokens": config.train.steps * config.input.batch_size * config.input.seq_len,
        "train_s": round(trained_s, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "valid": done.valid,
        "gate": best,
        "held_out": _held_out(place),
        "dev": scores,
        "rows": written,
        "leakage": _leakage(place, workdir),
    }
    files.write_json(_cell_file(options, options.cell), record)


def _waits(options: argparse.Namespace, cell: str) -> bool:
    """Whether a cell needs the larger model that is trained here: as partner, or as reference."""
    return not (options.model or options.brief) or cell.startswith("rho,")


def _wait_for_partner(options: argparse.Namespace) -> None:
    """Until the larger model is trained and has scored the dataset, in another process.

    Raises:
      LacyError: that failed.
    """
    while not (done := _scored(options)).exists():
        time.sleep(1)
    if "failed" in (record := files.read_json(done, "the larger model's record")):
        raise LacyError(f"the larger model failed: {record['failed']}")


def _scored(options: argparse.Namespace) -> pathlib.Path:
    return options.workdir / f"{_name(options, PARTNER)}.json"


def _held_out(place: pathlib.Path) -> dict[str, Any]:
    """Of `evaluate_run` on the validation split: losses, and each gate's AUROC and facts right by budget."""
    figures = evaluate_run(place)
    gates = {
        gate: {key: row[key] for key in ("wrong_fact_auroc", "wrong_fact_ap", "factual_right")}
        for gate, row in figures["gates"].items()
    }
    kept = ("tokens", "factual_rate", "wrong_fact_rate", "factual_right_alone", "nll")
    return {**{key: figures[key] for key in kept}, "gates": gates}


def _leakage(place: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """Shares of factual questions that the model answers by itself, by group; {} without the questions."""
    data = _data() / "factual"
    if not data.exists():
        return {}
    options = {"data": str(data), "limit": LEAKAGE_QUESTIONS, "seen": str(workdir / "titles.jsonl")}
    figures = SUITES["leakage"].run(Request(place, load_run(place).config, options))
    kept = {"all": figures["all"], **figures["groups"]}
    return {name: {key: one[key] for key in ("questions", "share")} for name, one in kept.items()}


def _data() -> pathlib.Path:
    return pathlib.Path(os.environ.get("LACY_DATA", "../shared/data"))


def _config(options: argparse.Namespace, cell: str) -> ml_collections.ConfigDict:
    words = [cell, options.size] + ["smoke"] * options.smoke + ["cpu"] * options.cpu
    config = get_config(",".join(words + [f"epochs={options.epochs}"] * bool(options.epochs)))
    return changed(config, {"dataset.path": str(options.workdir / DATASET_FOLDER)})


def _name(options: argparse.Namespace, cell: str) -> str:
    words = [options.size, *filter(None, cell.replace("seed=", "").split(","))]
    return "-".join(words + [f"epochs{options.epochs}"] * bool(options.epochs))


def _cell_file(options: argparse.Namespace, cell: str) -> pathlib.Path:
    return _cells(options) / f"{_name(options, cell)}.json"


def _cells(options: argparse.Namespace) -> pathlib.Path:
    """The finished cells of one size and training time, which are compared with each other."""
    return options.workdir / "cells" / _name(options, "")


if __name__ == "__main__":
    sys.exit(main())
