"""Searches: sweeps that choose their points while they run, and the Sobol points that any sweep may use.

An experiment's `sweep(arg="")` returns a `Search` instead of trials:

    def sweep(arg=""):
        space = {"optimizer.learning_rate": sweeps.uniform(1e-4, 1e-2, log=True), "optimizer.name": ["adamw", "muon"]}
        return sweeps.Search(space, points=32, start=8, seeds=3, keep=0.5)

A point is one setting of the space; its runs are trials that differ in the seed. `study.py` runs a search.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError
from lacy_jax.sweeps.trials import Overrides, Trial


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; even on a logarithmic scale if `log`; whole numbers if `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """The number at a share in [0, 1) of the range; numbers that are not whole are rounded to four digits."""
        if self.whole:
            low, high = (
                (math.log(self.low), math.log(self.high + 1)) if self.log else (self.low, self.high + 1)
            )
            value = low + share * (high - low)
            return min(int(math.exp(value) if self.log else value), int(self.high))
        value = (
            self.low * (self.high / self.low) ** share
            if self.log
            else self.low + share * (self.high - self.low)
        )
        return min(max(float(f"{value:.4g}"), self.low), self.high)


Space = Mapping[str, Range | Sequence[Any]]


def uniform(low: float, high: float, log: bool = False) -> Range:
    """A range of a search; it has only whole numbers if both ends are whole.

    Raises:
      ConfigError: low is not below high, or not above 0 on a logarithmic scale.
    """
    if not low < high or (log and low <= 0):
        raise ConfigError(
            f"sweep: uniform({low}, {high}, log={log}): low must be below high{', and positive' * log}"
        )
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def sobol(space: Space, count: int, seed: int = 0) -> list[Overrides]:
    """`count` points that fill the space evenly (scrambled Sobol sequence); a larger count adds points.

    Args:
      space: dotted field -> `uniform(...)`, or the values it may have.
      count: preferably a power of two.
      seed: a different seed shifts the points.

    Raises:
      ConfigError: an empty space, a field without values, or count < 1.
    """
    _check_space(space)
    if count < 1:
        raise ConfigError(f"sweep: sobol of {count} points: must be at least 1")
    shares = qmc.Sobol(len(space), scramble=True, rng=seed).random_base2(max(count - 1, 1).bit_length())[
        :count
    ]

    def value(choices: Range | Sequence[Any], share: float) -> Any:
        return choices.at(share) if isinstance(choices, Range) else choices[int(share * len(choices))]

    return [
        {field: value(choices, share) for (field, choices), share in zip(space.items(), row)}
        for row in shares
    ]


@dataclasses.dataclass(frozen=True)
class Search:
    """A sweep that chooses its points one by one, from the results of the points before.

    Attributes:
      space: dotted field -> `uniform(...)`, or the values it may have.
      points: total number of points.
      start: how many of them are Sobol points, at the beginning; Optuna's TPE chooses the others.
      seeds: runs per point, with seeds 0, 1, ...; the value of a point is their mean.
      keep: at each validation of its first run, a point continues only if its best value so far ranks within this share
        of the finished points at that step; 1 = every point is run to its end.
      after: points that must have finished before any is stopped.
      seed: for the choices.
    """

    space: Space
    points: int
    start: int = 8
    seeds: int = 1
    keep: float = 1.0
    after: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check_space(self.space)
        for name in ("points", "seeds", "after"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sweep: Search({name}={getattr(self, name)}): must be at least 1")
        if not self.start >= 1:
            raise ConfigError(f"sweep: Search(start={self.start}): must be at least 1")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"sweep: Search(keep={self.keep}): must be in (0, 1]")
        if "seed" in self.space:
            raise ConfigError(
                "sweep: Search: the seed is no field to search over; seeds= gives the runs of each point"
            )

    def identity(self) -> str:
        """The search as text, kept in its journal: only the same search can continue with that journal."""
        space = {f: dataclasses.asdict(c) if isinstance(c, Range) else list(c) for f, c in self.space.items()}
        return json.dumps({**{k: getattr(self, k) for k in ("start", "seeds", "keep", "after", "seed")}, "space": space}, sort_keys=True, default=str)  # fmt: skip

    def trials(self, spec: str, common: Sequence[str], number: int, point: Overrides) -> list[Trial]:
        """The runs of a point.

        Raises:
          ConfigError: its config is not valid.
        """
        label = ",".join(f"{_label(f, self.space)}={_short(v)}" for f, v in point.items())
        found = []
        for seed in range(self.seeds):
            own = {**point, "seed": seed}
            try:
                config = config_lib.load_config(spec, [*common, *(f"{f}={v}" for f, v in own.items())])
            except ConfigError as error:
                raise ConfigError(f"point {number} ({label}): {error}") from None
            found.append(Trial(number * self.seeds + seed, f"{number:03d},{label},seed={seed}", own, config))
        return found

    def check(self, spec: str, common: Sequence[str]) -> None:
        """Check the configs at the ends of every range and for every value, before anything runs.

        Raises:
          ConfigError: a field is unknown, out of range, or also set for all runs; or no validations to stop early by.
        """
        given = {override.partition("=")[0] for override in common}
        if twice := given & (self.space.keys() | {"seed"}):
            raise ConfigError(f"--config.{min(twice)}: the search sets this field itself")
        middle = {f: c.at(0.5) if isinstance(c, Range) else c[0] for f, c in self.space.items()}
        for field, choices in self.space.items():
            for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
                (trial, *_) = self.trials(spec, common, 0, {**middle, field: value})
                c = trial.config.train
                if self.keep < 1 and not 0 < c.eval_every < c.steps:
                    raise ConfigError(
                        f"config.train.eval_every = {c.eval_every}: a search that stops points early (keep = {self.keep}) needs "
                        f"validations before the last step ({c.steps})"
                    )


def _check_space(space: Space) -> None:
    if not space:
        raise ConfigError("sweep: a search needs fields to search over")
    for field, choices in space.items():
        if isinstance(choices, Range):
            continue
        if (
            isinstance(choices, str)
            or not choices
            or not all(isinstance(c, str | int | float) for c in choices)
        ):
            raise ConfigError(
                f"sweep: {field}: give sweeps.uniform(low, high) or a list of texts and numbers, got {choices!r}"
            )


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "-._+" else "_" for c in text)


def _label(field: str, space: Space) -> str:
    leaf = field.split(".")[-1]
    return leaf if sum(other.split(".")[-1] == leaf for other in space) == 1 else field
