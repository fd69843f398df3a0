"""Go on from a public model: add a CALL head to it and continue pretraining with delegation.

    lacy import  --from=MODEL --workdir=runs/base     # a Hugging Face folder or a GGUF file: docs/export.md
    lacy prepare --config=experiments/continue_from_hf.py:runs/base   # text labelled and tokenised with *its* tokenizer
    lacy train   --config=experiments/continue_from_hf.py:runs/base --workdir=runs/continued
    lacy export  --workdir=runs/continued                             # back to a Hugging Face folder, with <CALL>

    python experiments/continue_from_hf.py --base=runs/base --workdir=runs/ways      # the ways below, compared; a second call goes on

The base model's parameters are the start (`train.init_from`); its dimensions and its tokenizer are taken from its run
directory. The CALL vector starts as the mean of the head's rows: c is then the mean of the base logits, so CALL begins
as likely as an average piece and learns its place from the delegated targets (arXiv:2602.12005 §4). It has 15 times the
learning rate of the rest, which knows its language already.

`get_config` args, comma-separated:
  RUN_DIR    of `lacy import` (needed).
  call_only  only the CALL vector is trained, and the model stays what it was.
  last=N     only the CALL vector, the final norm and the last N layers.
  renormalised   the paper's loss (`objective.call_objective`) instead of `full`, by which also targets that are not
             delegated teach CALL: a few hundred steps of it make a far better gate (docs/results/continue.md).
  seed=N     instead of 0.
  steps=N    instead of 32, each of 4 x 256 positions; a tenth of them warm-up.
  smoke      12 steps of 8 x 32 tokens on 200 documents of the embedded world; needs no data.
  POLICY     ntp, spacy_ref ... instead of lacy.

Text: openings (500 characters) of Wikipedia biographies, `wiki/bios_train.jsonl.xz` below the folder that the environment
variable LACY_DATA names; `--config.corpus.path=FILE.jsonl` for your own, and `--config.corpus.max_chars=0` for whole texts.
The comparison trains six ways, measures their gates as detectors on held-out people of that text, and writes about
`--people` others, of the articles `wiki/bios_unseen.jsonl.xz`, alone and with the documents as partner; FActScore by the
embedded judge. Cost, from SmolLM2-135M on a CPU core beside other work: 2 to 25 s a step, of which each way takes `--steps`, and the texts.
Results: docs/results/continue.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import random
import statistics
import sys
from typing import Any

import ml_collections

from lacy_jax import files
from lacy_jax.cascade import Prompt, get_partner
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.config import changed, get_default_config, read_run_config
from lacy_jax.corpus import open_corpus
from lacy_jax.dataset import build_dataset, read_metadata
from lacy_jax.default_config import CALL_OBJECTIVES
from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.evaluation.detectors import bootstrap_ratio_difference
from lacy_jax.evaluation.evaluate import evaluate_run
from lacy_jax.evaluation.factscore import KnowledgeSource
from lacy_jax.formatting import aligned, percent
from lacy_jax.labels.layout import subject_name
from lacy_jax.models import resolve_model_config
from lacy_jax.objectives import POLICIES
from lacy_jax.run_files import DATASET_FOLDER, EVALUATION_FILE, METADATA_FILE, STUDY_FILE, TOKENIZER_FILE
from lacy_jax.studies.gate_study import Setting, gate_study, study_table, supported_shares, verdict_counts
from lacy_jax.training import load_run, read_metrics, train
from lacy_jax.training.state import ModelDefinition

_TRAINED = {"call_only": "call_only", "last_4": "last=4", "everything": ""}
WAYS = {name: f"{args},renormalised" for name, args in _TRAINED.items()}
WAYS |= {f"{name}_full": args for name, args in _TRAINED.items()}
"""Name of a way to train -> its args."""
TRAINED_GATES, OTHER_GATES = ("call_margin", "call_logit"), ("entropy", "margin")
PARTNER, GROUP = "documents", "unseen"
BUDGET = 0.22
MEASURED_BATCHES = 12


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    smoke, call_only = "smoke" in words, "call_only" in words
    policies = [word for word in words if word in POLICIES]
    objectives = [word for word in words if word in CALL_OBJECTIVES]
    last, steps, seeds = (
        [w.removeprefix(name) for w in words if w.startswith(name)] for name in ("last=", "steps=", "seed=")
    )
    known = {"smoke", "call_only", *policies, *objectives, *(f"last={count}" for count in last)}
    bases = [word for word in words if word not in known and not word.startswith(("steps=", "seed="))]
    given = (policies, objectives, [*last, *["call"] * call_only], steps, seeds)
    if len(bases) != 1 or max(map(len, given)) > 1:
        raise ConfigError(
            f"continue_from_hf.py:{arg}: expected RUN_DIR of lacy import, and at most smoke, one policy, one call "
            "objective, call_only or last=N, steps=N and seed=N"
        )
    if last and not (last[0].isdecimal() and int(last[0])):
        raise ConfigError(f"continue_from_hf.py:{arg}: last={last[0]}: expected a number of layers")
    if steps and not (steps[0].isdecimal() and int(steps[0])):
        raise ConfigError(f"continue_from_hf.py:{arg}: steps={steps[0]}: expected a number of steps")
    if seeds and not seeds[0].isdecimal():
        raise ConfigError(f"continue_from_hf.py:{arg}: seed={seeds[0]}: expected a whole number")
    base = bases[0]
    config = get_default_config()
    config.name = "continue_from_hf"
    config.seed = int(seeds[0]) if seeds else 0
    config.model = read_run_config(base).model
    config.train.init_from = base
    config.tokenizer.path = os.path.join(base, TOKENIZER_FILE)
    config.dataset.path = os.path.join(base, DATASET_FOLDER + ("_smoke" if smoke else ""))
    config.objective.policy = policies[0] if policies else "lacy"
    config.objective.call_objective = objectives[0] if objectives else "full"
    if call_only:
        config.train.trainable = ("call",)
    elif last:
        layers = (f"blocks.-{number + 1}.*" for number in range(int(last[0])))
        config.train.trainable = ("call", "final_norm.*", *layers)

    if smoke:
        config.corpus.people, config.corpus.texts_per_person = 200, 1
        config.dataset.valid_fraction = 0.1
    else:
        config.corpus.kind = "jsonl"
        config.corpus.path = _wiki("bios_train")
        config.corpus.max_chars = 500
        config.corpus.max_documents = 4000
        config.dataset.valid_fraction = 0.04
        config.dataset.workers = 2
    config.dataset.shards = 1 if smoke else 8
    config.input.seq_len = 32 if smoke else 256
    config.input.batch_size = 8 if smoke else 4
    config.train.steps = int(steps[0]) if steps else 12 if smoke else 32
    config.train.log_every = 2 if smoke else 4
    config.train.eval_every = 6 if smoke else 0
    config.train.eval_batches = 2
    config.checkpoint.every = 6 if smoke else max(config.train.steps // 2, 1)
    config.checkpoint.keep = 1
    config.optimizer.learning_rate = 2e-4
    config.optimizer.lr_scale = (("call", 15.0),)
    config.optimizer.warmup_steps = max(config.train.steps // 10, 1) if steps else 4
    config.model.dropout = 0.0
    config.model.dtype = "float32" if smoke else "bfloat16"  # Public models are made for it.
    config.model.remat = "none"
    config.generate.max_new_tokens = 16 if smoke else 64
    config.generate.batch_size = 30
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, measure, write, judge; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base", required=True, help="run directory of lacy import")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/continue"))
    parser.add_argument("--steps", type=int, help="of each way; default: see get_config")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them")
    parser.add_argument("--people", type=int, default=30, help="to write about; 0 = only train and measure")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        ways = options.ways.split(",")
        if unknown := [way for way in ways if way not in WAYS]:
            raise ConfigError(f"--ways: {unknown[0]!r} is none of {', '.join(WAYS)}")
        measured = {way: train_and_measure(options, way) for way in ways}
        files.write_json(options.workdir / "ways.json", measured)
        print(gates_table(measured), flush=True)
        if options.people:
            result = write_and_judge(options, ways)
            files.write_json(options.workdir / STUDY_FILE, result)
            print(f"{study_table(result)}\n\n{own_table(options.workdir, ways)}")
    except LacyError as error:
        print(f"continue_from_hf: {error}", file=sys.stderr)
        return 2
    return 0


def train_and_measure(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """The figures of `evaluate_run`, and what the training took; not done again if they are there.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    config, place = _config(options, way), options.workdir / way
    dataset = pathlib.Path(config.dataset.path)
    # It may have been made on another machine: one with a GPU has no parser, perhaps, and not the whole text.
    metadata = (
        read_metadata(dataset) if (dataset / METADATA_FILE).exists() else build_dataset(config, dataset)
    )
    if train(config, place).interrupted:
        raise LacyError("stopped; the same command goes on")
    stored = place / EVALUATION_FILE
    figures = (
        files.read_json(stored, "figures of a run")
        if stored.exists()
        else evaluate_run(place, batches=MEASURED_BATCHES)
    )
    steps = [line["step_s"] for line in read_metrics(place) if "step_s" in line]
    dimensions = resolve_model_config(config.model, metadata.vocab_size, config.input.seq_len)
    return {
        "trained": ModelDefinition(dimensions, config.train.trainable).trained.count,
        "positions": config.train.steps * config.input.batch_size * config.input.seq_len,
        "step_s": statistics.median(steps),
        **figures,
    }


