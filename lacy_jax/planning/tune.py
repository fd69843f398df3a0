"""`lacy plan --tune`: look for settings with which a step takes less time by the compiler's clock, and fits.

The search is a coordinate descent from the config as given: along one axis of `space.AXES` it moves to the best neighbour
until none is better by a thousandth, then along the next, and around again while a round gains. The full product would be some ten
thousand compilations of a minute. The axes are nearly independent: what a block of attention gains does not depend on how
the loss is cut. They meet in memory, which only says which neighbours there are. What a descent misses is two changes that
gain only together.

It is a function of the config, the slice and the budget: a search that was killed is started again and finds what it had
compiled (`programs.Programs`), so it goes on where it was, and a larger budget continues a smaller one.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.config import changed, get_field, validate
from lacy_jax.errors import ConfigError, LacyError, one_line
from lacy_jax.planning.ahead import DoesNotFit, compile_lowered, lower_step
from lacy_jax.planning.plan import Target, arguments, read_plan, target_of, too_big, words
from lacy_jax.planning.programs import Compiled, Programs, program_key
from lacy_jax.planning.space import AXES, Axis, Changes, Point, settings
from lacy_jax.setup import versions
from lacy_jax.training.chips import GIB
from lacy_jax.training.step import compiler_options

RESULT_FILE, OVERRIDES_FILE, PROGRAMS_FOLDER = "tuning.json", "overrides.txt", "programs"
_BEST = 10
_WORTH_A_STEP, _WORTH_A_ROUND = 0.001, 0.005
"""Share of the step that a setting must save to be taken, and a round for another one; smaller differences of such estimates mean
nothing."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination of settings.

    Attributes:
      changes: against the config that the search starts from.
      program: hash of what was compiled; "" = refused before.
      step_s, least_s: the clock's estimate of a step and its lower bound; infinite if it has none.
      used: bytes of a device.
      refused: why there is no estimate; "" = there is one.
    """

    changes: Changes
    program: str = ""
    step_s: float = math.inf
    least_s: float = math.inf
    used: int = 0
    refused: str = ""


class BudgetSpent(Exception):
    """The next trial would be one compilation too many."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a search found; `to_dict` gives the same as JSON.

    Attributes:
      config: where it started.
      given: the arguments that name this config.
      target: what was compiled for.
      budget: the most programs that it might look at.
      trials: all of them, in order; the first is the config as given.
      path: those that were each better than the one before, the first of `trials` first.
      spent: the budget ended the search.
    """

    config: ml_collections.ConfigDict
    given: tuple[str, ...]
    target: Target
    budget: int
    trials: list[Trial]
    path: list[Trial]
    spent: bool

    @property
    def programs(self) -> int:
        """Different programs among the trials."""
        return len({trial.program for trial in self.trials if trial.program})

    def best(self, count: int = _BEST) -> list[Trial]:
        """What the search chose, then the others, fastest first; of settings that make the same program the first tried."""
        found: dict[str, Trial] = {}
        for trial in self.trials:
            if not trial.refused:
                found.setdefault(trial.program, trial)
        chosen = self.path[-1].program
        return sorted(found.values(), key=lambda trial: (trial.program != chosen, trial.step_s))[:count]

    def gains(self) -> list[tuple[Changes, float]]:
        """(what changed, seconds that it saved) of each step to the best settings."""
        steps = zip(self.path, self.path[1:], strict=False)
        return [(_difference(self.config, old, new), old.step_s - new.step_s) for old, new in steps]

    def overrides(self) -> list[str]:
        """The best settings as arguments of the command line."""
        return arguments(self.path[-1].changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; in bytes and seconds."""
        return {
            "name": self.config.name,
            "given": list(self.given),
            "topology": self.target.place.layout,
            "compiled_for": self.target.compiled.layout,
            "slices": self.target.place.slices,
            "compilations": self.budget,
            "programs": self.programs,
            "spent": self.spent,
            "start": self._row(self.trials[0]),
            "best": [self._row(trial) for trial in self.best()],
            "gains": [{"changes": step, "saves_s": saved} for step, saved in self.gains()],
            "refused": {words(trial.changes): trial.refused for trial in self.trials if trial.refused},
            "overrides": self.overrides(),
            "compiler": {name: versions.version(name) for name in ("jax", "libtpu")},
        }

    def summary(self) -> str:
        """The same as text for people."""
        start = self.trials[0]
        refused = sum(bool(trial.refused) for trial in self.trials)
        lines = [
            f"{self.config.name} on {self.target.place}: {len(self.trials)} settings tried, {refused} of them refused or too large; "
            f"{self.programs} programs of at most {self.budget}"
            + ("; the budget ended the search" if self.spent else ""),
            f"  as given   {_figures(start)}",
        ]
        for place, trial in enumerate(self.best(), 1):
            saved = start.step_s - trial.step_s
            lines.append(
                f"  {place:>2}         {_figures(trial)}, saves {saved * 1e3:.1f} ms ({100 * saved / start.step_s:.1f} %): "
                f"{words(trial.changes) or 'as given'}"
            )
        for step, saved in self.gains():
            lines.append(f"  of the best, {words(step)} saved {saved * 1e3:.1f} ms")
        return "\n".join(lines)

    def _row(self, trial: Trial) -> dict[str, Any]:
        return {
            "changes": trial.changes,
            "settings": settings(changed(self.config, trial.changes)),
            "step_s": trial.step_s,
            "lower_bound_s": trial.least_s,
            "saves_s": self.trials[0].step_s - trial.step_s,
            "used": trial.used,
            "program": trial.program,
        }


