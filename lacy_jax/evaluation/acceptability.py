"""Acceptability: would the model's own choice keep the statement true to the document?

This is the study behind the method (arXiv:2602.12005 §3): a judge model looks at the model's top-1 token at each position
of a document, and the share that it accepts is tabulated by loss and by factual label. Tokens with a high loss should
mostly be acceptable without a factual label, and mostly unacceptable with one. The paper gives neither its prompt nor its
bins; these are ours.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32

from lacy_jax.clients import ChatClient, NoAnswer, PriceGuard, Question, Tally
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import RecordSource
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
from lacy_jax.formatting import number, percent
from lacy_jax.labels.judge import longest_answer, read_numbers
from lacy_jax.objectives import TokenStatistics
from lacy_jax.objectives.scoring import score_documents, scorer
from lacy_jax.progress import Progress
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training.run import Run

EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
"""Edges of the loss bins, nats."""
PASSAGE = 32
"""Consecutive positions per request."""
_SHOWN_TOKENS = 24
_DOCUMENT = 8000
_EXAMPLE = [PASSAGE + 9, PASSAGE + 12]
"""Numbers that no piece has: a judge that returns the prompt's example has not judged."""

PROMPT = """A small language model read the document below and, at some places, was asked for the next piece of text: a
word, or the beginning of one. Each line shows the end of what it had read and, in double brackets, the piece it chose
instead of the document's own. A piece is acceptable if the text can go on from it so that the statement is still true to
the document: another wording, another order, another detail of the document. It is not acceptable if it leads to a
statement that contradicts the document or that the document does not support, or to no statement at all.

Document:
{document}

Pieces:
{items}

Answer with a JSON list of the numbers of the acceptable pieces, [] if there are none, and nothing else. Example: {example}"""


@dataclasses.dataclass(frozen=True)
class JudgedStretch:
    """Consecutive positions [start, stop) of a document.

    Attributes:
      wrong: the positions where the top-1 token is not the document's; the others are acceptable by definition.
      prompt: the question about the wrong positions; "" if there are none.
    """

    start: int
    stop: int
    wrong: tuple[int, ...]
    prompt: str


def stretches_of(
    record: Record, top1: Int32[np.ndarray, " n-1"], tokenizer: Tokenizer
) -> list[JudgedStretch]:
    """The requests for one document; the study leaves out bos and eos. `top1[i - 1]` is the model's choice for token i."""
    tokens, first, last = record.tokens.astype(np.int64), tokenizer.body.start, len(record.tokens) - 1
    found = []
    for start in range(1, last, PASSAGE):  # The model did not choose the first token.
        stop = min(start + PASSAGE, last)
        wrong = tuple(i for i in range(start, stop) if top1[i - 1] != tokens[i])
        items = [
            f"{number}: {_shown(tokens, i, int(top1[i - 1]), tokenizer)}" for number, i in enumerate(wrong, 1)
        ]
        prompt = ""
        if items:
            document = _around(
                tokenizer.decode(tokens[first:last]), len(tokenizer.decode(tokens[first:start]))
            )
            prompt = PROMPT.format(document=document, items="\n".join(items), example=_EXAMPLE)
        found.append(JudgedStretch(start, stop, wrong, prompt))
    return found


def _shown(tokens: np.ndarray, at: int, choice: int, tokenizer: Tokenizer) -> str:
    """The end of the text before a position and, in brackets, the model's choice, on one line."""
    before = tokens[max(tokenizer.body.start, at - _SHOWN_TOKENS) : at]
    text = tokenizer.decode(before)
    piece = tokenizer.decode([*before, choice])[len(text) :]
    if choice in tokenizer.eos_ids:
        piece = "(end of the text)"
    space = " " if piece.startswith(" ") else ""
    return " ".join(f"{text}{space}[[{piece.strip()}]]".split())


