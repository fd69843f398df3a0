"""The `lacy` command: from text to a judged model, one verb a step.

Every verb takes `--config=FILE.py[:arg]` with `--config.field=value` overrides and `--workdir=DIR`; a verb that
works on a finished run reads the config from its run directory. Errors a user can cause end in one line on
stderr and exit code 2; an interrupted run that can go on says "resumable" and exits 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.export.command import add_step, inspect_export
from lacy_jax.export.command import add_verbs as add_export_verbs
from lacy_jax.registry import choices_text
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.setup.command import add_verbs as add_setup_verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done; 2 a user error, printed as one line; 130, 143 stopped by Ctrl-C, SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    options = _parser().parse_args([a for a in arguments if not a.startswith("--config.")])
    options.overrides = overrides
    before = _terminate_politely() if options.verb not in _STOP_THEMSELVES else None
    try:
        return options.run(options) or 0
    except KeyboardInterrupt as interrupt:
        print(f"lacy {options.verb}: stopped{f': {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130
    except LacyError as error:
        print(f"lacy {options.verb}: {error}", file=sys.stderr)
        if getattr(options, "distributed", None):
            from lacy_jax.training.cluster import leave_at_once

            leave_at_once(2)
        return 2
    except BrokenPipeError:  # `lacy inspect | head`
        sys.stderr.close()
        return 0
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


_STOP_THEMSELVES = ("train", "sweep")
"""Verbs that finish a step, or their trials, on a signal."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: the same as Ctrl-C, with another exit status."""


def _terminate_politely() -> Any:
    """SIGTERM ends the command as Ctrl-C does; gives the handler that was there, None outside the main thread."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, terminate)


def _add_server_limits(parser: argparse.ArgumentParser) -> None:
    """What a verb that asks a server may spend; `lacy_jax.clients.prices`."""
    parser.add_argument(
        "--prices", default="", metavar="IN,OUT", help="of a server, per 1M prompt and answer tokens"
    )
    parser.add_argument("--max-cost", type=float, default=0.0,
                        help="with --prices: refuse to start above this, and stop when so much is spent")  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=0,
                        help="of a server's longest answer, what the model thinks before included; 0 = usual for the task")  # fmt: skip


class _Verb(argparse.ArgumentParser):
    """A verb; its help ends with the choices of the config fields it reads.

    Attributes:
      late: adds options that only a registry knows, once the verb is really asked for: rooms are slow to import.
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


def _add_suite_options(evaluate: argparse.ArgumentParser) -> None:
    from lacy_jax.evaluation.suites import all_options

    for option, readers in all_options().items():
        evaluate.add_argument(
            option.flag,
            type=type(option.default),
            default=argparse.SUPPRESS,
            help=f"{option.about} ({', '.join(readers)})",
        )