def gates_table(measured: dict[str, dict[str, Any]]) -> str:
    """One row per way and gate: losses, and the gate as a detector of wrong facts."""
    head = ["", "trained", "positions", "s/step", "nll", "factual", "other", "gate", "AUROC", "AP"]
    rows = [[*head, "label AUROC", *(f"right at {share}" for share in ("5 %", "10 %", "22 %"))]]
    for way, figures in measured.items():
        first = [way, f"{figures['trained']:,}", f"{figures['positions']:,}", f"{figures['step_s']:.2f}"]
        first += [f"{figures['nll'][name]:.4f}" for name in ("all", "factual", "other")]
        for gate, row in figures["gates"].items():
            values = [f"{row[key]:.4f}" for key in ("wrong_fact_auroc", "wrong_fact_ap", "label_auroc")]
            rows.append([*first, gate, *values, *map(percent, row["factual_right"].values())])
    some = next(iter(measured.values()))
    held_out = f"{some['tokens']} held-out targets, {percent(some['factual_rate'])} factual, "
    return "\n".join(
        [held_out + f"{percent(some['wrong_fact_rate'])} wrong facts of {some['run']}", *aligned(rows)]
    )


def write_and_judge(options: argparse.Namespace, ways: list[str]) -> dict[str, Any]:
    """Texts about people whom the training text does not have, by each way and gate, judged; see `gate_study`."""
    workdir = options.workdir
    articles, people = workdir / "passages", workdir / "knowledge.db"
    config = _config(options, ways[0])
    if not options.smoke:
        config = changed(
            config,
            {"corpus.path": _wiki("bios_unseen"), "corpus.max_chars": 0, "corpus.max_documents": 0},
        )
    everyone = [document for document in open_corpus(config.corpus) if document.title]
    chosen = random.Random(0).sample(everyone, min(options.people, len(everyone)))
    if not articles.exists():
        PassageIndex.build(everyone).save(articles)
    knowledge = KnowledgeSource(people) if people.exists() else KnowledgeSource.build(people, chosen)
    partner = get_partner(f"documents:{articles}", reach="span")
    assert partner is not None
    settings = []
    for way in ways:
        # A model of which only the CALL vector was trained writes and hesitates as the base model does, once for both.
        own = way != "call_only_full" or "call_only" not in ways
        settings += [Setting(way), Setting(way, "random", PARTNER)] * own
        settings += [Setting(way, gate, PARTNER) for gate in (*TRAINED_GATES, *OTHER_GATES * own)]
    runs = {way: load_run(workdir / way) for way in ways}
    # A gate is calibrated on four validation batches: two rows each are enough for a quantile.
    runs = {
        way: dataclasses.replace(run, config=changed(run.config, {"input.batch_size": 2}))
        for way, run in runs.items()
    }
    prompts = [Prompt(subject_name(document.title), document.title) for document in chosen]
    return gate_study(
        settings, runs, {PARTNER: (partner, "span")}, {GROUP: prompts}, knowledge, workdir,
        reference=(ways[-1], TRAINED_GATES[0]), budget=BUDGET,
    )  # fmt: skip


