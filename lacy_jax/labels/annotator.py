"""A compact annotator: the words that an LLM would look up, learnt from LMLM's annotated text (arXiv:2505.15962).

    python -m lacy_jax.labels.annotator ANNOTATED.json.xz --out=annotator.npz [--tokenizer=FILE]
    lacy judge --config=experiments/mine.py --judge=annotator:annotator.npz

so that policy `judge` runs on any text at labelling speed. The network is that of the bundled tagger, begins with its
weights, and reads one thing more of each word: what the full rules say of it (the rule, whether it repeats something,
how far into the text it stands). It has two classes, looked up or not; the bias is set so that it flags as large a share of
its training text as the annotations do. ANNOTATED is what corpus reader `lmlm` reads; every document whose hash falls into
the held-out fifth is left out of training. The last line of output is JSON: for the annotator and for the full rules
(`bundled`) precision, recall, F1 and Cohen's kappa per token against the held-out annotations, and by rule how many of
its tokens are annotated and how many annotated tokens are its.

None is shipped: the annotations were written by Llama models, whose licence asks for more than ours does.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt64

from lacy_jax import files
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.lmlm import read_lmlm
from lacy_jax.corpus.readers import BadRecord
from lacy_jax.errors import DataError, LacyError
from lacy_jax.labels.alignment import align
from lacy_jax.labels.layout import content_words
from lacy_jax.labels.parse import Parse
from lacy_jax.labels.spacy_rules import label_parse
from lacy_jax.labels.spans import Labeller, Labels, Span
from lacy_jax.labels.tagger import BundledLabeller
from lacy_jax.labels.tagger.network import Network, Shape, Weights, hash_rows
from lacy_jax.progress import Progress
from lacy_jax.tokenizer import Tokenizer

_SAID_ROWS = 1000
"""Table rows of what the rules say of a word."""
_FAR = (16, 64, 256)
"""Words at which a text's beginning, and what follows it, ends."""
_WORD = re.compile(r"\w+")
_HELD_OUT = 5
"""One document in so many is held out."""


class Annotator:
    """Labels the words that the annotations' author would look up; picklable, deterministic."""

    def __init__(self, path: str | pathlib.Path):
        """
        Args:
          path: a file that this module's command wrote.

        Raises:
          DataError: it is missing or none, was made with another version of the bundled tagger, or spaCy is missing.
        """
        self._path = pathlib.Path(path)
        try:
            data = self._path.read_bytes()
            weights, tagger = _unpacked(data)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"labeller annotator: no annotator in {path} ({_why(error)}); make one with python -m lacy_jax.labels.annotator"
            ) from None
        self._bundled = BundledLabeller()
        if tagger != self._bundled.version:
            raise DataError(
                f"labeller annotator: {path} reads what the bundled tagger {tagger} says, and this one is {self._bundled.version}; "
                "make it anew with python -m lacy_jax.labels.annotator"
            )
        self._network = Network(weights, _shape(self._bundled))
        self.name = "annotator"
        self.version = f"{hashlib.sha256(data).hexdigest()[:8]}+{self._bundled.version}"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def label(self, document: Document) -> Labels:
        """Labels of one document: runs of words that the network flags."""
        parse, read = _read(self._bundled, document)
        flagged = [
            flag for block in self._network.scores(read) for flag in (block[:, 1] > block[:, 0]).tolist()
        ]
        factual = tuple(_runs(parse, flagged))
        return Labels(factual, tuple(content_words(document.text, factual)), ("looked up",) * len(factual))


def _why(error: Exception) -> str:
    """What an error says, in one line."""
    return (
        files.reason(error)
        if isinstance(error, OSError)
        else f"{type(error).__name__}: {error}".splitlines()[0]
    )


def _read(bundled: BundledLabeller, document: Document) -> tuple[Parse, UInt64[np.ndarray, "n features"]]:
    """The words of a text, and what the network reads of them."""
    parse, attributes = bundled.read(document.text)
    labels = label_parse(parse, document.title)
    first, again = _at(parse, labels.factual), _at(parse, labels.repeats)
    reasons = labels.reasons
    said = np.zeros(len(parse.tokens), np.uint64)
    for number, token in enumerate(parse.tokens):
        rule = reasons[first[number]] if first[number] >= 0 else "again" if again[number] >= 0 else ""
        far = sum(number >= place for place in _FAR)
        said[number] = zlib.crc32(f"{rule}/{token.tag}/{far}".encode())
    return parse, np.concatenate([attributes, said[:, None]], 1)


