"""The verb `index` of the command line: building and editing a dense index or a fact database."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lacy_jax import config as config_lib
from lacy_jax.command_line import Verb, run_config_of, show
from lacy_jax.errors import ConfigError
from lacy_jax.registry import registry_of
from lacy_jax.run_files import TOKENIZER_FILE

if TYPE_CHECKING:
    from lacy_jax.cascade.entries import Entry


def add_index(verb: Callable[..., Verb]) -> None:
    """Register the verb; `verb(name, run, about, groups)` makes a sub-parser with the options all verbs share."""
    sub = verb(
        "index",
        _index,
        "build or change what partners look things up in: a dense index or a fact database",
        ("--encoder",),
    )
    for name, metavar, about in (
        ("index", "FOLDER", "a dense index (partner index:FOLDER)"),
        ("database", "FILE", "a fact database (partner database:FILE)"),
        (
            "documents",
            "PATH",
            "a JSONL corpus, a file or a glob: its passages; of a database: texts to learn cues from",
        ),
        (
            "facts",
            "PATH",
            "rows of a fact database, of JSONL (entity, attribute, value), or of LMLM's database JSON",
        ),
        ("change", "PATH", "facts, as of --facts, whose values replace those of the same attribute"),
        ("delete", "FILE.jsonl", "entity (or title), optional attribute and value, of what to delete"),
    ):
        sub.add_argument(f"--{name}", default="", metavar=metavar, help=about)
    sub.add_argument("--spans", action="store_true",
                     help="factual spans of the training documents of --workdir or --config, each with the text before it")  # fmt: skip
    sub.add_argument("--add", action="store_true", help="add --documents, --facts or --spans to what exists")
    sub.add_argument(
        "--compact", action="store_true", help="write an index's graph anew, without what was deleted"
    )
    sub.add_argument(
        "--encoder", default="minilm", metavar="NAME", help="of a new index; see below (default minilm)"
    )
    sub.add_argument("--threads", type=int, default=1,
                     help="that write the graph; with 1 the same entries give the same file (default 1)")  # fmt: skip


def _index(options: argparse.Namespace) -> None:
    if bool(options.index) == bool(options.database):
        raise ConfigError("give --index=FOLDER or --database=FILE")
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: must be at least 1")
    given = options.documents or options.facts or options.spans
    editing = bool(options.add or options.change or options.delete)
    if given and not options.add and (editing or options.compact):
        raise ConfigError(
            "--documents, --facts and --spans build anew; with --add they are added to what exists"
        )
    if not given and (options.add or not (editing or options.compact)):
        raise ConfigError("give --documents, --facts or --spans; or --change, --delete or --compact")
    if options.database and (options.spans or options.compact or (editing and options.documents)):
        raise ConfigError("--database: --spans, --compact and --add --documents are for an index")
    result = _database(options, editing) if options.database else _dense(options, editing)
    show(options, result, ", ".join(f"{name} {value}" for name, value in result.items()))


def _database(options: argparse.Namespace, editing: bool) -> dict[str, Any]:
    from lacy_jax.cascade.entries import read_deletions
    from lacy_jax.cascade.fact_database import FactDatabase, edit_facts, read_facts
    from lacy_jax.cascade.passages import read_documents

    rows = read_facts(options.facts) if options.facts else ()
    if editing:
        counts = edit_facts(
            options.database,
            add=rows,
            change=read_facts(options.change) if options.change else (),
            delete=read_deletions(options.delete) if options.delete else (),
        )
        return {"path": options.database, **counts}
    if not options.facts:
        raise ConfigError("--facts=PATH is needed: the rows of the database")
    texts = read_documents(options.documents, "--documents") if options.documents else ()
    database = FactDatabase.build(options.database, rows, texts)
    count = len(database.rows())
    database.close()
    return {"path": options.database, "facts": count}


def _dense(options: argparse.Namespace, editing: bool) -> dict[str, Any]:
    from lacy_jax.cascade import entries, index_writer
    from lacy_jax.cascade.partners.index import open_encoder

    result: dict[str, Any] = {"path": options.index}
    if editing:
        result |= index_writer.edit(
            options.index,
            open_encoder(options.index),
            add=itertools.chain(*_sources(options)),
            change=entries.of_facts(options.change) if options.change else (),
            delete=entries.read_deletions(options.delete) if options.delete else (),
        )
    elif not options.compact:
        encoder = registry_of("--encoder").named(options.encoder, "--encoder").open()
        result["entries"] = index_writer.build(
            options.index, itertools.chain(*_sources(options)), encoder, threads=options.threads, shown=True
        )
    if options.compact:
        result["entries"] = index_writer.compact(options.index, threads=options.threads)
    return result


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
