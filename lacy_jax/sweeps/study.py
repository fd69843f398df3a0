"""Runs a search with Optuna's ask-and-tell interface and a journal file that several machines may share.

The journal holds the points and their results; the runs are ordinary run directories, and after a kill everything is
read from them again. A sweep process locks (`flock`) the point that it works on, and the process that trains a run
locks the run. A lock is free as soon as its holder has ended; then another sweep process takes the point over, once
nobody trains its run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.sweeps.run import (
    Outcome,
    Running,
    check_data,
    check_jobs,
    outcome,
    run_jobs,
    say,
    trial_workdir,
)
from lacy_jax.sweeps.search import Range, Search, sobol
from lacy_jax.sweeps.trials import Trial
from lacy_jax.training import read_metrics

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"


@dataclasses.dataclass
class Point:
    """One setting. `state` is "running", "done" or "stopped" (early); only a point that is done has a `value`."""

    number: int
    trials: list[Trial]
    state: str
    value: float | None
    handle: Any = dataclasses.field(repr=False)


class Study:
    """A search and its journal.

    Args:
      search, spec, common: the search of an experiment `spec`, with "field=value" for all runs.
      workdir: directory of the sweep with its runs, possibly in a bucket.
      metric: the metric to minimise, such as "valid/nll".
      journal: local file; "" = WORKDIR/search.journal.

    Raises:
      ConfigError: Optuna is not installed, or the journal belongs to another search or is not on a file system.
      DataError: the journal cannot be read.
    """

    def __init__(
        self,
        search: Search,
        spec: str,
        common: Sequence[str],
        workdir: epath.PathLike,
        metric: str,
        journal: str = "",
    ):
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise ConfigError("a search needs Optuna: pip install 'lacy_jax[search]'") from None
        search.check(spec, common)
        self.search, self._spec, self._common, self._metric, self._workdir = (
            search,
            spec,
            common,
            metric,
            workdir,
        )
        place = journal or str(epath.Path(workdir) / JOURNAL)
        if not files.is_local(place):
            raise ConfigError(
                f"--workdir={workdir}: the journal of a search needs a file system; give --journal=FILE"
            )
        self._optuna, self._journal = optuna, pathlib.Path(place)
        self._locks: dict[int, IO[bytes]] = {}
        self._trials: dict[int, list[Trial]] = {}
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._alone():
            try:
                backend = JournalFileBackend(place)
                self._study = optuna.create_study(
                    storage=optuna.storages.JournalStorage(backend),
                    study_name="search",
                    load_if_exists=True,
                    pruner=optuna.pruners.PercentilePruner(100 * search.keep, n_startup_trials=search.after)
                    if search.keep < 1
                    else optuna.pruners.NopPruner(),
                )
                self._check_identity()
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{place}: no journal of a search: {type(error).__name__}: {error}") from None

    def _check_identity(self) -> None:
        mine = {"search": self.search.identity(), "metric": self._metric, "fields": " ".join(self._common)}
        kept = self._study.user_attrs
        for name, value in mine.items():
            if kept.get(name, value) != value:
                raise ConfigError(f"{self._journal} is of another search: its {name} is {kept[name]}, not {value}; use another --workdir")  # fmt: skip
            if name not in kept:
                self._study.set_user_attr(name, value)
        if not self._study.get_trials(deepcopy=False):
            for point in sobol(
                self.search.space, min(self.search.start, self.search.points), self.search.seed
            ):
                self._study.enqueue_trial(point)

    def points(self) -> list[Point]:
        """All points chosen so far, in that order."""
        states = {"COMPLETE": "done", "PRUNED": "stopped", "RUNNING": "running"}
        return [
            self._point(one, states[one.state.name])
            for one in self._study.get_trials(deepcopy=False)
            if one.state.name in states and self._whole(one)
        ]

    def _whole(self, one: optuna.trial.FrozenTrial) -> bool:
        return self.search.space.keys() <= one.params.keys()  # Otherwise it is just being chosen.

    def _point(self, one: optuna.trial.FrozenTrial, state: str) -> Point:
        own = {field: one.params[field] for field in self.search.space}
        if one.number not in self._trials:
            self._trials[one.number] = self.search.trials(self._spec, self._common, one.number, own)
        trials = self._trials[one.number]
        handle = self._optuna.trial.Trial(self._study, one._trial_id) if state == "running" else None
        return Point(one.number, trials, state, one.value if state == "done" else None, handle)

    def outcomes(self, errors: dict[str, str] | None = None) -> list[Outcome]:
        """The state of every run of every point; of a stopped point, only the first run, as "stopped"."""
        found = []
        for point in self.points():
            for trial in point.trials[: 1 if point.state == "stopped" else None]:
                one = outcome(self._workdir, trial, (errors or {}).get(trial.name, ""))
                found.append(dataclasses.replace(one, status="stopped") if point.state == "stopped" else one)
        return found

    def ask(self) -> Point | None:
        """The next point; None if all were chosen. Each is drawn with its own seed, so a kill changes no choice."""
        with self._alone():
            return self._ask()

    def _ask(self) -> Point | None:
        states = self._optuna.trial.TrialState
        for one in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if not self._whole(one):  # The process that asked for it was killed.
                self._study.tell(one.number, state=states.FAIL)
                if given := one.system_attrs.get("fixed_params"):
                    self._study.enqueue_trial(given)
        taken = self._study.get_trials(
            deepcopy=False, states=(states.RUNNING, states.COMPLETE, states.PRUNED)
        )
        if len(taken) >= self.search.points:
            return None
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self.search.seed + len(taken), n_startup_trials=self.search.start
        )
        new = self._study.ask({f: self._distribution(c) for f, c in self.search.space.items()})
        return self._listed(new.number)

    def _listed(self, number: int) -> Point:
        return next(point for point in self.points() if point.number == number)

    def _distribution(self, choices: Any) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(choices, Range):
            return kinds.CategoricalDistribution(list(choices))
        if choices.whole:
            return kinds.IntDistribution(int(choices.low), int(choices.high), log=choices.log)
        return kinds.FloatDistribution(choices.low, choices.high, log=choices.log)

    def settle(self, point: Point) -> Trial | None:
        """Read the runs of a point and report their results to Optuna; returns the run to train next, if any.

        Raises:
          DataError: a finished run without the metric.
        """
        if point.state != "running" or self.poor(point):
            return None
        values = []
        for trial in point.trials:
            found = outcome(self._workdir, trial)
            if found.status != "done":
                return trial
            value = found.value(self._metric)
            if value is None:
                raise DataError(f"{trial.name}: finished without {self._metric}")
            values.append(value)
        point.value, point.state = sum(values) / len(values), "done"
        self._study.tell(point.handle, point.value)
        return None

    def poor(self, point: Point) -> bool:
        """Report the validations of a point's first run; True if they are too poor: then the point is stopped."""
        split, _, name = self._metric.partition("/")
        trial = point.trials[0]
        seen = self._study.get_trials(deepcopy=False)[point.number].intermediate_values
        for line in read_metrics(trial_workdir(self._workdir, trial)):
            value, step = line.get(name), line["step"]
            if line["split"] != split or step in seen or not 0 < step < trial.config.train.steps:
                continue
            # NaN is worse than any number.
            point.handle.report(
                value if isinstance(value, (int, float)) and math.isfinite(value) else math.inf, step
            )
            if point.handle.should_prune():
                self._study.tell(point.handle, state=self._optuna.trial.TrialState.PRUNED)
                point.state = "stopped"
                return True
        return False

    def claim(self, room: int, without: Sequence[int] = ()) -> Point | None:
        """A point to work on, locked for this process: an unfinished one that nobody works on, or a new one.

        Args:
          room: number of runs that may be started here; runs left training by a killed sweep process count, too.
          without: numbers of the points to skip.
        """
        with self._alone():
            for point in self.points():
                if point.state == "running" and point.number not in without and self._lock(point.number):
                    # Its last holder may have finished it after it was listed and before it was locked.
                    if self._listed(point.number).state == "running":
                        run = self._locked(f"{point.number:03d}.run")
                        if run is not None:
                            run.close()
                            return point
                        room -= 1
                    self.release(point)
            new = self._ask() if room > 0 else None
            if new is not None:
                self._lock(new.number)
            return new

    def left(self, without: Sequence[int] = ()) -> bool:
        """Whether any point is unfinished, here or elsewhere."""
        points = [point for point in self.points() if point.number not in without]
        return len(points) + len(without) < self.search.points or any(p.state == "running" for p in points)

    def lock_run(self, point: Point) -> IO[bytes]:
        """A lock for the process that trains a run of the point."""
        lock = self._locked(f"{point.number:03d}.run")
        assert lock is not None, "its point is locked by this process"
        return lock

    def release(self, point: Point) -> None:
        """Release the lock of a point."""
        self._locks.pop(point.number).close()

    def _lock(self, number: int) -> bool:
        lock = None if number in self._locks else self._locked(f"{number:03d}")
        if lock is not None:
            self._locks[number] = lock
        return lock is not None

    def _locked(self, name: str) -> IO[bytes] | None:
        file = self._lock_file(name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file

    def _lock_file(self, name: str) -> IO[bytes]:
        folder = self._journal.with_name(self._journal.name + ".locks")
        folder.mkdir(exist_ok=True)
        return open(os.path.join(folder, name), "ab")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock_file("ask") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def run_search(
    study: Study, spec: str, overrides: Sequence[str], workdir: epath.PathLike, jobs: int
) -> list[Outcome]:
    """Work on a search until all its points are finished; other processes may work on it, too.

    Args:
      study: the search.
      spec, overrides, workdir, jobs: as `run_trials`.

    Raises:
      ConfigError, TrainingError: as `run_trials`.
    """
    check_jobs(jobs, workdir)
    own: dict[int, Point] = {}
    busy: dict[str, Point] = {}
    errors: dict[str, str] = {}
    failed: list[int] = []
    first = study.search.trials(spec, overrides, 0, sobol(study.search.space, 1)[0])
    check_data(first, spec, workdir)

    def fail(point: Point, trial: Trial, error: str) -> None:
        errors[trial.name] = error
        failed.append(point.number)
        study.release(own.pop(point.number))

    def start() -> Running | None:
        at_work = {point.number for point in busy.values()}
        idle = [point for point in own.values() if point.number not in at_work]
        while (point := idle.pop(0) if idle else study.claim(jobs - len(busy), failed)) is not None:
            own[point.number] = point
            try:
                trial = _next(study, point)
            except DataError as error:
                fail(point, point.trials[0], str(error))
                continue
            if trial is not None:
                busy[trial.name] = point
                with study.lock_run(point) as lock:  # Only the training process keeps it.
                    return Running(trial, spec, overrides, workdir, lock.fileno())
            study.release(own.pop(point.number))
        return None

    def done(trial: Trial, error: str) -> None:
        point = busy.pop(trial.name)
        stopped = point.state == "stopped"  # Whatever its exit status: it may have ended by itself.
        if error and not stopped:
            fail(point, trial, error)
        found = outcome(workdir, trial, error)
        status = "stopped early" if stopped else found.status
        say(f"{status} {trial.name}, step {found.step}" + (f": {error}" if error and not stopped else ""))

    def poor(trial: Trial) -> bool:
        point = busy[trial.name]
        return point.state == "stopped" or (trial is point.trials[0] and study.poor(point))

    points = study.points()
    finished = sum(point.state != "running" for point in points)
    say(f"{finished} of {study.search.points} points done, {jobs} trials at a time")
    try:
        run_jobs(start, done, jobs, poor, more=lambda: study.left(failed))
    finally:
        for point in own.values():
            study.release(point)
    return study.outcomes(errors)


def _next(study: Study, point: Point) -> Trial | None:
    trial = study.settle(point)
    if trial is None:
        value = "stopped early" if point.value is None else f"{point.value:.4f}"
        say(f"point {point.number}: {value}")
    return trial


def next_trials(study: Study, jobs: int) -> list[Trial]:
    """For runs elsewhere: reads the results so far, returns the next run of each of up to `jobs` unfinished points."""
    wanted = []
    for point in study.points():
        if point.state == "running" and (trial := _next(study, point)) is not None:
            wanted.append(trial)
    while len(wanted) < jobs and (new := study.ask()) is not None:
        if (following := _next(study, new)) is not None:
            wanted.append(following)
    return wanted
