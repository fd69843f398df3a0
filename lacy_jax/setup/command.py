"""The verbs `init` and `doctor` of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

from lacy_jax.setup.templates import TEMPLATES, next_steps, write_template


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Register the verbs; `verb(name, run, about)` makes a sub-parser with the options all verbs share."""
    init = verb("init", _init, "write an experiment to start from")
    init.add_argument(
        "directory", metavar="DIR", help="gets experiments/NAME.py; created if it does not exist"
    )
    init.add_argument(
        "--template", default="quickstart", help=f"{' | '.join(TEMPLATES)} (default quickstart)"
    )
    verb(
        "doctor", _doctor, "what this machine has: devices, versions, extras, disk, write access to --workdir"
    )


def _init(options: argparse.Namespace) -> None:
    path, docstring = write_template(options.directory, options.template)
    print(json.dumps({"path": str(path)}) if options.json else next_steps(options.directory, path, docstring))


def _doctor(options: argparse.Namespace) -> int:
    from lacy_jax.setup.doctor import examine, page

    found = examine(options.workdir or "")
    print(json.dumps([dataclasses.asdict(one) for one in found]) if options.json else page(found))
    return 1 if any(one.problem for one in found) else 0