def tune(
    config: ml_collections.ConfigDict,
    topology: str,
    workdir: epath.PathLike,
    slices: int = 1,
    compilations: int = 40,
    given: Sequence[str] = (),
) -> Tuning:
    """Search from `config`; writes the result, the overrides and the compiled programs into `workdir`.

    Args:
      config: where to start.
      topology, slices: as for `make_plan`.
      workdir: folder; what an earlier search with the same compiler left there is used.
      compilations: the most programs to look at, those of earlier searches included; a program that two settings share
        counts once.
      given: the arguments that name the config, for the record.

    Raises:
      ConfigError: as `make_plan`, or the budget is not positive. The config as given must fit.
    """
    if compilations < 1:
        raise ConfigError(f"--compilations={compilations}: must be at least 1")
    target = target_of(config, topology, slices)
    workdir = epath.Path(workdir)
    measurer = _Measurer(config, target, Programs(workdir / PROGRAMS_FOLDER), compilations)
    path, spent = descend(measurer.measure, measurer.neighbours)
    found = Tuning(config, tuple(given), target, compilations, list(measurer.trials.values()), path, spent)
    files.write_text(workdir / OVERRIDES_FILE, "".join(f"{line}\n" for line in found.overrides()))
    files.write_json(workdir / RESULT_FILE, found.to_dict())
    return found


def descend(
    measure: Callable[[Changes], Trial], neighbours: Callable[[Axis, Changes], Iterable[Changes]]
) -> tuple[list[Trial], bool]:
    """(trials that were each better than the one before, whether the budget ended the search), from no changes on.

    Args:
      measure: the trial of some changes; raises BudgetSpent.
      neighbours: changes next to the given ones along an axis.
    """
    path = [measure({})]
    while True:
        before = path[-1].step_s
        for axis in AXES:
            better = True
            while better:
                trials, spent = _measured(measure, neighbours(axis, path[-1].changes))
                best = min(trials, key=lambda trial: trial.step_s, default=path[-1])
                better = best.step_s < (1 - _WORTH_A_STEP) * path[-1].step_s
                if better:
                    path.append(best)
                if spent:
                    return path, True
        if before - path[-1].step_s < _WORTH_A_ROUND * before:
            return path, False


def _measured(measure: Callable[[Changes], Trial], asked: Iterable[Changes]) -> tuple[list[Trial], bool]:
    trials = []
    for changes in asked:
        try:
            trials.append(measure(changes))
        except BudgetSpent:
            return trials, True
    return trials, False


class _Measurer:
    """Trials of one config on one target, each measured once."""

    def __init__(self, config: ml_collections.ConfigDict, target: Target, programs: Programs, budget: int):
        self.trials: dict[str, Trial] = {}
        self._config, self._target, self._programs, self._budget = config, target, programs, budget
        self._asked: set[str] = set()

    def neighbours(self, axis: Axis, changes: Changes) -> Iterable[Changes]:
        config = changed(self._config, changes)
        mesh, model = self._target.mesh_and_model(config)
        for step in axis.steps(Point(config, model, mesh.shape)):
            both = {**changes, **step}
            yield {
                name: both[name]
                for name, given in settings(self._config).items()
                if both.get(name, given) != given
            }

    def measure(self, changes: Changes) -> Trial:
        name = words(changes)
        if name not in self.trials:
            trial = self._measure(changes)
            if trial.refused and not changes:
                raise ConfigError(trial.refused)
            self.trials[name] = trial
            print(
                f"{len(self._asked)} of {self._budget}: {name or 'as given'}: {trial.refused or _figures(trial)}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return self.trials[name]

    def _measure(self, changes: Changes) -> Trial:
        try:
            config = changed(self._config, changes)
            validate(config)
            mesh, model = self._target.mesh_and_model(config)
            lowered = lower_step(config, model, mesh)
        except ConfigError as error:
            return Trial(changes, refused=str(error))
        key = program_key(lowered, compiler_options(config, mesh), self._target.compiled)
        if key not in self._asked and len(self._asked) >= self._budget:
            raise BudgetSpent
        self._asked.add(key)
        found = self._programs.get(key)
        if found is None:
            found = _compile(config, lowered, self._target)
            self._programs.put(key, found)
        if isinstance(found, DoesNotFit):
            found = too_big(config, self._target.place, found, 0, None, searched=False)
        if isinstance(found, str):
            return Trial(changes, key, refused=found)
        try:
            plan = read_plan(config, self._target, *found)
        except LacyError as error:
            return Trial(changes, key, refused=str(error))
        return Trial(changes, key, plan.clock.step_s, plan.clock.least_s, plan.memory.used)


def _compile(config: ml_collections.ConfigDict, lowered: jax.stages.Lowered, target: Target) -> Compiled:
    try:
        return compile_lowered(config, lowered, target.place)
    except ConfigError as error:
        return str(error)
    except jax.errors.JaxRuntimeError as error:  # Some settings meet defects of the compiler.
        return f"the compiler fails: {one_line(error)}"


def _difference(config: ml_collections.ConfigDict, old: Trial, new: Trial) -> Changes:
    """What leads from one trial to another; a field that is as given again has the config's value."""
    fields = old.changes | new.changes
    before, after = changed(config, old.changes), changed(config, new.changes)
    return {
        name: get_field(after, name) for name in fields if get_field(before, name) != get_field(after, name)
    }


def _figures(trial: Trial) -> str:
    return f"{trial.step_s * 1e3:.1f} ms a step ({trial.least_s * 1e3:.1f}), {trial.used / GIB:.2f} GiB"
