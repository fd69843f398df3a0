"""Labels by an LLM judge (policy `judge`, arXiv:2602.12005 §5.1), added to a finished dataset.

`labels.judge` has the prompt and reads the answers; the words that the judge lists become the dataset's `judge` bits.
Any OpenAI-compatible server will do; so will a labeller that needs no server, such as `annotator:FILE`, whose factual
spans become the bits.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool

from lacy_jax import files
from lacy_jax.clients import ChatClient, NoAnswer, PriceGuard, Question, Tally
from lacy_jax.command_line import refuse_server_options, server_options
from lacy_jax.corpus.document import Document
from lacy_jax.dataset.extra_writer import write_extra
from lacy_jax.dataset.host_cache import HostCache
from lacy_jax.dataset.metadata import read_metadata
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import RecordSource, open_split, splits_of
from lacy_jax.default_config import get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.labels import LABELLERS, get_labeller
from lacy_jax.labels.alignment import align
from lacy_jax.labels.judge import Excerpt, excerpts_of, longest_answer, read_numbers
from lacy_jax.labels.spans import Labeller, Span
from lacy_jax.progress import Progress
from lacy_jax.run_files import JUDGE_CACHE_FOLDER, JUDGE_FILE, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer


@dataclasses.dataclass
class Outcome:
    """Counts of a judging run.

    Attributes:
      documents, passages, tokens: how much was judged.
      no_answer: passages without an answer, in which no word is flagged.
      why_none: the reasons for that, with counts.
      unaligned: documents that the tokenizer encodes differently from the stored tokens, in which nothing is flagged.
      flagged: tokens that the judge flagged.
    """

    documents: int = 0
    passages: int = 0
    no_answer: int = 0
    why_none: str = ""
    unaligned: int = 0
    tokens: int = 0
    flagged: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        both = [dataclasses.asdict(outcome) for outcome in (self, other)]
        why_none = ", ".join(filter(None, [one.pop("why_none") for one in both]))
        return Outcome(**{name: count + both[1][name] for name, count in both[0].items()}, why_none=why_none)


def _to_ask(
    source: RecordSource, tokenizer: Tokenizer, client: ChatClient, rate: float
) -> Iterator[tuple[str, str, bool]]:
    """For the estimate: (prompt, longest answer, whether the answer is cached) of every passage of a split."""
    for index in range(len(source)):
        for passage in excerpts_of(_text(source[index], tokenizer), rate):
            longest = longest_answer(passage.most, len(passage.words))
            yield passage.prompt, longest, client.is_cached(_question(passage))


@contextlib.contextmanager
def _opened(path: epath.PathLike, split: str, cache: HostCache | None) -> Iterator[RecordSource]:
    """A split; what lies in a bucket is copied meanwhile, because its records are read more than once."""
    source = open_split(path, split, cache)
    source.start_copying()
    try:
        yield source
    finally:
        source.stop_copying()


def judge_split(
    path: epath.PathLike,
    split: str,
    client: ChatClient,
    rate: float = 0.15,
    progress: Progress | None = None,
    cache: HostCache | None = None,
) -> Outcome:
    """Ask about every document of a split and store the answers as its `judge` extra.

    Args:
      rate: share of words that may be flagged (the paper: 15 % of tokens).
      cache: where copies of what lies in a bucket are kept.

    Raises:
      DataError: there is no finished dataset in `path`.
      LacyError: the server refuses or fails, or most of its answers are unusable; nothing is stored, but the answers
        so far are kept for the next try.
    """
    with _opened(path, split, cache) as source:
        tokenizer = Tokenizer.load(epath.Path(path) / TOKENIZER_FILE)
        outcome, tally = Outcome(), Tally(f"judge {client.model} at {client.url}")

        def questions() -> Iterator[Question[list[int]]]:
            for index in range(len(source)):
                yield from map(_question, excerpts_of(_text(source[index], tokenizer), rate))

        answers = client.ask(questions())

        def bits() -> Iterator[Bool[np.ndarray, " n"]]:
            for index in range(len(source)):
                record = source[index]
                flagged = _judged(record, tokenizer, map(tally.add, answers), rate, outcome)
                if progress is not None:
                    progress.update(1, f"{tally.missing} without an answer")
                yield flagged
            tally.settle()
            outcome.no_answer, outcome.why_none = tally.missing, tally.summary()

        write_extra(path, "judge", split, bits())
    return outcome


def label_split(
    path: epath.PathLike,
    split: str,
    labeller: Labeller,
    progress: Progress | None = None,
    cache: HostCache | None = None,
) -> Outcome:
    """Store what a labeller calls factual in a split as its `judge` extra.

    Raises:
      DataError: there is no finished dataset in `path`, or the labeller needs more than text.
    """
    with _opened(path, split, cache) as source:
        tokenizer = Tokenizer.load(epath.Path(path) / TOKENIZER_FILE)
        outcome = Outcome()

        def bits() -> Iterator[Bool[np.ndarray, " n"]]:
            for index in range(len(source)):
                record = source[index]
                text = _text(record, tokenizer)
                spans = labeller.label(Document(record.id, text, record.title)).factual
                yield _bits(record, tokenizer, text, spans, outcome)
                if progress is not None:
                    progress.update(1)

        write_extra(path, "judge", split, bits())
    return outcome


def _question(passage: Excerpt) -> Question[list[int]]:
    return Question(passage.prompt, functools.partial(read_numbers, most=len(passage.words)))


def _judged(
    record: Record,
    tokenizer: Tokenizer,
    answers: Iterator[list[int] | NoAnswer],
    rate: float,
    outcome: Outcome,
) -> Bool[np.ndarray, " n"]:
    """The judge's bits of one record; takes the answers to its passages from `answers`."""
    text = _text(record, tokenizer)
    spans: list[Span] = []
    for passage in excerpts_of(text, rate):
        numbers = next(answers)
        outcome.passages += 1
        if not isinstance(numbers, NoAnswer):
            spans += sorted(passage.words[number - 1] for number in numbers[: passage.most])
    return _bits(record, tokenizer, text, spans, outcome)


