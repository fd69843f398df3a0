"""The verb `index` of the command line: building and editing a dense index."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lacy_jax import config as config_lib
from lacy_jax.command_line import Verb, run_config_of, show
from lacy_jax.errors import ConfigError
from lacy_jax.registry import registry_of
from lacy_jax.run_files import TOKENIZER_FILE

if TYPE_CHECKING:
    from lacy_jax.cascade.entries import Entry


def add_index(verb: Callable[..., Verb]) -> None:
    """Register the verb; `verb(name, run, about, groups)` makes a sub-parser with the options all verbs share."""
    sub = verb("index", _index, "build or change a dense index (partner index:FOLDER)", ("--encoder",))
    sub.add_argument(
        "--index",
        metavar="FOLDER",
        help="the index; it is built, unless --add, --change, --delete or --compact",
    )
    sub.add_argument("--encoder", default="minilm", metavar="NAME", help="see below (default minilm)")
    sub.add_argument(
        "--documents",
        default="",
        metavar="PATH",
        help="source: passages of a JSONL corpus (a file or a glob)",
    )
    sub.add_argument("--facts", default="", metavar="PATH",
                     help="source: rows of a fact database, of JSONL (entity, attribute, value), or of LMLM's database JSON")  # fmt: skip
    sub.add_argument("--spans", action="store_true",
                     help="source: factual spans of the training documents of --workdir or --config, each with the text before it")  # fmt: skip
    sub.add_argument("--add", action="store_true", help="add the sources to an index that exists")
    sub.add_argument(
        "--change",
        default="",
        metavar="PATH",
        help="facts, as of --facts, whose values replace those of the same attribute",
    )
    sub.add_argument(
        "--delete",
        default="",
        metavar="FILE.jsonl",
        help="entity (or title), optional attribute and value, of what to delete",
    )
    sub.add_argument("--compact", action="store_true", help="write the graph anew, without what was deleted")
    sub.add_argument(
        "--threads",
        type=int,
        default=1,
        help="that write the graph; with 1 the same entries give the same file (default 1)",
    )


def _index(options: argparse.Namespace) -> None:
    from lacy_jax.cascade import entries, index_writer
    from lacy_jax.cascade.partners.index import open_encoder

    if not options.index:
        raise ConfigError("--index=FOLDER is needed")
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: must be at least 1")
    sources, editing = _sources(options), options.add or options.change or options.delete
    if sources and not options.add and (editing or options.compact):
        raise ConfigError(
            "--documents, --facts and --spans build an index; with --add they are added to one that exists"
        )
    if not sources and not (options.change or options.delete or options.compact):
        raise ConfigError(
            "give a source: --documents, --facts or --spans; or --change, --delete or --compact"
        )
    result: dict[str, str | int] = {"path": options.index}
    if not editing and not options.compact:
        encoder = registry_of("--encoder").named(options.encoder, "--encoder").open()
        result["entries"] = index_writer.build(
            options.index, itertools.chain(*sources), encoder, threads=options.threads, shown=True
        )
    if editing:
        result |= index_writer.edit(
            options.index,
            open_encoder(options.index),
            add=itertools.chain(*sources),
            change=entries.of_facts(options.change) if options.change else (),
            delete=entries.read_deletions(options.delete) if options.delete else (),
        )
    if options.compact:
        result["entries"] = index_writer.compact(options.index, threads=options.threads)
    show(options, result, ", ".join(f"{name} {value}" for name, value in result.items()))


def _sources(options: argparse.Namespace) -> list[Iterable[Entry]]:
    from lacy_jax.cascade import entries
    from lacy_jax.cascade.passages import read_documents
    from lacy_jax.dataset.source import open_split
    from lacy_jax.tokenizer import Tokenizer

    found: list[Iterable[Entry]] = []
    if options.documents:
        found.append(entries.of_documents(read_documents(options.documents, "--documents")))
    if options.facts:
        found.append(entries.of_facts(options.facts))
    if options.spans:
        path = config_lib.dataset_folder(run_config_of(options), options.workdir)
        records = open_split(path, "train")
        tokenizer = Tokenizer.load(path / TOKENIZER_FILE)
        found.append(entries.of_records((records[at] for at in range(len(records))), tokenizer))
    return found