_TRAINING_GROUPS = ("input", "model", "objective", "optimizer", "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lacy", description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Verb)

    def verb(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        about: str,
        groups: tuple[str, ...] = (),
    ) -> _Verb:
        sub = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.groups = groups
        sub.set_defaults(run=run)
        sub.add_argument(
            "--config", metavar="FILE.py[:ARG]", help="experiment; override fields with --config.field=value"
        )
        sub.add_argument("--workdir", metavar="DIR", help="run directory")
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        return sub

    add_setup_verbs(verb)
    prepare = verb("prepare", _prepare, "label and tokenise a corpus into a dataset", ("corpus", "labels"))
    prepare.add_argument(
        "--runner", default="", help="Apache Beam runner that builds the shards: DirectRunner ..."
    )
    prepare.add_argument(
        "--runner-option", action="append", default=[], help="a flag for it; may be repeated"
    )
    judge = verb("judge", _judge, "add labels by an LLM judge to a dataset (policy judge)")
    judge.add_argument("--judge", required=True, metavar="chat+http://HOST:PORT/v1#MODEL",
                       help="a chat model behind an OpenAI-compatible server")  # fmt: skip
    judge.add_argument("--split", default="", metavar="NAME", help="train or valid; default: all there are")
    judge.add_argument("--key-env", default="", metavar="NAME",
                       help="environment variable that holds the key (default LACY_API_KEY, else OPENAI_API_KEY)")  # fmt: skip
    judge.add_argument("--concurrency", type=int, default=8, help="requests at once")
    judge.add_argument("--rate", type=float, default=0.15, help="share of words that may be flagged")
    judge.add_argument("--dry-run", action="store_true", help="print what it will take, and stop")
    _add_server_limits(judge)
    score = verb(
        "score",
        _score,
        "store the losses of a run as reference of another (policies rho, rho_skip, spacy_ref)",
    )
    score.add_argument("--dataset", metavar="DIR", help="whose tokens; default: the run's own dataset")
    score.add_argument("--split", default="", metavar="NAME", help="train or valid; default: all there are")
    add_step(score)
    score.add_argument("--batch-size", type=int, default=0, help="rows at once; 0 = the run's")
    score.add_argument("--shard", default="0/1", metavar="I/N",
                       help="of N processes that see the same folder, this is number I, from 0")  # fmt: skip
    train = verb("train", _train, "train a model; resumes if the workdir holds checkpoints", _TRAINING_GROUPS)
    train.add_argument("--distributed", nargs="?", const="auto", metavar="HOST:PORT,N,INDEX",
                       help="one of several processes: found from the environment (Cloud TPU, GKE, Slurm), or as given")  # fmt: skip
    train.add_argument("--silence", type=int, default=90, metavar="SECONDS",
                       help="with --distributed: a process that another has heard nothing of for so long is taken for dead (default 90)")  # fmt: skip
    train.add_argument("--stopped-exit", type=int, default=0, metavar="STATUS",
                       help="exit status of a run that a signal stopped before its end (default 0); for what starts it again")  # fmt: skip
    sweep = verb(
        "sweep", _sweep, "the trials of an experiment's sweep(): list, run here, or emit launch commands"
    )
    sweep.add_argument(
        "--dry-run", action="store_true", help="list the trials and where they stand; run nothing"
    )
    sweep.add_argument("--jobs", type=int, default=1, help="trials at a time on this machine")
    sweep.add_argument("--emit", nargs="?", const="{command}", metavar="TEMPLATE",
                       help="print one launch command per trial that is not done; may use {command} {config} {workdir} {arguments} {name} {index} {experiment}")  # fmt: skip
    sweep.add_argument(
        "--metric", default="valid/nll", help="what the table is sorted by (default valid/nll)"
    )
    plan = verb("plan", _plan, "compile the train step for a TPU slice, without a TPU, and say what it needs")
    plan.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:4x4x4, v6e-64 ..."
    )
    plan.add_argument("--slices", type=int, default=1, help="slices of that topology (multislice)")
    plan.add_argument("--no-search", action="store_true", help="do not search for the largest batch")
    generate = verb("generate", _generate, "write texts with a trained model and a partner", ("generate",))
    generate.add_argument("--out", metavar="FILE.jsonl", help="default: WORKDIR/samples/GATE-BUDGET.jsonl")
    add_step(generate)
    generate.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    evaluate = verb("evaluate", _evaluate, "what a trained model, or its texts, are worth", ("--suite",))
    evaluate.add_argument("--suite", default="calls", metavar="NAME", help="see below (default calls)")
    evaluate.late = _add_suite_options
    add_step(evaluate)
    inspect = verb("inspect", _inspect, "show documents with their factual tokens marked")
    inspect.add_argument("--limit", type=int, default=3, help="most documents (default 3)")
    inspect.add_argument("--out", metavar="FILE.html", help="write HTML instead of terminal text")
    add_step(inspect)
    inspect.add_argument("--against", default="", metavar="LABELLER", help="a second labeller, side by side")
    inspect.add_argument(
        "--scores", action="store_true", help="with --workdir=RUN: its loss and p(CALL) per token"
    )
    report = verb("report", _report, "one self-contained HTML page for one or many runs")
    report.add_argument(
        "--runs", nargs="*", default=[], metavar="DIR", help="more run directories beside --workdir"
    )
    report.add_argument("--out", metavar="FILE.html", help="default: WORKDIR/report.html")
    add_export_verbs(verb)
    return parser


