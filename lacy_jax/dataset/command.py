"""The verbs `prepare` and `judge` of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import ml_collections

from lacy_jax import config as config_lib
from lacy_jax.command_line import ServerOption, add_server_options, config_of, run_config_of, show


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Register the verbs; `verb(name, run, about, groups)` makes a sub-parser with the options that all verbs share."""
    prepare = verb("prepare", _prepare, "label and tokenise a corpus into a dataset", ("corpus", "labels"))
    prepare.add_argument(
        "--runner", default="", help="Apache Beam runner that builds the shards: DirectRunner ..."
    )
    prepare.add_argument(
        "--runner-option", action="append", default=[], help="a flag for it; may be repeated"
    )
    prepare.add_argument(
        "--dry-run", action="store_true", help="check the config, label one document, write nothing"
    )
    judge = verb(
        "judge", _judge, "add labels by an LLM judge, or by what imitates one, to a dataset (policy judge)"
    )
    judge.add_argument("--judge", required=True, metavar="chat+http://HOST:PORT/v1#MODEL|LABELLER",
                       help="a chat model behind an OpenAI-compatible server, or a labeller (annotator:FILE)")  # fmt: skip
    judge.add_argument("--split", default="", metavar="NAME", help="train or valid; default: both")
    judge.add_argument("--rate", type=float, default=0.15, action=ServerOption,
                       help="share of words that a chat model may flag (default 0.15)")  # fmt: skip
    add_server_options(judge)


def _prepare(options: argparse.Namespace) -> None:
    from lacy_jax.dataset.build import build_dataset, preview

    config = config_of(options)
    path = config_lib.dataset_folder(config, options.workdir)
    would = "would write" if options.dry_run else "writing"
    print(f"prepare: {would} to {path}{_why_there(options, config)}", file=sys.stderr, flush=True)
    if options.dry_run:
        found = preview(config, path)
        show(options, found, "\n".join(f"{name}: {value}" for name, value in found.items()))
        return
    metadata = build_dataset(config, path, options.runner, options.runner_option)
    show(options, metadata.to_dict(), f"{path}\n{metadata.summary()}")


def _why_there(options: argparse.Namespace, config: ml_collections.ConfigDict) -> str:
    """Why a dataset is not written below --workdir; "" if it is, or if no --workdir was given."""
    if not options.workdir or not config.dataset.path:
        return ""
    given = any(override.startswith("dataset.path=") for override in options.overrides)
    who = "--config.dataset.path" if given else f"config.dataset.path of {options.config}"
    return f", not below --workdir={options.workdir}: {who} says so"


def _judge(options: argparse.Namespace) -> None:
    from lacy_jax.dataset.host_cache import HostCache
    from lacy_jax.dataset.judge import judge_dataset

    config = run_config_of(options)
    cache = HostCache(config.dataset.cache, config.dataset.cache_gb)
    result = judge_dataset(options, config_lib.dataset_folder(config, options.workdir), cache)
    show(options, result, "\n".join(f"{name}: {value}" for name, value in result.items()))