def _at(parse: Parse, spans: Sequence[Span]) -> list[int]:
    """The span that each word overlaps, by number; -1 = none."""
    found, at = [], 0
    for token in parse.tokens:
        while at < len(spans) and spans[at][1] <= token.start:
            at += 1
        found.append(at if at < len(spans) and spans[at][0] < token.end else -1)
    return found


def _runs(parse: Parse, flagged: Sequence[bool]) -> Iterator[Span]:
    """Neighbouring flagged words as one span each."""
    start = end = -1
    for token, flag in zip(parse.tokens, flagged, strict=True):
        if flag:
            start, end = (start if start >= 0 else token.start), token.end
        elif start >= 0:
            yield start, end
            start = -1
    if start >= 0:
        yield start, end


def _shape(bundled: BundledLabeller) -> Shape:
    _, shape = bundled.weights
    return dataclasses.replace(shape, classes=2, rows=(*shape.rows, _SAID_ROWS))


# -- training -----------------------------------------------------------------------------------------------------


def train(documents: Sequence[Document], epochs: int, batch: int, seed: int) -> Weights:
    """Weights learnt from annotated documents; deterministic for the same input on the same machine."""
    from lacy_jax.labels.tagger.fit import Options, Words, fit, initial

    bundled = BundledLabeller()
    shape = _shape(bundled)
    texts = [_read(bundled, document) for document in documents]
    classes = [
        np.array([place >= 0 for place in _at(parse, document.judge or ())], np.int32)
        for (parse, _), document in zip(texts, documents, strict=True)
    ]
    if not texts or not any(part.any() for part in classes):
        raise DataError("annotator training: no annotated text to train on")
    distinct, ids = np.unique(np.concatenate([read for _, read in texts]), axis=0, return_inverse=True)
    words = Words(
        hash_rows(distinct, shape),
        ids.reshape(-1).astype(np.int32),
        np.concatenate(classes),
        np.array([len(part) for part in classes]),
    )
    begin, taught = initial(shape, seed), bundled.weights[0]
    begin["table"][: len(taught["table"])] = taught["table"]
    known = taught["embed"]["W"].shape[1]
    begin["embed"] = {
        **taught["embed"],
        "W": np.concatenate([taught["embed"]["W"], begin["embed"]["W"][:, known:]], 1),
    }
    begin["layers"] = taught["layers"]
    options = Options(epochs, batch, learning_rate=1e-3, dropout=0.2, word_dropout=0.1, seed=seed)
    with Progress("annotator", unit="step") as progress:

        def report(step: int, steps: int, loss: float) -> None:
            progress.total = steps
            progress.update(1, f"loss {loss:.3f}")

        weights = fit(words, shape, options, report, begin)
    network = Network(weights, shape)
    margin = np.concatenate(
        [block[:, 1] - block[:, 0] for _, read in texts for block in network.scores(read)]
    )
    bias = weights["out"]["b"].copy()
    bias[0] += np.float32(np.quantile(margin, 1 - words.classes.mean()))
    weights["out"] = {**weights["out"], "b": bias}
    return weights


def _packed(weights: Weights, tagger: str) -> bytes:
    """The file: the weights, and the version of the tagger whose words they read."""
    arrays = {f"{name}.{part}": weights[name][part] for name in ("embed", "out") for part in weights[name]}
    arrays |= {
        f"layers.{i}.{part}": layer[part] for i, layer in enumerate(weights["layers"]) for part in layer
    }
    out = io.BytesIO()
    np.savez(out, tagger=np.array(tagger), table=weights["table"].astype(np.float16), **arrays)
    return out.getvalue()


def _unpacked(data: bytes) -> tuple[Weights, str]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        weights: Weights = {"table": arrays["table"].astype(np.float32), "embed": {}, "out": {}, "layers": []}
        tagger = str(arrays["tagger"])
        for name in arrays.files:
            where, *number, part = name.split(".") if "." in name else (name, "")
            if number:
                layers = weights["layers"]
                layers += [{} for _ in range(int(number[0]) + 1 - len(layers))]
                layers[int(number[0])][part] = arrays[name]
            elif part:
                weights[where][part] = arrays[name]
    if not (weights["embed"] and weights["out"] and weights["layers"]):
        raise ValueError("weights are missing")
    return weights, tagger


# -- agreement ----------------------------------------------------------------------------------------------------