# -- shared ----------------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> ml_collections.ConfigDict:
    if not options.config:
        raise ConfigError(
            "--config=FILE.py[:arg] is needed, for example --config=experiments/quickstart.py:lacy"
        )
    return config_lib.load_config(options.config, options.overrides)


def _workdir(options: argparse.Namespace) -> epath.Path:
    if not options.workdir:
        raise ConfigError("--workdir=DIR is needed")
    files.check_storage(options.workdir)
    return epath.Path(options.workdir)


def _run_config(options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config given, or else the one kept in the run directory, with overrides; --step is one, too."""
    if getattr(options, "step", 0):
        options.overrides = [*options.overrides, f"generate.step={options.step}"]
    if options.config or not options.workdir:
        return _config(options)
    return config_lib.finish(config_lib.read_run_config(_workdir(options)), options.overrides)


def _print(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result) if options.json else text)


# -- verbs -----------------------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> None:
    from lacy_jax.dataset import build_dataset

    config = _config(options)
    path = config_lib.dataset_folder(config, options.workdir)
    print(f"prepare: writing to {path}{_why_there(options, config)}", file=sys.stderr, flush=True)
    metadata = build_dataset(config, path, options.runner, options.runner_option)
    _print(options, metadata.to_dict(), f"{path}\n{metadata.summary()}")


def _why_there(options: argparse.Namespace, config: ml_collections.ConfigDict) -> str:
    """Why a dataset is not written below --workdir; "" where it is, or none was given."""
    if not options.workdir or not config.dataset.path:
        return ""
    given = any(override.startswith("dataset.path=") for override in options.overrides)
    who = "--config.dataset.path" if given else f"config.dataset.path of {options.config}"
    return f", not below --workdir={options.workdir}: {who} says so"


def _train(options: argparse.Namespace) -> int:
    watch: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if options.distributed:  # Before anything asks for devices.
        from lacy_jax.training.cluster import PeerWatch, join_cluster

        if options.silence < 1:
            raise ConfigError(f"--silence={options.silence}: must be at least 1 second")
        join_cluster(options.distributed, silence_s=options.silence)
        watch = PeerWatch(options.silence)
    from lacy_jax.training import train

    with watch:
        result = train(_run_config(options), _workdir(options))
    _print(options, result.to_dict(), result.summary())
    return options.stopped_exit if result.interrupted else 0


def _plan(options: argparse.Namespace) -> None:
    from lacy_jax.planning.plan import make_plan

    plan = make_plan(_config(options), options.topology, options.slices, search=not options.no_search)
    _print(options, plan.to_dict(), plan.summary())


def _sweep(options: argparse.Namespace) -> None:
    from lacy_jax.sweeps.table import sweep_command

    _config(options)
    dry_run = bool(options.dry_run)
    result, text = sweep_command(
        options.config, options.overrides, _workdir(options), dry_run, options.jobs, options.emit, options.metric
    )  # fmt: skip
    _print(options, result, text)


def _generate(options: argparse.Namespace) -> None:
    from lacy_jax.cascade import Prompt, budget_summary
    from lacy_jax.evaluation.run_texts import generate_texts, make_partner, make_prompts
    from lacy_jax.training import load_run

    config = _run_config(options)
    run = load_run(_workdir(options), config.generate.step)
    given = [Prompt(text, f"prompt-{i}") for i, text in enumerate(options.prompt)]
    prompts = given or make_prompts(run, config)
    partner = make_partner(config)
    started = time.monotonic()
    with contextlib.closing(partner) if partner else contextlib.nullcontext():
        written = generate_texts(run, config, prompts, partner, out=options.out)
    seconds = time.monotonic() - started
    texts, path, meter = written.texts, written.path, written.meter
    shown = "\n\n".join(f"{_marked(text)}" for text in texts[:3])
    result = {
        "path": str(path),
        "texts": len(texts),
        "gate": texts[0].gate,
        "budget": texts[0].budget,
        "tokens": sum(len(text.tokens) for text in texts),
        "calls": sum(text.calls for text in texts),
        "partner_tokens": sum(text.origins.count("partner") for text in texts),
        "budget_met": sum(text.budget_met for text in texts),
        "seconds": seconds,
        "partner_exchanges": meter.exchanges,
        "partner_seconds": meter.seconds,
    }
    took = f"{seconds:.1f} s" + (f", {written.before} of them kept from before" if written.before else "")
    if partner:
        took += f"; {meter.seconds:.1f} s in {meter.exchanges} exchanges with the partner"
    _print(options, result, f"{shown}\n\n{budget_summary(texts)}\n{len(texts)} texts in {path} ({took})")


def _marked(text: Any) -> str:
    """The text with what the partner wrote in [[brackets]]."""
    parts = [f"[[{text.text[a:b]}]]" if who == "partner" else text.text[a:b] for a, b, who in text.spans]
    return text.prompt + "".join(parts)


def _evaluate(options: argparse.Namespace) -> None:
    from lacy_jax.evaluation.suites import all_options, run_suite

    config = _run_config(options) if options.config or options.workdir else None
    given = {o.name: getattr(options, o.name) for o in all_options() if hasattr(options, o.name)}
    figures, text = run_suite(options.suite, given, options.workdir and _workdir(options), config)
    _print(options, figures, text)


def _inspect(options: argparse.Namespace) -> None:
    if exported := inspect_export(options.workdir):
        _print(options, *exported)
        return
    from lacy_jax import files
    from lacy_jax.labels.inspect import inspect_documents, render_html, render_terminal
    from lacy_jax.tokenizer import Tokenizer

    if options.scores:  # else no model is needed, nor JAX
        from lacy_jax.evaluation.inspection import add_scores
        from lacy_jax.training import load_run

    config = _run_config(options)
    prepared = config_lib.dataset_folder(config, options.workdir or ".") / TOKENIZER_FILE
    path = config.tokenizer.path or (str(prepared) if prepared.exists() else "")
    run = load_run(_workdir(options), config.generate.step) if options.scores else None
    tokenizer = run.tokenizer if run else Tokenizer.load(path) if path else None
    shown = inspect_documents(config, options.limit, tokenizer, options.against)
    if run:
        shown = add_scores(shown, run)
    if options.out:
        files.write_text(options.out, render_html(shown))
    result = {"documents": [document.to_dict() for document in shown], "path": options.out}
    _print(options, result, options.out or render_terminal(shown, color=sys.stdout.isatty()))


def _judge(options: argparse.Namespace) -> None:
    from lacy_jax.dataset.judge import judge_dataset

    config = _run_config(options)
    result = judge_dataset(options, config_lib.dataset_folder(config, options.workdir))
    _print(options, result, "\n".join(f"{name}: {value}" for name, value in result.items()))


def _score(options: argparse.Namespace) -> None:
    from lacy_jax.training.reference import score_dataset

    try:
        index, count = map(int, options.shard.split("/"))
    except ValueError:
        raise ConfigError(f"--shard={options.shard}: expected I/N, such as 0/4") from None
    result = score_dataset(
        _workdir(options),
        options.dataset,
        step=options.step,
        split=options.split,
        batch_size=options.batch_size,
        shard=(index, count),
    )
    lines = [
        f"{name}: {found['tokens']} tokens, "
        + (f"{found['missing']} parts missing" if found["missing"] else f"mean nll {found['nll']:.4f}")
        for name, found in result["splits"].items()
    ]
    _print(options, result, f"{result['dataset']}: reference_nll of {options.workdir}\n" + "\n".join(lines))


def _report(options: argparse.Namespace) -> None:
    from lacy_jax.report.page import report_command

    runs = [*([options.workdir] if options.workdir else []), *options.runs]
    if not runs:
        raise ConfigError("give --workdir=DIR or --runs DIR ...: run directories, or a folder of them")
    path = report_command(runs, options.out)
    _print(options, {"path": str(path)}, str(path))


if __name__ == "__main__":
    sys.exit(main())
