"""How good are the labellers? Each against the full rules on stored parses, and against human-annotated mentions.

    python benchmarks/label_quality.py [--quick] [--json] [--data FOLDER] [--spacy-model NAME] [--redocred-parses FILE]
    python benchmarks/label_quality.py --shares [--quick] [--data FOLDER] [--spacy-model NAME]
    python benchmarks/label_quality.py --differences N --spacy-model NAME [--data FOLDER]

Reads labels/parsed_valid.jsonl.xz, labels/redocred_dev.json.xz and the 32,000-piece tokenizer of FOLDER (default:
$LACY_DATA, else ../shared/data). Counted per SentencePiece token. The last line is one JSON object with these keys:

  benchmark     "label_quality"
  labellers     by name: `precision`, `recall`, `f1` of factual tokens against the full rules on the stored parses
                (held out from the bundled tagger's training); `factual_rate`; `nongrammatical_f1`; `against_spacy`, the
                `f1` against the rules on the pipeline, if there is one;
                `redocred_recall`: annotated entities (but the subject) whose first mention is marked; `version`
  by_rule       `bundled` against the pipeline, if there is one: rule -> `tokens` that the pipeline marks by it, `recall` of
                these, `marked` by the tagger by it, `precision` of these
  documents, tokens, redocred_entities

Labellers: `rules`, `bundled`, `spacy:NAME` where that pipeline is installed, and `full`, the rules on the stored
parses themselves. `full` gets a `redocred_recall` from parses of the same texts, if --redocred-parses has them
(benchmarks/redocred.py writes the texts, benchmarks/parse_texts.py parses them).

With --shares: the factual share of tokens, by the full rules on the first 2,000 openings of labels/parsed_train.jsonl.xz, and by the
model-free rules and the bundled tagger on these and on the texts of wiki/ (of bios_train every 20th); by the pipeline on every
5th of these (all of general_valid). Each where first mentions count per document, and (`/256`) per window of 256 tokens (`labels.first_mention`).
Of the whole articles that no tagger has seen also the F1 against the pipeline (`, f1`). The last line is one JSON object: text, labeller -> share.

With --differences: N places, drawn at random from whole articles that no tagger has seen (wiki/general_valid.jsonl.xz, and every
8th of wiki/bios_unseen.jsonl.xz), which either the tagger or the pipeline marks, to be read; the last line counts all of them.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from redocred import AnnotatedText, read_redocred

from lacy_jax.corpus.compression import read_lines
from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError, LacyError
from lacy_jax.json_lines import objects
from lacy_jax.labels import BundledLabeller, Labeller, Labels, RuleLabeller, SpacyLabeller, align, label_parse
from lacy_jax.labels.parse import Parse, parse_of_record
from lacy_jax.labels.registry import is_installed
from lacy_jax.labels.windows import in_windows
from lacy_jax.tokenizer import Tokenizer

USUAL = "en_core_web_sm"
"""The pipeline that is looked for unasked."""
WINDOW = 256
SOME = 5
"""With --shares the pipeline parses one text in so many."""
UNSEEN = ("bios_unseen", "general_valid")
"""Whole articles that no tagger was trained on."""
TOKENIZER = "tokenizers/sentencepiece_cc_all.32000.100extra.model"


class ParsedLabeller:
    """The full rules on parses made beforehand, by text."""

    name = "full"
    version = "stored parses"

    def __init__(self, parses: dict[str, Parse]):
        self._parses = parses

    def label(self, document: Document) -> Labels:
        """Labels of a text that was parsed."""
        return label_parse(self._parses[document.text], document.title)


def records(path: str | pathlib.Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line."""
    lines = (line for _, line in itertools.islice(read_lines(str(path)), limit))
    yield from (record for _, record in objects(lines, str(path)))


def agreement(
    found: list[Labels], reference: list[Labels], documents: list[Document], tokenizer: Tokenizer
) -> dict[str, float]:
    """Precision, recall and F1 of one labeller's labels against another's, per token."""
    counts = np.zeros((2, 3), np.int64)  # factual, non-grammatical x (both, the labeller's, the reference's)
    tokens = 0
    for document, mine, full in zip(documents, found, reference, strict=True):
        _, starts, ends = tokenizer.encode_with_offsets(document.text)
        for row, kind in enumerate(("factual", "nongrammatical")):
            a, b = (align(getattr(labels, kind), starts, ends, document.text) for labels in (mine, full))
            counts[row] += (a & b).sum(), a.sum(), b.sum()
        tokens += len(starts)
    (both, marked, wanted), other = counts.tolist()
    return {
        "precision": round(both / max(marked, 1), 4),
        "recall": round(both / max(wanted, 1), 4),
        "f1": round(2 * both / max(marked + wanted, 1), 4),
        "factual_rate": round(marked / max(tokens, 1), 4),
        "nongrammatical_f1": round(2 * other[0] / max(other[1] + other[2], 1), 4),
    }


