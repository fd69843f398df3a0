"""Running the trials of a sweep on this machine, or saying how to run them elsewhere.

A trial is an ordinary run in WORKDIR/trials/NAME, started by `lacy train` in a process of its own. What is done is read
from the run directories, so a sweep that was stopped goes on where it was, trials half-way included, and a table of
trials that ran on pods can be made from anywhere (`sweep_table.py`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.config import dataset_folder
from lacy_jax.errors import ConfigError, TrainingError
from lacy_jax.run_files import METADATA_FILE
from lacy_jax.sweeps import Trial, experiment_name
from lacy_jax.training import read_metrics

LOG_FILE = "log.txt"
_POLL_S = 0.1
_PREPARED = ("corpus", "tokenizer", "labels", "dataset")  # Groups that `lacy prepare` reads.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where one trial stands.

    Attributes:
      trial: which.
      workdir: its run directory.
      status: "done", "started" (resumable), "waiting" (nothing there yet) or "failed" (in this call).
      step: last one with metrics.
      train, valid: the last metrics, by name.
      error: the line it failed with.
    """

    trial: Trial
    workdir: str
    status: str
    step: int
    train: dict[str, float]
    valid: dict[str, float]
    error: str = ""

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
    """Its run directory."""
    return epath.Path(workdir) / "trials" / trial.name


def outcome(workdir: epath.PathLike, trial: Trial, error: str = "") -> Outcome:
    """What the run directory of a trial says."""
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
    """`lacy train` with the arguments of one trial."""
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
      ConfigError: the template names anything else.
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
    """Run what is not done yet, at most `jobs` at a time; a failing trial does not stop the others.

    Ctrl-C and SIGTERM stop all trials, which save; the same call goes on from there.

    Args:
      trials, spec, overrides: as loaded by `load_trials`.
      workdir: of the sweep, on a local disk.
      jobs: trials at a time.

    Raises:
      ConfigError: no dataset to train on, a sweep over how data is prepared, a remote workdir, or jobs < 1.
      TrainingError: stopped before the end.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs}: must be at least 1")
    if not files.is_local(workdir):
        raise ConfigError(
            f"--workdir={workdir}: trials run here need a local folder; use --emit for runs elsewhere"
        )
    _check_data(trials, spec, workdir)
    errors: dict[str, str] = {}
    waiting = [trial for trial in trials if outcome(workdir, trial).status != "done"]
    running: dict[str, tuple[Trial, subprocess.Popen[bytes]]] = {}
    _say(
        f"{len(trials) - len(waiting)} of {len(trials)} trials done, {len(waiting)} to run, {jobs} at a time"
    )
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while (waiting and not stopping) or running:
            if stopping:
                for _, process in running.values():
                    process.terminate()
            while waiting and len(running) < jobs and not stopping:
                trial = waiting.pop(0)
                _say(f"start {trial.name}")
                running[trial.name] = (
                    trial,
                    _start(command(spec, overrides, workdir, trial), workdir, trial),
                )
            for name, (trial, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode and not stopping:
                    errors[name] = _last_line(trial_workdir(workdir, trial) / LOG_FILE)
                found = outcome(workdir, trial, errors.get(name, ""))
                _say(
                    f"{found.status} {name}, step {found.step}" + (f": {found.error}" if found.error else "")
                )
            time.sleep(_POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopping:
        raise TrainingError("stopped; resumable: the same command goes on where the trials are")
    return [outcome(workdir, trial, errors.get(trial.name, "")) for trial in trials]


def _start(words: list[str], workdir: epath.PathLike, trial: Trial) -> subprocess.Popen[bytes]:
    log = pathlib.Path(trial_workdir(workdir, trial) / LOG_FILE)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        # A group of its own: Ctrl-C reaches the sweep alone, which then stops its trials once.
        return subprocess.Popen(
            [sys.executable, "-m", "lacy_jax.cli", *words[1:]],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def _check_data(trials: Sequence[Trial], spec: str, workdir: epath.PathLike) -> None:
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


def _last_line(log: epath.Path) -> str:
    lines = [line for line in log.read_bytes().decode(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("lacy train: ")]
    return (named or lines or ["no output"])[-1].removeprefix("lacy train: ")


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
