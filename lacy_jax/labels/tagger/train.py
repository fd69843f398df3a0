"""Train a tagger of your own: `python -m lacy_jax.labels.tagger.train PARSED.jsonl --out=FOLDER`.

Input: one JSON object per line, plain or .gz .bz2 .xz .zst. It is either already parsed (`text`, `tok`, `ents`,
`chunks`, as `labels.parse.parse_of_record` reads them) or plain (`text`) and parsed on the way by an installed spaCy
pipeline (`--teacher=en_core_web_lg`). `--valid` is held-out text in the same form, on which the factual labels of the
new tagger are scored against the full rules on its parses.

The result is a plain spaCy pipeline; use it with `--config.labels.labeller=bundled:FOLDER`. The shipped one was made by

    python benchmarks/tagger_texts.py > texts.jsonl
    python benchmarks/parse_texts.py ../shared/data/labels/en_core_web_sm-3.8.0 < texts.jsonl > parses.jsonl
    python -m lacy_jax.labels.tagger.train parses.jsonl --version=3.0.0 --out=lacy_jax/labels/tagger/model \\
        --source="openings and articles of Wikipedia, parsed by en_core_web_sm 3.8.0;"

The last line of output is JSON: precision, recall, f1 (per word of the held-out text), words, seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lacy_jax.corpus.compression import read_lines
from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError, LacyError
from lacy_jax.json_lines import objects
from lacy_jax.labels.alignment import align
from lacy_jax.labels.parse import Parse, parse_of_record
from lacy_jax.labels.spacy_rules import label_parse, load_pipeline, parse_text
from lacy_jax.labels.tagger.classes import CLASSES, classes_of_parse
from lacy_jax.labels.tagger.fit import Options, Words, fit
from lacy_jax.labels.tagger.labeller import BundledLabeller
from lacy_jax.labels.tagger.network import FEATURES, Shape, hash_rows
from lacy_jax.labels.tagger.pipeline import pipeline_of
from lacy_jax.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _options(argv)
    try:
        print(json.dumps(train(options)))
    except LacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Read, fit, write, score; `options` as from the command line.

    Raises:
      DataError: a file is missing or has a bad record, or the teacher is not installed.
    """
    began = time.monotonic()
    parses = _reader(options.teacher)
    shape = Shape(len(CLASSES), width=options.width, depth=options.depth)
    words = words_of((parse for parse, _ in parses(options.parsed)), shape)
    with Progress("tagger", unit="step") as progress:

        def report(step: int, steps: int, loss: float) -> None:
            progress.total = steps
            progress.update(1, f"loss {loss:.3f}")

        weights = fit(words, shape, _fit_options(options), report)
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in _leaves(weights))).hexdigest()[:8]
    nlp = pipeline_of(
        weights,
        shape,
        name=options.name,
        version=f"{options.version}+{digest}",
        description="Tags words for the factual-label rules of lacy_jax",
        license="Apache-2.0",
        notes=f"{options.source} epochs {options.epochs}, seed {options.seed}, {len(words.ids)} words".strip(),
    )
    nlp.to_disk(options.out)
    result: dict[str, Any] = {
        "out": str(options.out),
        "version": nlp.meta["version"],
        "words": len(words.ids),
    }
    if options.valid:
        result |= score(BundledLabeller(options.out), parses(options.valid))
    return result | {"seconds": round(time.monotonic() - began, 1)}


def words_of(parses: Iterator[Parse], shape: Shape) -> Words:
    """Words of parsed texts as spaCy's English tokenizer splits them, with their classes.

    Raises:
      DataError: there are none.
    """
    import spacy

    tokenizer = spacy.blank("en").tokenizer
    attributes, classes = [], []
    for parse in parses:
        doc = tokenizer(parse.text)
        attributes.append(doc.to_array(list(FEATURES)))
        classes.append(classes_of_parse(parse, [(word.idx, word.idx + len(word)) for word in doc]))
    if not any(classes):
        raise DataError("tagger training: no text to train on")
    distinct, ids = np.unique(np.concatenate(attributes), axis=0, return_inverse=True)
    return Words(
        hash_rows(distinct, shape),
        ids.reshape(-1).astype(np.int32),
        np.concatenate([np.asarray(part, np.int32) for part in classes]),
        np.array([len(part) for part in classes]),
    )


def score(labeller: BundledLabeller, parses: Iterator[tuple[Parse, str]]) -> dict[str, float]:
    """Precision, recall and F1 of factual words against the full rules on the parses."""
    both = found = wanted = 0
    for parse, title in parses:
        starts, ends = (
            np.array([(token.start, token.end) for token in parse.tokens], np.int64).reshape(-1, 2).T
        )
        mine = align(labeller.label(Document("", parse.text, title)).factual, starts, ends, parse.text)
        full = align(label_parse(parse, title).factual, starts, ends, parse.text)
        both, found, wanted = (
            both + int((mine & full).sum()),
            found + int(mine.sum()),
            wanted + int(full.sum()),
        )
    precision, recall = both / max(found, 1), both / max(wanted, 1)
    f1 = 2 * both / max(found + wanted, 1)
    return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}


def _reader(teacher: str) -> Callable[[str], Iterator[tuple[Parse, str]]]:
    """A function from a file to (parse, title) of its records."""
    nlp = load_pipeline(teacher) if teacher else None

    def read(path: str) -> Iterator[tuple[Parse, str]]:
        where = ""
        for where, record in objects((line for _, line in read_lines(path)), path):
            title = record.get("title", "")
            try:
                if not isinstance(title, str):
                    raise TypeError("a title that is no string")
                parse = parse_text(nlp, record["text"]) if nlp else parse_of_record(record)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{where}: not a parsed text ({type(error).__name__}: {error}); "
                    "plain text needs --teacher=PIPELINE"
                ) from error
            yield parse, title
        if not where:
            raise DataError(f"{path}: no texts in it")

    return read


def _fit_options(options: argparse.Namespace) -> Options:
    return Options(epochs=options.epochs, batch=options.batch, seed=options.seed)


def _leaves(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    parser = argparse.ArgumentParser(prog="python -m lacy_jax.labels.tagger.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parsed", help="JSONL of parsed texts, or of plain ones with --teacher")
    parser.add_argument("--valid", default="", help="held-out JSONL to score on")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the new pipeline")
    parser.add_argument("--teacher", default="", help="installed spaCy pipeline that parses plain text")
    parser.add_argument("--epochs", type=int, default=defaults["epochs"])
    parser.add_argument("--batch", type=int, default=defaults["batch"], help="words per step")
    parser.add_argument("--seed", type=int, default=defaults["seed"])
    parser.add_argument(
        "--width", type=int, default=Shape.width, help="of a word's vector; a wider network is slower"
    )
    parser.add_argument(
        "--depth", type=int, default=Shape.depth, help="layers; each sees one word more on both sides"
    )
    parser.add_argument("--name", default="factual", help="name in the pipeline's meta.json")
    parser.add_argument("--source", default="", help="source of the text, for the notes in meta.json")
    parser.add_argument("--version", default="1.0.0", help="a hash of the weights is added")
    options = parser.parse_args(argv)
    if min(options.width, options.depth) < 1:
        parser.error("--width and --depth are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