def agreement(
    labeller: Labeller, documents: Iterable[Document], tokenizer: Tokenizer | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """A labeller's factual tokens against the annotations.

    Args:
      documents: with `judge`, the annotated ranges.
      tokenizer: whose tokens are counted; None = words.

    Returns:
      ({"precision", "recall", "f1", "kappa", "flagged", "annotated" (shares), "tokens"}, {rule: {"tokens",
      "annotated" (share of them), "recall" (share of the annotated tokens that are its)}}).
    """
    counts = np.zeros((2, 2), np.int64)
    rules: dict[str, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
    for document in documents:
        text = document.text
        if tokenizer is None:
            starts, ends = np.array([m.span() for m in _WORD.finditer(text)], np.int32).reshape(-1, 2).T
        else:
            _, starts, ends = tokenizer.encode_with_offsets(text)
        labels = labeller.label(document)
        wanted = align(document.judge or (), starts, ends, text)
        found = align(labels.factual, starts, ends, text)
        for a in (False, True):
            for b in (False, True):
                counts[int(a), int(b)] += int(((found == a) & (wanted == b)).sum())
        for rule in set(labels.reasons):
            own = align([s for s, r in zip(labels.factual, labels.reasons) if r == rule], starts, ends, text)
            rules[rule].update({True: int((own & wanted).sum()), False: int((own & ~wanted).sum())})
    return _figures(counts), {
        rule: {
            "tokens": sum(counter.values()),
            "annotated": round(counter[True] / max(sum(counter.values()), 1), 3),
            "recall": round(counter[True] / max(int(counts[:, 1].sum()), 1), 3),
        }
        for rule, counter in sorted(rules.items(), key=lambda item: -sum(item[1].values()))
    }


def _figures(counts: np.ndarray) -> dict[str, float]:
    (neither, missed), (wrong, both) = counts.tolist()
    total = max(neither + missed + wrong + both, 1)
    agreed = (neither + both) / total
    chance = ((wrong + both) * (missed + both) + (neither + missed) * (neither + wrong)) / total**2
    return {
        "precision": round(both / max(wrong + both, 1), 4),
        "recall": round(both / max(missed + both, 1), 4),
        "f1": round(2 * both / max(2 * both + wrong + missed, 1), 4),
        "kappa": round((agreed - chance) / max(1 - chance, 1e-9), 4),
        "flagged": round((wrong + both) / total, 4),
        "annotated": round((missed + both) / total, 4),
        "tokens": total,
    }


def held_out(document: Document) -> bool:
    """Whether a document is left out of training, by the hash of its id."""
    return int(hashlib.sha256(document.id.encode()).hexdigest()[:8], 16) % _HELD_OUT == 0


def documents_of(paths: Sequence[str]) -> list[Document]:
    """The annotated documents of files; a bad record is an error that names it.

    Raises:
      DataError: a file is missing or has a bad record.
    """
    found = []
    for path in paths:
        for record in read_lmlm(path):
            try:
                document = record.parse()
            except BadRecord as error:
                raise DataError(f"{record.where} {error}") from None
            if document is not None:
                found.append(document)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lacy_jax.labels.annotator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("annotated", nargs="+", help="files with LMLM's annotated text")
    parser.add_argument("--out", required=True, help="file of the new annotator")
    parser.add_argument(
        "--tokenizer", default="", help="tokenizer whose tokens agreement is counted in; default: words"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1024, help="words per step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    began = time.monotonic()
    try:
        tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else None
        documents = documents_of(options.annotated)
        training = [document for document in documents if not held_out(document)]
        valid = [document for document in documents if held_out(document)]
        weights = train(training, options.epochs, options.batch, options.seed)
        files.write_bytes(options.out, _packed(weights, BundledLabeller().version))
        result: dict[str, Any] = {"training_documents": len(training), "held_out_documents": len(valid)}
        for labeller in (Annotator(options.out), BundledLabeller()):
            figures, by_rule = agreement(labeller, valid, tokenizer)
            result[labeller.name] = {**figures, "version": labeller.version}
            print(f"{labeller.name:>10}  " + "  ".join(f"{name} {value}" for name, value in figures.items()))
        print("the rules of bundled:")
        for rule, row in by_rule.items():
            print(f"{rule:>14}  " + "  ".join(f"{name} {value}" for name, value in row.items()))
        print(json.dumps(result | {"rules": by_rule, "seconds": round(time.monotonic() - began, 1)}))
    except LacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
