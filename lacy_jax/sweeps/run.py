"""Running the trials of a sweep on this machine, or printing the commands to run them elsewhere.

A trial is an ordinary run in WORKDIR/trials/NAME, started by `lacy train` in a process of its own. Progress is read
from the run directories, so a stopped sweep continues where it was, including half-finished trials, and the table of
trials that ran on pods can be made anywhere (`table.py`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.config import dataset_folder
from lacy_jax.errors import ConfigError, TrainingError
from lacy_jax.run_files import METADATA_FILE
from lacy_jax.sweeps import Trial, experiment_name
from lacy_jax.training import read_metrics

LOG_FILE = "log.txt"
_LACY = (sys.executable, "-m", "lacy_jax.cli")
_POLL_S, _LOOK_S = 0.1, 1.0  # Between checks of the processes, and of what the trials have written.
_PREPARED = ("corpus", "tokenizer", "labels", "dataset")  # Groups that `lacy prepare` reads.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of one trial.

    Attributes:
      trial: which.
      workdir: its run directory.
      status: "done", "started" (resumable), "waiting" (nothing there yet), "failed" (in this call) or "stopped" (early, by a search).
      step: last one with metrics.
      train, valid: the last metrics, by name.
      error: the error line of a failed trial.
    """

    trial: Trial
    workdir: str
    status: str
    step: int
    train: dict[str, float]
    valid: dict[str, float]
    error: str = ""

    def value(self, metric: str) -> float | None:
        """ "valid/nll" -> that metric, None if the trial has none."""
        split, _, name = metric.partition("/")
        value = {"train": self.train, "valid": self.valid}.get(split, {}).get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, one line of trials.jsonl."""
        return {
            "index": self.trial.index,
            "name": self.trial.name,
            "overrides": self.trial.overrides,
            "status": self.status,
            "step": self.step,
            "steps": self.trial.config.train.steps,
            "workdir": self.workdir,
            "train": self.train,
            "valid": self.valid,
            "error": self.error,
        }


def trial_workdir(workdir: epath.PathLike, trial: Trial) -> epath.Path:
    """The run directory of the trial."""
    return epath.Path(workdir) / "trials" / trial.name


def outcome(workdir: epath.PathLike, trial: Trial, error: str = "") -> Outcome:
    """The state of a trial, read from its run directory."""
    place = trial_workdir(workdir, trial)
    last: dict[str, dict[str, float]] = {"train": {}, "valid": {}}
    step = 0
    for line in read_metrics(place):
        last[line["split"]] = {k: v for k, v in line.items() if k not in ("step", "split")}
        step = max(step, line["step"])
    status = "done" if step >= trial.config.train.steps else "started" if step else "waiting"
    return Outcome(
        trial, str(place), "failed" if error else status, step, last["train"], last["valid"], error
    )


def command(spec: str, overrides: Sequence[str], workdir: epath.PathLike, trial: Trial) -> list[str]:
    """The `lacy train` command for one trial."""
    given = [f"--config.{override}" for override in overrides]
    own = trial.config.dataset
    dataset = (
        [] if own.path or own.mixture else [f"--config.dataset.path={dataset_folder(trial.config, workdir)}"]
    )
    where = f"--workdir={trial_workdir(workdir, trial)}"
    return ["lacy", "train", f"--config={spec}", *given, *trial.arguments(), *dataset, where]


def launch_line(
    template: str, spec: str, overrides: Sequence[str], workdir: epath.PathLike, trial: Trial
) -> str:
    """One shell line for a trial.

    Args:
      template: text with {command} (the whole `lacy train`), or its parts {config}, {workdir} and {arguments} (the fields
        that the trial and `overrides` set) for a script that starts it, {index}, {name} (safe as a cloud resource
        name) or {experiment}.
      spec, overrides: as given to `load_trials`.
      workdir: of the sweep.
      trial: which.

    Raises:
      ConfigError: the template contains any other name.
    """
    safe = "".join(c if c.isalnum() else "-" for c in trial.name.lower()).strip("-")[:40].strip("-")
    values = {
        "command": shlex.join(command(spec, overrides, workdir, trial)),
        "config": shlex.quote(spec),
        "workdir": shlex.quote(str(trial_workdir(workdir, trial))),
        "arguments": shlex.join([*(f"--config.{override}" for override in overrides), *trial.arguments()]),
        "index": str(trial.index),
        "name": safe or str(trial.index),
        "experiment": experiment_name(spec),
    }
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            f"--emit={template!r}: may name {', '.join('{' + key + '}' for key in values)} only"
        ) from None


def run_trials(
    trials: Sequence[Trial],
    spec: str,
    overrides: Sequence[str],
    workdir: epath.PathLike,
    jobs: int = 1,
) -> list[Outcome]:
    """Run the trials that are not done yet, at most `jobs` at a time; a failing trial does not stop the others.

    Ctrl-C and SIGTERM stop all trials, which save checkpoints first; the same call continues from there.

    Args:
      trials, spec, overrides: as loaded by `load_trials`.
      workdir: of the sweep, on a local disk.
      jobs: trials at a time.

    Raises:
      ConfigError: no dataset to train on, a sweep over how data is prepared, a remote workdir, or jobs < 1.
      TrainingError: stopped before the end.
    """
    check_jobs(jobs, workdir)
    check_data(trials, spec, workdir)
    errors: dict[str, str] = {}
    waiting = [trial for trial in trials if outcome(workdir, trial).status != "done"]
    say(f"{len(trials) - len(waiting)} of {len(trials)} trials done, {len(waiting)} to run, {jobs} at a time")

    def done(trial: Trial, error: str) -> None:
        if error:
            errors[trial.name] = error
        found = outcome(workdir, trial, error)
        say(f"{found.status} {trial.name}, step {found.step}" + (f": {error}" if error else ""))

    def start() -> Running | None:
        return Running(waiting.pop(0), spec, overrides, workdir) if waiting else None

    run_jobs(start, done, jobs)
    return [outcome(workdir, trial, errors.get(trial.name, "")) for trial in trials]


class Running:
    """A trial in a process of its own.

    Args:
      trial, spec, overrides, workdir: as `run_trials`.
      lock: file descriptor that the process keeps open until it ends.
    """

    def __init__(
        self,
        trial: Trial,
        spec: str,
        overrides: Sequence[str],
        workdir: epath.PathLike,
        lock: int | None = None,
    ):
        say(f"start {trial.name}")
        self.trial = trial
        self._log = pathlib.Path(trial_workdir(workdir, trial) / LOG_FILE)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        words = command(spec, overrides, workdir, trial)
        with self._log.open("ab") as out:
            # A process group of its own: Ctrl-C reaches only the sweep, which then stops its trials once.
            self.process = subprocess.Popen(
                [*_LACY, *words[1:]],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
                pass_fds=() if lock is None else (lock,),
            )  # fmt: skip

    def error(self) -> str:
        """The error line, or "" if it did not fail."""
        if not self.process.returncode:
            return ""
        lines = [
            line for line in self._log.read_bytes().decode(errors="replace").splitlines() if line.strip()
        ]
        named = [line for line in lines if line.startswith("lacy train: ")]
        return (named or lines or ["no output"])[-1].removeprefix("lacy train: ")


def run_jobs(
    start: Callable[[], Running | None],
    done: Callable[[Trial, str], None],
    jobs: int,
    poor: Callable[[Trial], bool] = lambda trial: False,
    more: Callable[[], bool] = lambda: False,
) -> None:
    """Keep `jobs` trials running.

    Args:
      start: starts the next trial; returns None if none can be started now.
      done: called for each trial that ended, with its error or "".
      poor: called now and then for each running trial; True stops it.
      more: called when nothing runs: whether to wait for something to start.

    Raises:
      TrainingError: a signal came; all trials were stopped and have saved checkpoints.
    """
    running: list[Running] = []
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    looked = time.monotonic()
    try:
        while True:
            while not stopping and len(running) < jobs and (new := start()) is not None:
                running.append(new)
            if not running and (stopping or not more()):
                break
            look = time.monotonic() - looked > _LOOK_S
            looked = time.monotonic() if look else looked
            for one in list(running):
                if one.process.poll() is not None:
                    running.remove(one)
                    done(one.trial, "" if stopping else one.error())
                elif stopping or (look and poor(one.trial)):
                    one.process.terminate()
            time.sleep(_POLL_S if running else _LOOK_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopping:
        raise TrainingError("stopped; resumable: the same command goes on where the trials are")


def check_jobs(jobs: int, workdir: epath.PathLike) -> None:
    """Raises:
    ConfigError: jobs < 1, or trials would run here in a remote folder.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs}: must be at least 1")
    if not files.is_local(workdir):
        raise ConfigError(
            f"--workdir={workdir}: trials run here need a local folder; use --emit for runs elsewhere"
        )


def check_data(trials: Sequence[Trial], spec: str, workdir: epath.PathLike) -> None:
    """Raises:
    ConfigError: no dataset to train on, or a sweep over how data is prepared.
    """
    for trial in trials:
        for field in trial.overrides:
            if field.split(".")[0] in _PREPARED and field not in ("dataset.path", "dataset.mixture"):
                raise ConfigError(
                    f"trial {trial.name}: config.{field} is a matter of `lacy prepare`; prepare one dataset per value and "
                    "sweep over dataset.path"
                )
        if trial.config.dataset.mixture:
            continue
        path = dataset_folder(trial.config, workdir)
        if not (path / METADATA_FILE).exists():
            raise ConfigError(
                f"no dataset at {path}: run lacy prepare --config={spec} --workdir={workdir} first"
            )


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"sweep: {text}", file=sys.stderr, flush=True)
