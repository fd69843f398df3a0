"""Many runs of one experiment: writing a sweep, and the trials that it defines.

An experiment file may define `sweep(arg="")` beside `get_config`: an iterable of overrides, each a dict from dotted
field to value. They are made from `over`, `product`, `zip`, `chain` and `seeds`:

    def sweep(arg=""):
        yield from product(over("objective.policy", ["ntp", "lacy"]), over("optimizer.learning_rate", [3e-4, 1e-3]), seeds(3))

`lacy sweep` lists, runs or emits them (`run.py`). If it returns a `Search`, the trials are chosen while it runs
(`search.py`).
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import pathlib
import re
import runpy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_collections

from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError

Overrides = dict[str, Any]


def over(field: str, values: Iterable[Any], **fixed: Any) -> list[Overrides]:
    """One trial per value of one dotted field; `fixed` fields (passed as `**{"a.b": 1}`) come along with each."""
    return [{field: value, **fixed} for value in values]


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every combination; the last sweep varies fastest.

    Raises:
      ConfigError: two sweeps set the same field.
    """
    for parts in itertools.product(*sweeps):
        yield _merged(parts)


def zip(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Pairs the sweeps: first with first, second with second.

    Raises:
      ConfigError: they differ in length, or two set the same field.
    """
    lists = [list(sweep) for sweep in sweeps]
    if len({len(one) for one in lists}) > 1:
        raise ConfigError(f"sweep: zip of different lengths: {', '.join(str(len(one)) for one in lists)}")
    for parts in builtins.zip(*lists):
        yield _merged(parts)


def chain(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """One sweep after the other."""
    return itertools.chain(*sweeps)


def seeds(count: int, first: int = 0) -> list[Overrides]:
    """`count` trials that differ in the seed."""
    return over("seed", range(first, first + count))


def _merged(parts: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        if twice:
            raise ConfigError(f"sweep: {twice[0]} is set by two of the sweeps combined")
        merged |= part
    return merged


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      index: place in the sweep, from 0.
      name: of its directory: the fields that it sets, such as "policy=lacy,seed=1".
      overrides: dotted field -> value.
      config: resolved and validated.
    """

    index: int
    name: str
    overrides: Overrides
    config: ml_collections.ConfigDict

    def arguments(self) -> list[str]:
        """Command-line flags that set its fields."""
        return [f"--config.{field}={value}" for field, value in self.overrides.items()]


def load_sweep(spec: str, overrides: Sequence[str] = ()) -> Any:
    """The result of `sweep(arg)` in `experiments/NAME.py[:arg]`: a list of overrides, or a `Search`.

    Raises:
      ConfigError: there is no sweep, it is empty, or it fails.
    """
    config_lib.load_config(spec, overrides)  # Gives a better error if the file itself is invalid.
    path, _, arg = spec.partition(":")
    sweep = runpy.run_path(path).get("sweep")
    if sweep is None:
        raise ConfigError(f"{path} has no sweep(arg): define one that yields dicts of overrides")
    try:
        found = sweep(arg)
        if isinstance(found, Iterable):
            found = [dict(one) for one in found]
    except ConfigError:
        raise
    except Exception as error:  # The experiment file is user input.
        raise ConfigError(
            f"{path}: sweep({arg!r}): {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not found:
        raise ConfigError(f"{path}: sweep({arg!r}) yields no trial")
    return found


def load_trials(spec: str, overrides: Sequence[str] = ()) -> list[Trial]:
    """The trials of a sweep that is not a search, every config checked before anything runs.

    Args:
      spec: experiment with `sweep(arg="")`.
      overrides: "field=value" for all trials; a field that the sweep sets may not be among them.

    Raises:
      ConfigError: as `load_sweep`; two equal trials, or a trial whose config is not valid (named).
    """
    return make_trials(spec, overrides, load_sweep(spec, overrides))


def make_trials(spec: str, overrides: Sequence[str], found: list[Overrides]) -> list[Trial]:
    """`load_trials` of a sweep that is loaded."""
    common = {override.partition("=")[0] for override in overrides}
    names = _names(found)
    trials: list[Trial] = []
    for index, (name, own) in enumerate(builtins.zip(names, found)):
        if common & own.keys():
            raise ConfigError(f"--config.{min(common & own.keys())}: the sweep sets this field itself")
        try:
            config = config_lib.load_config(spec, [*overrides, *(f"{f}={value}" for f, value in own.items())])
        except ConfigError as error:
            raise ConfigError(f"trial {index} ({name}): {error}") from None
        trials.append(Trial(index, name, own, config))
    return trials


def _names(trials: list[Overrides]) -> list[str]:
    """Directory names; a field is shortened to its last part if that is unambiguous."""
    fields = {field for trial in trials for field in trial}
    leaves = [field.split(".")[-1] for field in fields]

    def label(field: str) -> str:
        leaf = field.split(".")[-1]
        return leaf if leaves.count(leaf) == 1 else field

    varied = {
        field for field in fields if len({repr(trial.get(field)) for trial in trials}) > 1 or len(trials) == 1
    }
    names = [
        ",".join(
            f"{label(f)}={re.sub(r'[^-A-Za-z0-9._+]+', '_', str(trial[f]))}" for f in trial if f in varied
        )
        for trial in trials
    ]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"sweep: {names.count(name)} trials are the same: {name or 'no field differs'}")
    return names


def experiment_name(spec: str) -> str:
    """ "experiments/paper_334m.py:smoke" -> "paper_334m"."""
    return pathlib.Path(spec.partition(":")[0]).stem