def by_rule(
    found: list[Labels], reference: list[Labels], documents: list[Document], tokenizer: Tokenizer
) -> dict[str, dict[str, float]]:
    """See the module's docstring, `by_rule`."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for document, mine, full in zip(documents, found, reference, strict=True):
        _, starts, ends = tokenizer.encode_with_offsets(document.text)
        for column, (labels, other) in enumerate(((full, mine), (mine, full))):
            marked = align(other.factual, starts, ends, document.text)
            for span, reason in zip(labels.factual, labels.reasons, strict=True):
                first, last = np.searchsorted(ends, span[0], "right"), np.searchsorted(starts, span[1])
                own = align([span], starts[first:last], ends[first:last], document.text)
                counts[reason][2 * column] += int(own.sum())
                counts[reason][2 * column + 1] += int((own & marked[first:last]).sum())
    return {
        rule: {
            "tokens": wanted, "recall": round(both / max(wanted, 1), 3),
            "marked": marked, "precision": round(right / max(marked, 1), 3),
        }
        for rule, (wanted, both, marked, right) in sorted(counts.items())
    }  # fmt: skip


def differences(document: Document, tagger: Labels, pipeline: Labels) -> Iterator[str]:
    """The runs of words that only one of two labellers marks, each as one line with its surroundings."""
    text = document.text
    marks = np.zeros((2, len(text)), bool)
    for row, labels in enumerate((tagger, pipeline)):
        for start, end in labels.factual:
            marks[row, start:end] = True
    runs: list[tuple[int, int, int]] = []  # (start, end, which of the two marks it)
    for word in re.finditer(r"\w+", text):
        start, end = word.span()
        either = marks[:, start:end].any(1)
        if either[0] == either[1]:
            continue
        who = int(either[1])
        if runs and runs[-1][2] == who and not re.search(r"\w", text[runs[-1][1] : start]):
            start = runs.pop()[0]
        runs.append((start, end, who))
    for start, end, who in runs:
        labels, other = (tagger, pipeline) if who == 0 else (pipeline, tagger)
        rules = [r for (a, b), r in zip(labels.factual, labels.reasons, strict=True) if a < end and start < b]
        again = any(a < end and start < b for a, b in other.repeats)
        before, after = text[max(start - 100, 0) : start], text[end : end + 60]
        yield (
            f"{'tagger' if who == 0 else 'pipeline'} marks ({', '.join(rules)}){', a repeat to the other' if again else ''} | "
            f"{document.title} | {before}[[{text[start:end]}]]{after}"
        ).replace("\n", " / ")


def sampled_differences(data: pathlib.Path, count: int, spacy_model: str) -> dict[str, Any]:
    """Print `count` differences; see the module's docstring. Returns how many there are."""
    tagger, pipeline = BundledLabeller(), SpacyLabeller(spacy_model)
    lines = []
    for name, step in (("general_valid", 1), ("bios_unseen", 8)):
        for record in itertools.islice(records(data / "wiki" / f"{name}.jsonl.xz"), 0, None, step):
            document = Document("", record["text"], record["title"])
            lines += differences(document, tagger.label(document), pipeline.label(document))
    for number, line in enumerate(random.Random(0).sample(lines, min(count, len(lines))), 1):
        print(f"{number}. {line}")
    return {"differences": len(lines), "tagger": tagger.version, "pipeline": pipeline.version}


def mention_recall(labeller: Labeller, texts: list[AnnotatedText]) -> float:
    """Share of annotated entities whose first mention overlaps a factual span; the text's subject is left out."""
    found = total = 0
    for annotated in texts:
        factual = labeller.label(Document(annotated.title, annotated.text, annotated.title)).factual
        for start, end in annotated.first_mentions:
            total += 1
            found += any(a < end and start < b for a, b in factual)
    return found / max(total, 1)


