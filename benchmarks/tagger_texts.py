"""The training text of the bundled tagger: openings and whole articles of Wikipedia that no evaluation here reads.

    python benchmarks/tagger_texts.py [--data FOLDER] [--documents 10000 40000 3000] > texts.jsonl

Reads labels/ and wiki/ of FOLDER (default: $LACY_DATA, else ../shared/data) and writes JSON objects with `title` and `text`,
one a line, for benchmarks/parse_texts.py: first openings (of labels/parsed_train.jsonl.xz), then articles on
everything and on people. Left out: the titles of labels/parsed_valid.jsonl.xz, labels/redocred_dev.json.xz,
wiki/general_valid.jsonl.xz and wiki/bios_unseen.jsonl.xz. The last line on stderr is JSON: documents and words of each file.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Mapping

from label_quality import records
from redocred import read_redocred

from lacy_jax.errors import LacyError

OPENINGS = "labels/parsed_train.jsonl.xz"
PARTS = {OPENINGS: 10_000, "wiki/general_train.jsonl.xz": 40_000, "wiki/bios_train.jsonl.xz": 3_000}
"""Documents of each file by default, the first ones: none of the files is in an order of its own."""
UNSEEN = ("labels/parsed_valid.jsonl.xz", "wiki/general_valid.jsonl.xz", "wiki/bios_unseen.jsonl.xz")


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("LACY_DATA", "../shared/data"))
    parser.add_argument(
        "--documents", type=int, nargs=len(PARTS), default=list(PARTS.values()), help="so many of each file"
    )
    options = parser.parse_args()
    try:
        counts = write(pathlib.Path(options.data), dict(zip(PARTS, options.documents, strict=True)))
    except LacyError as error:
        print(f"benchmarks/tagger_texts.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts), file=sys.stderr)
    return 0


def write(data: pathlib.Path, parts: Mapping[str, int] = PARTS) -> dict[str, dict[str, int]]:
    """Print the texts, of each file of `parts` so many documents; returns the counts of each file.

    Raises:
      DataError: a file is missing or has a bad record.
    """
    taken = {record["title"] for name in UNSEEN for record in records(data / name)}
    taken |= {annotated.title for annotated in read_redocred(data / "labels" / "redocred_dev.json.xz")}
    counts = {}
    for name, count in parts.items():
        documents = words = left_out = 0
        for record in records(data / name):
            if documents == count:
                break
            if record["title"] in taken:
                left_out += 1
                continue
            taken.add(record["title"])  # Openings are of articles that may be in the other files.
            print(json.dumps({"title": record["title"], "text": record["text"]}))
            documents, words = documents + 1, words + len(record["text"].split())
        counts[name] = {"documents": documents, "words": words, "left_out": left_out}
    return counts


if __name__ == "__main__":
    sys.exit(main())
