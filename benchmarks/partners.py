"""How often is a partner right? Every fact of held-out biographies of the embedded world is asked for once.

    python benchmarks/partners.py [--quick] [--json] [--people N] [--asked N]

The partners know the whole table, or one biography of everybody (documents, spans). They are asked with second biographies of the
last people, in other words, cut before each fact; the database has learned its cues from the first biographies of the others. They
are also asked where no fact follows. The last line is one JSON object with these keys:

  benchmark     "partners"
  partners      {partner: {"right", "wrong", "silent": shares of the calls for a fact, "answers_without_fact": share of the others
                that were answered, "ms_per_call"}}
  people, calls, calls_without_fact
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from lacy_jax.cascade import (
    DatabasePartner,
    DenseIndex,
    DocumentPartner,
    FactDatabase,
    IndexPartner,
    PassageIndex,
    index_writer,
)
from lacy_jax.cascade.dense_index import SEARCHES
from lacy_jax.cascade.encoders import MiniLM
from lacy_jax.cascade.entries import Entry, context_of
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.corpus import Document, World
from lacy_jax.errors import LacyError


def spans(documents: list[Document]) -> Iterator[Entry]:
    """The facts of biographies, each with the text before it."""
    for document in documents:
        for fact in document.facts:
            before = document.text[: fact.start].rstrip()
            yield Entry(document.title, context=context_of(before), value=fact.value)


def partners(folder: pathlib.Path, world: World, asked: int) -> Iterator[tuple[str, Partner]]:
    """The partners by name."""
    first = [world.text(at) for at in range(world.size)]
    yield "documents (BM25)", DocumentPartner(PassageIndex.build(first))
    yield "database", DatabasePartner(FactDatabase.build(folder / "facts.db", world.table(), first[:-asked]))
    try:
        encoder = MiniLM()
    except LacyError as error:
        print(f"no dense index: {error}")
        return
    sources = {"facts": [Entry(*row[:2], value=row[2]) for row in world.table()], "spans": list(spans(first))}
    for name, entries in sources.items():
        index_writer.build(folder / name, entries, encoder)
        for by in (name for name, search in SEARCHES.items() if search.vectors != "head"):
            yield f"index of {name}, {by}", IndexPartner(DenseIndex(folder / name, encoder), by=by)


def measure(partner: Partner, calls: list[tuple[str, str]], others: list[str]) -> dict[str, float]:
    """The figures of one partner: (text, value) of its calls, and texts that no fact follows."""
    started = time.perf_counter()
    answers = [str(answer or "").strip() for answer in partner.complete([text for text, _ in calls])]
    seconds = time.perf_counter() - started
    right = sum(answer == value for answer, (_, value) in zip(answers, calls, strict=True))
    silent = sum(not answer for answer in answers)
    return {
        "right": right / len(calls),
        "wrong": (len(calls) - right - silent) / len(calls),
        "silent": silent / len(calls),
        "answers_without_fact": sum(map(bool, partner.complete(others))) / len(others),
        "ms_per_call": seconds * 1e3 / len(calls),
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="30 people, 5 of them asked about")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--asked", type=int, default=30, help="so many of the people")
    options = parser.parse_args()
    people, asked = (30, 5) if options.quick else (options.people, options.asked)
    world, rng = World(people, 0), random.Random(0)
    texts = [world.text(at, 1) for at in range(people - asked, people)]
    calls = [(t.text[: fact.start].rstrip(), fact.value) for t in texts for fact in t.facts]
    spaces = [
        text.text[:at]
        for text in texts
        for at, character in enumerate(text.text)
        if character == " " and not any(fact.start - 1 <= at < fact.end for fact in text.facts)
    ]
    others = rng.sample(spaces, min(len(calls), len(spaces)))
    figures: dict[str, Any] = {
        "benchmark": "partners", "people": people, "calls": len(calls), "calls_without_fact": len(others), "partners": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, partner in partners(pathlib.Path(folder), world, asked):
            figures["partners"][name] = found = measure(partner, calls, others)
            partner.close()
            if not options.json:
                print(
                    f"{name:24} " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()),
                    flush=True,
                )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