def _bits(
    record: Record, tokenizer: Tokenizer, text: str, spans: Sequence[Span], outcome: Outcome
) -> Bool[np.ndarray, " n"]:
    """The bits of a record whose text is flagged at `spans`; counts it."""
    bits = np.zeros(len(record.tokens), bool)
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    if np.array_equal(ids, record.tokens[tokenizer.body]):
        bits[tokenizer.body] = align(spans, starts, ends, text)
    else:  # A tokenizer that loses letters may split its own decoded text differently.
        outcome.unaligned += 1
    outcome.documents += 1
    outcome.tokens += len(bits)
    outcome.flagged += int(bits.sum())
    return bits


def _text(record: Record, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(record.tokens[tokenizer.body])


def judge_dataset(
    options: argparse.Namespace, path: epath.PathLike, cache: HostCache | None = None
) -> dict[str, Any]:
    """`lacy judge`: print the estimate, judge, and return the counts of the judge and the client, which are also stored
    in the dataset as `JUDGE_FILE`. A labeller as judge has no estimate and no client.

    Raises:
      ConfigError: a bad rate or price, no key in the variable that --key-env names, an estimate above --max-cost, or an
        option about a server with a labeller.
      LacyError, DataError: see `judge_split`.
    """
    labeller = _labeller(options.judge)
    if labeller is not None:
        refuse_server_options(options, f"--judge={options.judge} is a labeller")
        return _label_dataset(labeller, options, path, cache)
    if not 0 < options.rate <= 1:
        raise ConfigError(f"--rate={options.rate}: expected more than 0 and at most 1")
    server = server_options(options)
    guard = PriceGuard(options.prices, options.max_cost)
    splits = splits_of(path, options.split)
    tokenizer = Tokenizer.load(epath.Path(path) / TOKENIZER_FILE)
    client = ChatClient(options.judge, epath.Path(path) / JUDGE_CACHE_FOLDER, guard=guard, **server)
    with contextlib.ExitStack() as opened:
        sources = [opened.enter_context(_opened(path, split, cache)) for split in splits]
        documents = sum(map(len, sources))
        expected = guard.estimate(
            asked for source in sources for asked in _to_ask(source, tokenizer, client, options.rate)
        )
    print(f"judge: about to ask: {json.dumps(expected.to_dict())}", file=sys.stderr, flush=True)
    guard.allow(expected)
    if options.dry_run:
        return {"estimate": expected.to_dict()}
    outcome = Outcome()
    with Progress("judge", unit="doc", total=documents) as progress:
        for split in splits:
            outcome += judge_split(path, split, client, options.rate, progress, cache)
    judge = f"{client.model} at {client.url}"
    more = {"rate": options.rate, "estimate": expected.to_dict(), **dataclasses.asdict(client.usage)}
    return _stored(path, judge, splits, outcome, more)


def _labeller(judge: str) -> Labeller | None:
    """The labeller that `--judge` names; None if it names none (then it is a server)."""
    if judge.partition(":")[0] not in LABELLERS:
        return None
    config = get_default_config().unlock()
    config.labels.labeller = judge
    return get_labeller(config, "")


def _label_dataset(
    labeller: Labeller, options: argparse.Namespace, path: epath.PathLike, cache: HostCache | None
) -> dict[str, Any]:
    """`judge_dataset` with a labeller, which costs nothing and flags as much as it finds."""
    splits = splits_of(path, options.split)
    documents = sum(read_metadata(path).splits[split].documents for split in splits)
    if options.dry_run:
        return {"judge": f"{labeller.name} {labeller.version}", "splits": splits, "documents": documents}
    outcome = Outcome()
    with Progress("judge", unit="doc", total=documents) as progress:
        for split in splits:
            outcome += label_split(path, split, labeller, progress, cache)
    return _stored(path, f"{labeller.name} {labeller.version}", splits, outcome, {})


def _stored(
    path: epath.PathLike, judge: str, splits: list[str], outcome: Outcome, more: dict[str, Any]
) -> dict[str, Any]:
    """What a judging run found, which is also stored in the dataset."""
    rate = round(outcome.flagged / max(outcome.tokens, 1), 4)
    result = {"judge": judge, "splits": splits, **dataclasses.asdict(outcome), "judge_rate": rate, **more}
    files.write_json(epath.Path(path) / JUDGE_FILE, result)
    return result
