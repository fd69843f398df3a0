"""The `lacy` command: from text to a judged model, one verb a step.

Every verb takes `--config=FILE.py[:arg]` with `--config.field=value` overrides and `--workdir=DIR`; a verb that
works on a finished run reads the config from its run directory. Errors a user can cause end in one line on
stderr and exit code 2; an interrupted run that can go on says "resumable" and exits 0.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from lacy_jax import files
from lacy_jax.command_line import Verb, add_step, config_of, run_config_of, show, workdir_of
from lacy_jax.dataset.command import add_verbs as dataset_verbs
from lacy_jax.errors import DEFECT, STORAGE, ConfigError, LacyError
from lacy_jax.evaluation.command import add_verbs as evaluation_verbs
from lacy_jax.export.command import add_verbs as export_verbs
from lacy_jax.pods.command import add_verbs as pods_verbs
from lacy_jax.serving.command import add_verbs as serving_verbs
from lacy_jax.setup.command import add_verbs as setup_verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done; that of a `LacyError`, printed as one line (2 = the user's, see
    `lacy_jax.errors`); 130, 143 stopped by Ctrl-C, SIGTERM.

    One of several processes does not return after a failure: it leaves at once, since others may wait for it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    options = _parser().parse_args([a for a in arguments if not a.startswith("--config.")])
    options.overrides = overrides
    before = _terminate_politely() if options.verb not in _STOP_THEMSELVES else None
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_stop_again, hook)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt as interrupt:
        print(f"lacy {options.verb}: stopped{f': {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130
    except BrokenPipeError:  # `lacy inspect | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if isinstance(error, LacyError):
            line, status = str(error), error.exit_status
        elif files.is_storage_failure(error) and not files.is_local(options.workdir or ""):
            line, status = f"{options.workdir}: {files.reason(error)}", STORAGE.status
        else:
            line, status = "", DEFECT.status
        alone = not getattr(options, "distributed", None)
        # What hangs in a bucket's client would be waited for, as other processes would.
        stuck = status == STORAGE.status and not files.is_local(options.workdir or "")
        if not line and alone:
            raise
        print(f"lacy {options.verb}: {line}" if line else traceback.format_exc(), file=sys.stderr)
        if not alone or stuck:
            from lacy_jax.training.cluster import leave_at_once

            leave_at_once(status)
        return status
    finally:
        sys.unraisablehook = hook
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


def _stop_again(otherwise: Callable[[Any], Any], lost: Any) -> None:
    """In place of the hook for lost exceptions, `otherwise`: a signal that arrives while Python frees objects (JAX has callbacks there) would be
    dropped, as every exception there is; so it is sent again a moment later."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        otherwise(lost)
        return
    number = signal.SIGTERM if isinstance(lost.exc_value, _Terminated) else signal.SIGINT
    threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number)).start()