def share(name: str, labelled: Iterable[tuple[Document, Labels]], tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of factual tokens of texts with their labels, by how first mentions are counted."""
    factual, tokens = np.zeros(2), 0
    for document, labels in labelled:
        _, starts, ends = tokenizer.encode_with_offsets(document.text)
        windowed = in_windows(labels, document.text, starts[WINDOW::WINDOW].tolist())
        for row, own in enumerate((labels, windowed)):
            factual[row] += int(align(own.factual, starts, ends, document.text).sum())
        tokens += len(starts)
    per_document, per_window = (round(float(count) / max(tokens, 1), 4) for count in factual)
    return {name: per_document, f"{name}/{WINDOW}": per_window}


def shares(data: pathlib.Path, limit: int | None, spacy_model: str) -> dict[str, float]:
    """See the module's docstring, --shares; `limit`: texts of each kind."""
    tokenizer = Tokenizer.load(data / TOKENIZER)
    labellers: list[tuple[Labeller, bool]] = [(RuleLabeller(), False), (BundledLabeller(), False)]
    if spacy_model != USUAL or is_installed(USUAL):
        labellers.append((SpacyLabeller(spacy_model), True))
    parses = [
        (parse_of_record(record), record["title"])
        for record in records(data / "labels" / "parsed_train.jsonl.xz", limit or 2000)
    ]
    full = ((Document("", p.text, title), label_parse(p, title)) for p, title in parses)
    found = share("parsed_train, full", full, tokenizer)
    texts = {"parsed_train": [Document("", p.text, title) for p, title in parses]}
    for name, step in (("bios_train", 20), ("bios_unseen", 1), ("general_valid", 1)):
        chosen = itertools.islice(records(data / "wiki" / f"{name}.jsonl.xz", limit), 0, None, step)
        texts[name] = [Document("", record["text"], record["title"]) for record in chosen]
    for name, documents in texts.items():
        some = 1 if name == "general_valid" else SOME
        kept: dict[str, list[Labels]] = {}  # Of the texts that the pipeline parses, too.
        for labeller, slow in labellers:
            step = some if slow else 1
            labels = [labeller.label(document) for document in documents[::step]]
            found |= share(f"{name}, {labeller.name}", zip(documents[::step], labels), tokenizer)
            kept[labeller.name] = labels[:: some // step]
        *others, last = kept
        for other in others if name in UNSEEN and len(kept) > 2 else ():
            figures = agreement(kept[other], kept[last], documents[::some], tokenizer)
            found[f"{name}, {other}, f1"] = figures["f1"]
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures; see the module's docstring."""
    data = pathlib.Path(args.data or os.environ.get("LACY_DATA", "../shared/data"))
    if not (data / "labels" / "parsed_valid.jsonl.xz").is_file():
        raise DataError(f"no labels/parsed_valid.jsonl.xz in {data}: give --data=FOLDER or set LACY_DATA")
    limit = 60 if args.quick else None
    if args.shares:
        return shares(data, limit, args.spacy_model)
    if args.differences:
        return sampled_differences(data, args.differences, args.spacy_model)
    tokenizer = Tokenizer.load(data / TOKENIZER)
    valid = [
        (parse_of_record(record), record["title"])
        for record in records(data / "labels" / "parsed_valid.jsonl.xz", limit)
    ]
    texts = list(itertools.islice(read_redocred(data / "labels" / "redocred_dev.json.xz"), limit))
    labellers: list[Labeller] = [RuleLabeller(), BundledLabeller()]
    if args.spacy_model != USUAL or is_installed(USUAL):
        labellers.append(SpacyLabeller(args.spacy_model))
    parses = {parse.text: parse for parse, _ in valid}
    if args.redocred_parses:
        parses |= {r["text"]: parse_of_record(r) for r in records(args.redocred_parses)}
    labellers.append(ParsedLabeller(parses))
    figures: dict[str, dict[str, Any]] = {}
    documents = [Document("", parse.text, title) for parse, title in valid]
    labelled = {labeller.name: [labeller.label(document) for document in documents] for labeller in labellers}
    pipeline = next((name for name in labelled if name.startswith("spacy:")), None)
    for labeller in labellers:
        human = all(t.text in parses for t in texts) or labeller.name != "full"
        mine = labelled[labeller.name]
        against = agreement(mine, labelled[pipeline], documents, tokenizer)["f1"] if pipeline else None
        figures[labeller.name] = {
            **agreement(mine, labelled["full"], documents, tokenizer),
            "against_spacy": against,
            "redocred_recall": round(mention_recall(labeller, texts), 4) if human else None,
            "version": labeller.version,
        }
    rules = by_rule(labelled["bundled"], labelled[pipeline], documents, tokenizer) if pipeline else None
    return {
        "benchmark": "label_quality",
        "labellers": figures,
        "by_rule": rules,
        "documents": len(valid),
        "tokens": sum(len(tokenizer.encode(parse.text)) for parse, _ in valid),
        "redocred_entities": sum(len(text.first_mentions) for text in texts),
    }


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: 60 documents of each kind")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument(
        "--data", default="", help="folder of real text; default $LACY_DATA or ../shared/data"
    )
    parser.add_argument(
        "--spacy-model", default=USUAL, help="measured too; the default only where it is installed"
    )
    parser.add_argument("--redocred-parses", default="", help="parsed Re-DocRED texts, for `full`")
    parser.add_argument("--shares", action="store_true", help="the factual share of tokens, by text")
    parser.add_argument("--differences", type=int, default=0, metavar="N", help="so many, to be read")
    args = parser.parse_args()
    try:
        result = run(args)
    except LacyError as error:
        print(f"benchmarks/label_quality.py: {error}", file=sys.stderr)
        return 2
    if not args.json and not args.shares and not args.differences:
        columns = (
            "precision",
            "recall",
            "f1",
            "factual_rate",
            "nongrammatical_f1",
            "redocred_recall",
            "against_spacy",
        )
        print(f"{'labeller':>24}  " + "  ".join(f"{column:>17}" for column in columns))
        for name, figures in result["labellers"].items():
            values = ("-" if figures[c] is None else f"{figures[c]:.4f}" for c in columns)
            print(f"{name:>24}  " + "  ".join(f"{value:>17}" for value in values))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
