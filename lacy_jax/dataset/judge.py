"""Labels by an LLM judge (policy `judge`, arXiv:2602.12005 §5.1), added to a finished dataset.

What is asked, and what an answer may look like, is in `labels.judge`; the words that the judge names become the
dataset's `judge` bits. Any OpenAI-compatible server will do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool

from lacy_jax.clients.chat import ChatClient
from lacy_jax.dataset.extra_writer import write_extra
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import RecordSource, open_split, splits_of
from lacy_jax.errors import ConfigError
from lacy_jax.labels.alignment import align
from lacy_jax.labels.judge import passages_of, read_answer
from lacy_jax.labels.spans import Span
from lacy_jax.progress import Progress
from lacy_jax.run_files import JUDGE_CACHE_FOLDER, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer

_CHARACTERS_PER_TOKEN = 4.0


@dataclasses.dataclass
class Outcome:
    """What judging came to."""

    documents: int = 0
    passages: int = 0
    malformed: int = 0
    unaligned: int = 0
    tokens: int = 0
    flagged: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def estimate(source: RecordSource, tokenizer: Tokenizer, client: ChatClient, rate: float) -> dict[str, int]:
    """What judging a split will take: requests, those already answered, prompt and answer tokens of the others."""
    total: dict[str, int] = {"requests": 0, "cached": 0, "prompt_tokens": 0, "answer_tokens": 0}
    for index in range(len(source)):
        for passage in passages_of(_text(source[index], tokenizer), rate):
            cached = client.is_cached(passage.prompt)
            total["requests"] += 1
            total["cached"] += cached
            if not cached:
                total["prompt_tokens"] += round(len(passage.prompt) / _CHARACTERS_PER_TOKEN)
                total["answer_tokens"] += 3 * passage.most
    return total


def judge_split(
    path: epath.PathLike, split: str, client: ChatClient, rate: float = 0.15, progress: Progress | None = None
) -> Outcome:
    """Ask about every document of a split and store the answers as its `judge` extra.

    Args:
      rate: share of words that may be flagged (the paper: 15 % of tokens).

    Raises:
      DataError: no finished dataset in `path`.
      LacyError: the server refuses or fails; nothing is stored, and answers so far are kept for the next try.
    """
    source = open_split(path, split)
    tokenizer = Tokenizer.load(epath.Path(path) / TOKENIZER_FILE)
    outcome = Outcome()

    def prompts() -> Iterator[str]:
        for index in range(len(source)):
            yield from (p.prompt for p in passages_of(_text(source[index], tokenizer), rate))

    answers = client.ask(prompts())

    def bits() -> Iterator[Bool[np.ndarray, " n"]]:
        for index in range(len(source)):
            record = source[index]
            flagged = _judged(record, tokenizer, answers, rate, outcome)
            outcome.documents += 1
            outcome.tokens += len(flagged)
            outcome.flagged += int(flagged.sum())
            if progress is not None:
                progress.update(1, f"{outcome.malformed} malformed")
            yield flagged

    write_extra(path, "judge", split, bits())
    return outcome


def _judged(
    record: Record, tokenizer: Tokenizer, answers: Iterator[str], rate: float, outcome: Outcome
) -> Bool[np.ndarray, " n"]:
    """The judge's bits of one record; its passages' answers are the next ones."""
    text = _text(record, tokenizer)
    spans: list[Span] = []
    for passage in passages_of(text, rate):
        numbers = read_answer(next(answers), len(passage.words))
        outcome.passages += 1
        outcome.malformed += numbers is None
        spans += sorted(passage.words[number - 1] for number in (numbers or [])[: passage.most])
    bits = np.zeros(len(record.tokens), bool)
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    if np.array_equal(ids, record.tokens[1:-1]):
        bits[1:-1] = align(spans, starts, ends, text)
    else:  # A tokenizer that loses letters may cut its own text anew.
        outcome.unaligned += 1
    return bits


def _text(record: Record, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(record.tokens[1:-1])


def judge_dataset(options: argparse.Namespace, path: epath.PathLike) -> dict[str, Any]:
    """`lacy judge`: estimate, say so, judge; the result with the judge's and the client's counts.

    Raises:
      ConfigError: a bad rate or price, or the estimate exceeds --max-cost.
      LacyError, DataError: as `judge_split`.
    """
    if not 0 < options.rate <= 1:
        raise ConfigError(f"--rate={options.rate}: expected more than 0 and at most 1")
    splits = splits_of(path, options.split)
    sources = [open_split(path, split) for split in splits]
    tokenizer = Tokenizer.load(epath.Path(path) / TOKENIZER_FILE)
    client = ChatClient(
        options.url,
        options.model,
        epath.Path(path) / JUDGE_CACHE_FOLDER,
        key=os.environ.get(options.key_env, ""),
        concurrency=options.concurrency,
    )
    estimates = [estimate(source, tokenizer, client, options.rate) for source in sources]
    expected: dict[str, Any] = {name: sum(one[name] for one in estimates) for name in estimates[0]}
    if options.prices:
        expected["cost"] = price_of(options.prices, expected)
    print(f"judge: about to ask: {json.dumps(expected)}", file=sys.stderr, flush=True)
    if options.max_cost and expected.get("cost", 0.0) > options.max_cost:
        raise ConfigError(f"the estimate of {expected['cost']} exceeds --max-cost={options.max_cost}")
    if options.estimate:
        return {"estimate": expected}
    outcome = Outcome()
    with Progress("judge", unit="doc", total=sum(map(len, sources))) as progress:
        for split in splits:
            outcome += judge_split(path, split, client, options.rate, progress)
    rate = outcome.flagged / max(outcome.tokens, 1)
    return {
        "splits": splits,
        "estimate": expected,
        **dataclasses.asdict(outcome),
        "judge_rate": round(rate, 4),
        **dataclasses.asdict(client.usage),
    }


def price_of(prices: str, expected: dict[str, Any]) -> float:
    """What the "prompt_tokens" and "answer_tokens" of an estimate cost at "IN,OUT" per 1M.

    Raises:
      ConfigError: `prices` is not two numbers.
    """
    try:
        prompt, answer = (float(price) for price in prices.split(","))
    except ValueError:
        raise ConfigError(f"--prices={prices!r}: expected two numbers, as 0.15,0.60") from None
    return round((prompt * expected["prompt_tokens"] + answer * expected["answer_tokens"]) / 1e6, 4)
