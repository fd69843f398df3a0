"""The verb `serve` of the command line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_collections

from lacy_jax import config as config_lib
from lacy_jax.command_line import Verb, add_step, run_config_of
from lacy_jax.errors import ConfigError
from lacy_jax.run_files import CHAT_TEMPLATE_FILE, CONFIG_FILE

if TYPE_CHECKING:
    from lacy_jax.serving.service import Service
    from lacy_jax.training.run import Run

DEMO = pathlib.Path(__file__).parent / "demo"
"""A run that comes with the package; docs/serve.md has the commands that made it."""
KEY_VARIABLE = "LACY_SERVE_KEYS"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_verbs(verb: Callable[..., Verb]) -> None:
    """Register the verb; `verb(name, run, about, groups)` makes a sub-parser with the options all verbs share."""
    sub = verb(
        "serve",
        _serve,
        "a trained model with its partner behind an OpenAI-compatible endpoint",
        ("generate",),
    )
    sub.add_argument(
        "--demo",
        action="store_true",
        help="serve a tiny model of the synthetic world, its fact table as partner",
    )
    sub.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    sub.add_argument("--port", type=int, default=8000, help="0 = a free one (default 8000)")
    sub.add_argument("--name", default="", help="of the model, for clients (default: the run directory's)")
    sub.add_argument(
        "--queue",
        type=int,
        default=64,
        help="texts that may wait for a row (default 64); rows are generate.batch_size",
    )
    sub.add_argument(
        "--time-limit", type=float, default=600.0, metavar="S", help="longest time of a text (default 600)"
    )
    sub.add_argument(
        "--max-body", type=int, default=4 << 20, metavar="BYTES", help="longest request (default 4 MiB)"
    )
    sub.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="S",
        help="when stopped: time for texts to finish (default 30)",
    )
    sub.add_argument("--key-env", default=KEY_VARIABLE, metavar="NAME",
                     help=f"environment variable with the keys that clients may use, separated by spaces (default {KEY_VARIABLE})")  # fmt: skip
    add_step(sub)


def _serve(options: argparse.Namespace) -> int:
    if options.demo and (options.config or options.workdir):
        raise ConfigError("--demo brings its own run: leave out --config and --workdir")
    options.workdir = str(DEMO) if options.demo else options.workdir
    if not options.workdir:
        raise ConfigError("--workdir=RUN is needed, or --demo")
    config = run_config_of(options)
    try:
        from lacy_jax.serving.app import make_app
        from lacy_jax.serving.listening import bind, listen
    except ImportError as error:
        raise ConfigError(f"lacy serve needs {error.name}: pip install 'lacy_jax[serve]'") from None
    for name, value, low in (
        ("port", options.port, 0),
        ("queue", options.queue, 0),
        ("max-body", options.max_body, 1),
    ):
        if value < low:
            raise ConfigError(f"--{name}={value}: must be at least {low}")
    if options.time_limit <= 0 or options.grace < 0:
        raise ConfigError(
            f"--time-limit={options.time_limit:g} must be positive, --grace={options.grace:g} not negative"
        )
    keys = os.environ.get(options.key_env, "").split()
    if options.host not in _LOOPBACK and not keys:
        print(
            f"warning: anybody who reaches {options.host} may use this server; set {options.key_env}",
            file=sys.stderr,
        )

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with bind(options.host, options.port) as bound:
        service, examples, partner = _open(options, config)
        with contextlib.closing(partner) if partner else contextlib.nullcontext():
            app = make_app(service, keys=keys, largest_body=options.max_body, log=log, examples=examples)
            return listen(app, service, bound, options.grace)


def _open(options: argparse.Namespace, config: ml_collections.ConfigDict) -> tuple[Service, list[str], Any]:
    """(the service, prompts for its page, its partner)."""
    import numpy as np

    from lacy_jax.cascade import CalibratedGate
    from lacy_jax.evaluation.run_texts import (
        fitted_gate,
        gate_calibration,
        gate_of,
        keep_compiled,
        make_partner,
        make_prompts,
    )
    from lacy_jax.objectives import GATES, POLICIES, scored_gates
    from lacy_jax.serving.demo_scores import demo_scores
    from lacy_jax.serving.requests import Defaults
    from lacy_jax.serving.service import Service, Settings
    from lacy_jax.tokenizer import ChatTemplate
    from lacy_jax.training.run import load_run

    keep_compiled()
    run = load_run(options.workdir, config.generate.step)
    partner = make_partner(config)
    settings = config.generate

    @functools.cache
    def fitted(gate: str) -> tuple[str | CalibratedGate, np.ndarray | None]:
        used: str | CalibratedGate = fitted_gate(run, config) if "fit" in GATES[gate].needs else gate
        if partner is None:
            return used, None
        return used, demo_scores(run, config, used) if options.demo else gate_calibration(run, config, used)

    gates = scored_gates(POLICIES[run.config.objective.policy].uses_call)
    service = Service(
        run.model,
        run.tokenizer,
        partner,
        Settings(
            name=options.name or ("lacy-demo" if options.demo else pathlib.PurePath(str(run.workdir)).name),
            gate=gate_of(run, config),
            budget=settings.budget,
            defaults=Defaults(settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p),
            gates=tuple(gates),
            rows=settings.batch_size,
            queue=options.queue,
            seconds=options.time_limit,
            stop_on_failure=settings.on_partner_failure == "stop",
            created=_made(run),
        ),
        fitted,
        ChatTemplate(run.chat_template, run.tokenizer, f"{options.workdir}: {CHAT_TEMPLATE_FILE}")
        if run.chat_template
        else None,
    )
    examples = (
        [prompt.text for prompt in make_prompts(run, config_lib.changed(config, {"generate.num_prompts": 4}))]
        if config.corpus.kind == "world"
        else []
    )
    return service, examples, partner


def _made(run: Run) -> int:
    """When the run's checkpoint was written, as far as the files tell."""
    with contextlib.suppress(OSError):
        return int((run.workdir / CONFIG_FILE).stat().mtime)
    return 0
