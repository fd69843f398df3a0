"""The verbs `index` and `synthesise`: what partners look things up in, and texts about facts to train with."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.command_line import (
    Verb,
    add_server_options,
    refuse_server_options,
    run_config_of,
    server_options,
    show,
    workdir_of,
)
from lacy_jax.errors import ConfigError, DataError
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
    sub.add_argument("--link", action="store_true",
                     help="tell the dataset of --workdir or --config, or those of its mixture, which entries of --index their factual spans come from, for a query head")  # fmt: skip
    sub.add_argument("--calibrate", action="store_true",
                     help="find the least similarity at which the query head of the run in --workdir gives a value of --index, on the validation text of its linked dataset")  # fmt: skip
    sub.add_argument("--add", action="store_true", help="add --documents, --facts or --spans to what exists")
    sub.add_argument(
        "--compact", action="store_true", help="write an index's graph anew, without what was deleted"
    )
    sub.add_argument(
        "--encoder", default="minilm", metavar="NAME", help="of a new index; see below (default minilm)"
    )
    sub.add_argument("--threads", type=int, default=1,
                     help="that write the graph; with 1 the same entries give the same file (default 1)")  # fmt: skip


def add_synthesise(verb: Callable[..., Verb]) -> None:
    """Register the verb; see `add_index`."""
    sub = verb("synthesise", _synthesise, "let a teacher write new texts about known facts", ("--kinds",))
    sub.add_argument("--facts", required=True, metavar="PATH", help="as of `lacy index`")
    sub.add_argument("--teacher", required=True, metavar="SPEC",
                     help="chat+http://HOST:PORT/v1#MODEL, a chat model behind a server; or world:PEOPLE[,SEED], the synthetic world")  # fmt: skip
    sub.add_argument(
        "--out", required=True, metavar="FILE.jsonl", help="the texts, a corpus of kind lmlm or jsonl"
    )
    sub.add_argument("--kinds", default="", metavar="NAME,...", help="see below (default: all)")
    sub.add_argument("--per-fact", type=int, default=1, help="texts of each kind about each fact (default 1)")
    sub.add_argument("--limit", type=int, default=0, help="only the first so many facts; 0 = all")
    add_server_options(sub)


def _synthesise(options: argparse.Namespace) -> None:
    from lacy_jax.cascade import synthesis
    from lacy_jax.cascade.fact_database import read_facts
    from lacy_jax.clients import ChatClient, PriceGuard
    from lacy_jax.progress import Progress

    if options.per_fact < 1:
        raise ConfigError(f"--per-fact={options.per_fact}: must be at least 1")
    if files.exists(options.out):
        raise ConfigError(f"--out={options.out}: it exists; remove it or choose another name")
    server, guard = server_options(options), PriceGuard(options.prices, options.max_cost)
    clients: list[ChatClient] = []

    def client() -> ChatClient:
        clients.append(
            ChatClient(options.teacher, f"{options.out}.answers", who="teacher", guard=guard, **server)
        )
        return clients[0]

    teacher = synthesis.open_teacher(options.teacher, client)
    if not clients:
        refuse_server_options(options, f"--teacher={options.teacher} is the synthetic world")
    kinds = options.kinds.split(",") if options.kinds else list(synthesis.CONTEXT_KINDS)
    facts = list(itertools.islice(read_facts(options.facts), options.limit or None))
    tasks = list(synthesis.tasks_of(facts, kinds, options.per_fact))
    if clients:
        expected = guard.estimate(synthesis.to_ask(tasks, clients[0]))
        print(f"synthesise: about to ask: {json.dumps(expected.to_dict())}", file=sys.stderr, flush=True)
        guard.allow(expected)
    if options.dry_run:
        show(options, {"texts": len(tasks)}, f"would ask for {len(tasks)} texts about {len(facts)} facts")
        return
    counts: dict[str, Any] = {}
    with Progress("synthesise", unit="text", total=len(tasks)) as progress:
        rows = []
        for row in synthesis.synthesise(tasks, teacher, counts):
            rows.append(json.dumps(row, ensure_ascii=False))
            progress.update(counts["asked"] - progress.count)
    files.write_text(options.out, "".join(f"{row}\n" for row in rows))
    result = {"path": options.out, "facts": len(facts), "teacher": teacher.name, **counts}
    text = {
        name: dict(value) or "none" if isinstance(value, dict) else value for name, value in result.items()
    }
    show(options, result, "\n".join(f"{name}: {value}" for name, value in text.items()))


def _index(options: argparse.Namespace) -> None:
    if bool(options.index) == bool(options.database):
        raise ConfigError("give --index=FOLDER or --database=FILE")
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: must be at least 1")
    given = options.documents or options.facts or options.spans
    others = given or options.add or options.change or options.delete or options.compact or options.database
    for name, run in (("link", _link), ("calibrate", _calibrate)):
        if getattr(options, name):
            if others or (options.link and options.calibrate):
                raise ConfigError(f"--{name} needs --index=FOLDER alone: build or change the index first")
            run(options)
            return
    editing = bool(options.add or options.change or options.delete)
    if given and not options.add and (editing or options.compact):
        raise ConfigError(
            "--documents, --facts and --spans build anew; with --add they are added to what exists"
        )
    if not given and (options.add or not (editing or options.compact)):
        raise ConfigError(
            "give --documents, --facts or --spans; or --change, --delete, --compact, --link or --calibrate"
        )
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


def _link(options: argparse.Namespace) -> None:
    from lacy_jax.cascade.dense_index import DenseIndex
    from lacy_jax.cascade.linking import link_spans
    from lacy_jax.cascade.partners.index import open_encoder

    config = run_config_of(options)
    paths = [path for path, _ in config_lib.mixture_of(config)]
    if config.dataset.path or not paths:  # Of a mixture it is the validation text.
        paths.append(str(config_lib.dataset_folder(config, options.workdir)))
    paths = list(dict.fromkeys(paths))
    index = DenseIndex(options.index, open_encoder(options.index))
    with contextlib.closing(index):
        result = {"path": ", ".join(paths), **link_spans(paths, index, shown=True)}
    show(options, result, ", ".join(f"{name} {value}" for name, value in result.items()))


def _calibrate(options: argparse.Namespace) -> None:
    from lacy_jax.cascade import index_writer
    from lacy_jax.cascade.dense_index import DenseIndex, head_name
    from lacy_jax.cascade.least_similarity import find_least
    from lacy_jax.cascade.partners.base import needs_head
    from lacy_jax.cascade.partners.index import open_encoder
    from lacy_jax.dataset.query_links import ADVICE, QUERY_ENTRY
    from lacy_jax.dataset.source import open_split
    from lacy_jax.training import load_run

    config = run_config_of(options)
    run = load_run(workdir_of(options))
    if not run.model_config.query_dim:
        raise needs_head("index:...")
    path = config_lib.dataset_folder(config, run.workdir)
    records = open_split(path, "valid")
    if QUERY_ENTRY not in records.labels:
        raise DataError(f"dataset {path}: has no extra {QUERY_ENTRY}; {ADVICE.format(path=path)}")
    with contextlib.closing(DenseIndex(options.index, open_encoder(options.index))) as index:
        found = find_least(index, run.model, run.tokenizer, (records[at] for at in range(len(records))))
    kept = {by: one.least for by, one in found.items() if one.least is not None}
    index_writer.keep_least(options.index, head_name(run.model.query_head[...]), kept)
    result = {"path": options.index, **{by: dataclasses.asdict(one) for by, one in found.items()}}
    show(options, result, "\n".join(f"#{by}: {one}" for by, one in found.items()))


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
