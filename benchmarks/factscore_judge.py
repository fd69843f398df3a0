"""How far can the embedded judges be trusted? Against people's labels, and on texts of which we know what is wrong.

    python benchmarks/factscore_judge.py [--quick] [--json] [--data FOLDER]

Reads factual/factscore_labeled/*.jsonl and wiki/*bios*.jsonl.xz of FOLDER (default: $LACY_DATA, else ../shared/data). The last line is
one JSON object with these keys:

  benchmark   "factscore_judge"
  people      judge: {system: accuracy against people's labels, "all": of both}
  trusted     the lenient judge with other values of `judging.TRUSTED`: value: {system: accuracy}
  crossed     {system: (the value that is best on the other system, accuracy with it on this one)}, and "all"
  mixed       share of wrong facts: judge: {"accuracy", "right" (share of true facts supported), "wrong" (of false ones)}.
              A text is what the splitter makes of the first sentence of a person's article in wiki/bios_unseen; a wrong fact is one of
              another person, of the same kind, with the name changed
  texts       how many texts those are
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from lacy_jax.cascade.passages import read_documents
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation.factscore import (
    ClauseSplitter,
    EmbeddedJudge,
    Entry,
    Judge,
    KnowledgeSource,
    agreement,
    agreement_table,
    judging,
    read_entries,
)
from lacy_jax.evaluation.factscore.splitting import normal_topic

JUDGES: dict[str, Judge] = {"embedded": EmbeddedJudge(), "lenient": EmbeddedJudge(lenient=True)}
VALUES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WRONG = (0.0, 0.25, 0.5, 0.75, 1.0)


def accuracies(systems: dict[str, list[Entry]], judge: Judge, knowledge: KnowledgeSource) -> dict[str, float]:
    """Accuracy against people, per cent, by system and over all facts."""
    found = {name: agreement({name: entries}, judge, knowledge) for name, entries in systems.items()}
    facts = sum(result["facts"] for result in found.values())
    whole = sum(result["accuracy"] * result["facts"] for result in found.values()) / facts
    return {
        **{name: round(100 * result["accuracy"], 1) for name, result in found.items()},
        "all": round(100 * whole, 1),
    }


def by_trust(systems: dict[str, list[Entry]], knowledge: KnowledgeSource) -> dict[float, dict[str, float]]:
    """The lenient judge's accuracies by `TRUSTED`."""
    usual, found = judging.TRUSTED, {}
    try:
        for value in VALUES:
            judging.TRUSTED = value
            found[value] = accuracies(systems, JUDGES["lenient"], knowledge)
    finally:
        judging.TRUSTED = usual
    return found


def crossed(table: dict[float, dict[str, float]]) -> dict[str, tuple[float, float]]:
    """By system: the value that is best on the other one (of equals the middle), and this system's accuracy with it."""
    systems = [name for name in next(iter(table.values())) if name != "all"]
    found = {}
    for name in systems:
        (other,) = set(systems) - {name}
        best = max(row[other] for row in table.values())
        equals = [value for value, row in table.items() if row[other] == best]
        chosen = equals[len(equals) // 2]
        found[name] = (chosen, table[chosen][name])
    return found


def texts(documents: list[Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, (kind, fact) of its first sentence) of each article whose first sentence states at least three facts."""
    splitter, found = ClauseSplitter(), []
    for document in documents:
        facts = [fact.text for fact in splitter.split(document.title, document.text.split("\n")[0])[0][1]]
        kinds = [(judging.kind_of_fact(document.title, fact), fact) for fact in facts]
        if len(kinds) >= 3:
            found.append((document.title, kinds))
    return found


def mixed(documents: list[Any], knowledge: KnowledgeSource, wrong: float) -> dict[str, dict[str, float]]:
    """Verdicts on texts in which a share of the facts is another person's."""
    rng = np.random.default_rng(0)
    all_texts = texts(documents)
    of_kind: dict[str, list[tuple[str, str]]] = {}
    for title, facts in all_texts:
        for kind, fact in facts:
            of_kind.setdefault(kind, []).append((title, fact))
    counts = {name: np.zeros((2, 2), np.int64) for name in JUDGES}
    for title, facts in all_texts:
        said, truth = [], []
        for kind, fact in facts:
            other, strange = of_kind[kind][rng.integers(len(of_kind[kind]))]
            swap = rng.random() < wrong and other != title
            said.append(strange.replace(normal_topic(other), normal_topic(title), 1) if swap else fact)
            truth.append(not swap or said[-1] in [own for _, own in facts])
        passages = [knowledge.retrieve(title, fact) for fact in said]
        for name, judge in JUDGES.items():
            for verdict, true in zip(judge.supported(title, said, passages), truth, strict=True):
                counts[name][int(true), int(bool(verdict))] += 1
    return {
        name: {
            "accuracy": round(100 * float(table.trace() / table.sum()), 1),
            "right": round(100 * float(table[1, 1] / max(table[1].sum(), 1)), 1),
            "wrong": round(100 * float(table[0, 1] / max(table[0].sum(), 1)), 1),
        }
        for name, table in counts.items()
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures; see the module's docstring."""
    data = pathlib.Path(args.data or os.environ.get("LACY_DATA", "../shared/data"))
    labelled = sorted((data / "factual" / "factscore_labeled").glob("*.jsonl"))
    if not labelled:
        raise DataError(
            f"no factual/factscore_labeled/*.jsonl in {data}: give --data=FOLDER or set LACY_DATA"
        )
    systems = {path.stem: read_entries(path) for path in labelled}
    topics = {entry.topic for entries in systems.values() for entry in entries}
    articles = "featured_bios.jsonl.xz" if args.quick else "*bios*.jsonl.xz"
    unseen = list(read_documents(str(data / "wiki" / "bios_unseen.jsonl.xz"), "--data"))
    unseen = unseen[: 100 if args.quick else 1000]
    with tempfile.TemporaryDirectory() as folder:
        known = (d for d in read_documents(str(data / "wiki" / articles), "--data") if d.title in topics)
        people = KnowledgeSource.build(pathlib.Path(folder) / "people.db", known)
        strangers = KnowledgeSource.build(pathlib.Path(folder) / "strangers.db", unseen)
        table = by_trust(systems, people)
        if not args.json:
            for judge in JUDGES.values():  # As `lacy evaluate --suite=judge` prints it.
                print(agreement_table(agreement(systems, judge, people)) + "\n")
        return {
            "benchmark": "factscore_judge",
            "people": {name: accuracies(systems, judge, people) for name, judge in JUDGES.items()},
            "trusted": table,
            "crossed": crossed(table),
            "mixed": {share: mixed(unseen, strangers, share) for share in WRONG},
            "texts": len(texts(unseen)),
        }


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: two people and 100 texts")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument(
        "--data", default="", help="folder of real text; default $LACY_DATA or ../shared/data"
    )
    args = parser.parse_args()
    try:
        result = run(args)
    except LacyError as error:
        print(f"benchmarks/factscore_judge.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        for name, row in result["people"].items():
            print(f"{name:>12} against people: {row}")
        for value, row in result["trusted"].items():
            print(f"  TRUSTED {value:.1f}: {row}")
        for name, (value, accuracy) in result["crossed"].items():
            print(f"  chosen on the other, {value:.1f}: {name} {accuracy}")
        for share, rows in result["mixed"].items():
            print(
                f"{100 * share:>3.0f} % wrong facts: "
                + "; ".join(f"{name} {row}" for name, row in rows.items())
            )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