_TRAINING_GROUPS = ("input", "model", "objective", "optimizer", "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lacy", description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Verb)

    def verb(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        about: str,
        groups: tuple[str, ...] = (),
    ) -> Verb:
        sub = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.groups = groups
        sub.set_defaults(run=run)
        sub.add_argument(
            "--config", metavar="FILE.py[:ARG]", help="experiment; override fields with --config.field=value"
        )
        sub.add_argument("--workdir", metavar="DIR", help="run directory")
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        return sub

    setup_verbs(verb)
    dataset_verbs(verb)
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
    sweep.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="trials at a time on this machine; of a search with --emit: points at a time",
    )
    sweep.add_argument("--journal", default="", metavar="FILE",
                       help="of a search: what was chosen and found, shared by all machines that work on it (default WORKDIR/search.journal)")  # fmt: skip
    sweep.add_argument("--emit", nargs="?", const="{command}", metavar="TEMPLATE",
                       help="print one launch command per trial that is not done; may use {command} {config} {workdir} {arguments} {name} {index} {experiment}")  # fmt: skip
    sweep.add_argument(
        "--metric",
        default="valid/nll",
        help="what trials are ranked by, lowest first, and a search looks for (default valid/nll)",
    )
    plan = verb("plan", _plan, "compile the train step for a TPU slice, without a TPU, and say what it needs")
    plan.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:4x4x4, v6e-64 ..."
    )
    plan.add_argument("--slices", type=int, default=1, help="slices of that topology (multislice)")
    plan.add_argument("--no-search", action="store_true", help="do not search for the largest batch")
    plan.add_argument("--libtpu-flags", default="", help="LIBTPU_INIT_ARGS that the run will have, too")
    plan.add_argument("--tune", action="store_true",
                      help="search for faster settings by the compiler's clock; goes on with what WORKDIR holds, and writes them there")  # fmt: skip
    plan.add_argument(
        "--compilations", type=int, default=40, metavar="N", help="with --tune: at most so many programs, those in WORKDIR included (default 40)"
    )  # fmt: skip
    evaluation_verbs(verb)
    serving_verbs(verb)
    report = verb("report", _report, "one self-contained HTML page for one or many runs")
    report.add_argument(
        "--runs", nargs="*", default=[], metavar="DIR", help="more run directories beside --workdir"
    )
    report.add_argument("--out", metavar="FILE.html", help="default: WORKDIR/report.html")
    pods_verbs(verb)
    export_verbs(verb)
    return parser


# -- verbs -----------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    watch: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    config = run_config_of(options)
    if options.distributed:  # Before anything asks for devices.
        from lacy_jax.training.cluster import PeerWatch, join_cluster

        if options.silence < 1:
            raise ConfigError(f"--silence={options.silence}: must be at least 1 second")
        join_cluster(options.distributed, silence_s=options.silence, ram=config.checkpoint.ram)
        watch = PeerWatch(options.silence)
    from lacy_jax.training import train

    with watch:
        result = train(config, workdir_of(options))
    show(options, result.to_dict(), result.summary())
    return options.stopped_exit if result.interrupted else 0


def _plan(options: argparse.Namespace) -> None:
    if options.libtpu_flags:  # Read when libtpu is loaded.
        os.environ["LIBTPU_INIT_ARGS"] = options.libtpu_flags
    config = config_of(options)
    if options.tune:
        from lacy_jax.planning.tune import OVERRIDES_FILE, tune

        workdir = workdir_of(options)
        given = [f"--config={options.config}", *(f"--config.{override}" for override in options.overrides)]
        found = tune(config, options.topology, workdir, options.slices, options.compilations, given)
        use = f"  to use them: lacy train {shlex.join(given)} $(cat {shlex.quote(str(workdir / OVERRIDES_FILE))})"
        show(options, found.to_dict(), f"{found.summary()}\n{use}")
        return
    from lacy_jax.planning.plan import make_plan

    plan = make_plan(config, options.topology, options.slices, search=not options.no_search)
    show(options, plan.to_dict(), plan.summary())


def _sweep(options: argparse.Namespace) -> None:
    from lacy_jax.sweeps.table import sweep_command

    config_of(options)
    dry_run = bool(options.dry_run)
    result, text = sweep_command(
        options.config, options.overrides, workdir_of(options), dry_run, options.jobs, options.emit, options.metric,
        options.journal,
    )  # fmt: skip
    show(options, result, text)


def _score(options: argparse.Namespace) -> None:
    from lacy_jax.training.reference import score_dataset

    try:
        index, count = map(int, options.shard.split("/"))
    except ValueError:
        raise ConfigError(f"--shard={options.shard}: expected I/N, such as 0/4") from None
    result = score_dataset(
        workdir_of(options),
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
    show(options, result, f"{result['dataset']}: reference_nll of {options.workdir}\n" + "\n".join(lines))


def _report(options: argparse.Namespace) -> None:
    from lacy_jax.report.page import report_command

    runs = [*([options.workdir] if options.workdir else []), *options.runs]
    if not runs:
        raise ConfigError("give --workdir=DIR or --runs DIR ...: run directories, or a folder of them")
    path = report_command(runs, options.out)
    show(options, {"path": str(path)}, str(path))


if __name__ == "__main__":
    sys.exit(main())