def _around(text: str, at: int) -> str:
    """The text, or the part around a position if it is long."""
    start = max(0, min(at - _DOCUMENT // 2, len(text) - _DOCUMENT))
    return text[start : start + _DOCUMENT]


def run_acceptability(
    run: Run,
    source: RecordSource,
    client: ChatClient,
    *,
    guard: PriceGuard,
    limit: int = 0,
) -> dict[str, Any]:
    """The study on the documents of a dataset split.

    Args:
      client: an interrupted study goes on from its cache.
      guard: the client's price guard; it refuses to start if the estimate is too high.
      limit: the most documents; 0 = all.

    Returns:
      JSON-safe: "rows", one per loss bin and kind of token ("factual", "other"), with "positions", "right" (top-1 is
      the document's token), "acceptable" (including the right ones) and "share"; the same for "factual", "other" and
      "all" with a 95 % bootstrap interval over documents; "requests", "no_answer" (requests without an answer; their
      "unjudged" positions are left out of all other counts) and "why_none"; the "estimate" and the client's usage.

    Raises:
      ConfigError: the dataset has another tokenizer, or the estimate is too high.
      LacyError: the judge's server refuses or fails, or most of its answers are unusable; answers so far are kept.
    """
    if source.metadata.tokenizer_hash != run.tokenizer.hash:
        raise ConfigError(f"dataset {source.path} was made with another tokenizer than run {run.workdir} has")
    count = min(limit, len(source)) if limit else len(source)
    scores = score_documents(
        scorer(run.model, run.config.objective.chunk),
        [source[index].tokens for index in range(count)],
        run.config.input.seq_len,
        title="acceptability: top-1 tokens",
    )

    def documents() -> Iterator[tuple[Record, TokenStatistics, list[JudgedStretch]]]:
        for index, found in enumerate(scores):
            record = source[index]
            yield record, found, stretches_of(record, np.asarray(found.top1), run.tokenizer)

    def asked() -> Iterator[JudgedStretch]:
        yield from (passage for *_, own in documents() for passage in own if passage.prompt)

    expected = guard.estimate(
        (
            passage.prompt,
            longest_answer(len(passage.wrong), len(passage.wrong)),
            client.is_cached(_question(passage)),
        )
        for passage in asked()
    )
    print(f"acceptability: about to ask: {json.dumps(expected.to_dict())}", file=sys.stderr, flush=True)
    guard.allow(expected)
    tally = Tally(f"judge {client.model} at {client.url}")
    replies = client.ask(map(_question, asked()))
    answers = map(tally.add, replies)
    judged = []
    unjudged = 0
    with Progress("acceptability", total=count, unit="doc") as progress:
        for record, found, passages in documents():
            accepted, known = np.zeros((2, len(record.tokens)), bool)
            for passage in passages:
                numbers = next(answers) if passage.prompt else []
                if isinstance(numbers, NoAnswer):
                    unjudged += passage.stop - passage.start
                    continue
                known[passage.start : passage.stop] = accepted[passage.start : passage.stop] = True
                accepted[list(passage.wrong)] = False
                accepted[[passage.wrong[number - 1] for number in numbers]] = True
            right = np.append(False, found.top1 == record.tokens[1:])
            nll = np.append(
                0.0, np.maximum(found.nll, 0.0)
            )  # Rounding may make the nll of a certain token negative.
            fields = (nll, record.labels["factual"], right, accepted)
            judged.append(_Judged(*(array[known] for array in fields)))
            progress.update(1, f"{tally.missing} without an answer")
    tally.settle()
    return {
        "policy": run.config.objective.policy,
        "step": run.step,
        "documents": count,
        **tabulate(judged),
        "requests": expected.requests,
        "no_answer": tally.missing,
        "why_none": tally.summary(),
        "unjudged": unjudged,
        "estimate": expected.to_dict(),
        **dataclasses.asdict(client.usage),
    }


def _question(passage: JudgedStretch) -> Question[list[int]]:
    return Question(
        passage.prompt, functools.partial(read_numbers, most=len(passage.wrong), example=_EXAMPLE)
    )


@dataclasses.dataclass(frozen=True)
class _Judged:
    """The judged positions of a document, each array [n]; nll in nats."""

    nll: Float[np.ndarray, " n"]
    factual: Bool[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    accepted: Bool[np.ndarray, " n"]


def tabulate(judged: Sequence[_Judged]) -> dict[str, Any]:
    """Counts of positions and accepted positions by loss bin and kind of token, and over all losses."""

    def cell(low: float, high: float, kinds: tuple[bool, ...]) -> dict[str, Any]:
        chosen = [(d.nll >= low) & (d.nll < high) & np.isin(d.factual, kinds) for d in judged]
        accepted = [int(d.accepted[c].sum()) for d, c in zip(judged, chosen, strict=True)]
        positions = [int(c.sum()) for c in chosen]
        found = bootstrap_ratio(accepted, positions)
        return {
            "positions": sum(positions),
            "right": sum(int(d.right[c].sum()) for d, c in zip(judged, chosen, strict=True)),
            "acceptable": sum(accepted),
            "share": finite(found.estimate),
            "share_ci": found.ends,
        }

    kinds = {"factual": (True,), "other": (False,), "all": (True, False)}
    rows = [
        {"low": low, "high": finite(high), "kind": kind, **cell(low, high, kinds[kind])}
        for low, high in itertools.pairwise(EDGES)
        for kind in ("factual", "other")
    ]
    return {"rows": rows, **{kind: cell(0.0, math.inf, values) for kind, values in kinds.items()}}


def bin_name(row: Mapping[str, Any]) -> str:
    """A loss bin in words: "0.5-1", "8 and more"."""
    low, high = row["low"], row["high"]
    return f"{low:g} and more" if high is None else f"{low:g}\N{EN DASH}{high:g}"


def acceptability_table(result: dict[str, Any]) -> str:
    """The figures as plain text."""
    lines = [
        f"judge {result['judge']}: top-1 tokens at {number(result['all']['positions'])} positions of "
        f"{result['documents']} documents; no answer to {result['no_answer']} of {result['requests']} requests"
        + (
            f" ({result['why_none']}; {result['unjudged']} positions left out)" if result["no_answer"] else ""
        ),
        f"{'loss (nats)':<14}{'tokens':<10}{'positions':>10}{'right':>10}{'acceptable':>12}",
    ]
    whole = [{"kind": kind, **result[kind]} for kind in ("factual", "other", "all")]
    for row in [*result["rows"], *whole]:
        right = row["right"] / row["positions"] if row["positions"] else None
        name = bin_name(row) if "low" in row else "any"
        lines.append(
            f"{name:<14}{row['kind']:<10}{row['positions']:>10}{percent(right):>10}{percent(row['share']):>12}"
        )
    return "\n".join(lines)