def own_table(workdir: pathlib.Path, ways: list[str]) -> str:
    """FActScore without length penalty: each trained gate minus the other gates of the same model, paired over people."""
    rows = [["", *(f"minus {gate} (95 %)" for gate in OTHER_GATES)]]
    for way in ways:
        plain = "call_only" if way == "call_only_full" and "call_only" in ways else way
        others = [
            supported_shares(verdict_counts(workdir, GROUP, Setting(plain, gate, PARTNER)))
            for gate in OTHER_GATES
        ]
        for gate in TRAINED_GATES:
            own = supported_shares(verdict_counts(workdir, GROUP, Setting(way, gate, PARTNER)))
            gaps = [bootstrap_ratio_difference(*own, *other) for other in others]
            shown = [
                f"{100 * gap.estimate:+.1f} ({100 * gap.low:.1f} to {100 * gap.high:.1f})" for gap in gaps
            ]
            rows.append([f"{way} + {gate}", *shown])
    return "\n".join(aligned(rows))


def _config(options: argparse.Namespace, way: str) -> ml_collections.ConfigDict:
    words = [options.base, WAYS[way], f"seed={options.seed}", *["smoke"] * options.smoke]
    words += [f"steps={options.steps}"] * bool(options.steps)
    return changed(get_config(",".join(words)), {"dataset.path": str(options.workdir / DATASET_FOLDER)})


def _wiki(name: str) -> str:
    return os.path.join(os.environ.get("LACY_DATA", "../shared/data"), "wiki", f"{name}.jsonl.xz")


if __name__ == "__main__":
    sys.exit(main())
