"""Shared by the verbs of the `lacy` command: making the parser of a verb, and reading its options."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.errors import ConfigError
from lacy_jax.registry import choices_text


class Verb(argparse.ArgumentParser):
    """A verb; its help ends with the choices of the config fields it reads.

    Attributes:
      late: adds options that depend on a registry, only when the verb is used, because registries are slow to import.
    """

    groups: tuple[str, ...] = ()
    late: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        late, self.late = self.late, None
        if late:
            late(self)
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        super().print_help(file)
        for text in choices_text(self.groups):
            self._print_message(text, file or sys.stdout)


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add --step, for every verb that reads a checkpoint."""
    parser.add_argument("--step", type=int, default=0, help="checkpoint; 0 = latest")


class ServerOption(argparse.Action):
    """Keeps a value, and in `for_server` that it was given: see `refuse_server_options`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.for_server = [*namespace.for_server, self.option_strings[0]]


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Options about the chat model of a server, and what it may cost; see `lacy_jax.clients`."""
    parser.set_defaults(for_server=[])
    parser.add_argument("--key-env", default="", metavar="NAME", action=ServerOption,
                        help="environment variable that holds the key (default LACY_API_KEY, else OPENAI_API_KEY)")  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=8, action=ServerOption,
                        help="concurrent requests (default 8)")  # fmt: skip
    parser.add_argument("--prices", default="", metavar="IN,OUT", action=ServerOption,
                        help="a server's prices per 1M prompt and answer tokens")  # fmt: skip
    parser.add_argument("--max-cost", type=float, default=0.0, action=ServerOption,
                        help="with --prices: refuse to start above this estimate, and stop when this much is spent")  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=0, action=ServerOption,
                        help="most tokens of a server's answer, including its reasoning; 0 = the default of the task")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the estimate and stop")


def refuse_server_options(options: argparse.Namespace, who: str) -> None:
    """For a task that asks no server.

    Raises:
      ConfigError: one of these options was given, also with its default value; names them and `who`.
    """
    if options.for_server:
        raise ConfigError(f"{', '.join(options.for_server)}: only for the chat model of a server; {who}")


def server_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `ChatClient` from these options.

    Raises:
      ConfigError: no key in the variable that --key-env names.
    """
    if options.key_env and not os.environ.get(options.key_env):
        raise ConfigError(f"--key-env={options.key_env}: this environment variable is not set")
    return {
        "key": os.environ[options.key_env] if options.key_env else None,
        "concurrency": options.concurrency,
        "max_tokens": options.max_tokens,
    }


def config_of(options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config of --config, with its overrides."""
    if not options.config:
        raise ConfigError(
            "--config=FILE.py[:arg] is needed, for example --config=experiments/quickstart.py:lacy"
        )
    return config_lib.load_config(options.config, options.overrides)


def workdir_of(options: argparse.Namespace) -> epath.Path:
    """The folder of --workdir."""
    if not options.workdir:
        raise ConfigError("--workdir=DIR is needed")
    files.check_storage(options.workdir)
    return epath.Path(options.workdir)


def run_config_of(options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The given config, or else the one in the run directory, with overrides; --step counts as an override."""
    if getattr(options, "step", 0):
        options.overrides = [*options.overrides, f"generate.step={options.step}"]
    if options.config or not options.workdir:
        return config_of(options)
    return config_lib.finish(config_lib.read_run_config(workdir_of(options)), options.overrides)


def show(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Print a result: as JSON with --json, else as text."""
    print(json.dumps(result) if options.json else text)
