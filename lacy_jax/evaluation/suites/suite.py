"""What a suite of `lacy evaluate --suite=...` is, and the registry of them: one file beside this one each.

Its figures (JSON-safe) are kept in the run directory, where `lacy report` finds them: the suite's own table, the paired
differences between runs, and its headline figure over seeds come from the suite's entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.clients import PriceGuard
from lacy_jax.errors import ConfigError
from lacy_jax.formatting import Table, percent
from lacy_jax.registry import Registry
from lacy_jax.run_files import suite_file
from lacy_jax.training.run import Run, load_run

Figures = dict[str, Any]
Reported = Sequence[tuple[str, Mapping[str, Any]]]
"""(name of the run, its figures) of the runs of a report that have them."""
Units = dict[str, dict[str, dict[str, tuple[float, float]]]]
"""{measure: {unit: {what it was asked: (numerator, denominator)}}}."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of the command that some suite reads.

    Attributes:
      name: as in --name, with underscores.
      about: one line for the help.
      default: its type is the option's.
    """

    name: str
    about: str
    default: str | int | float = ""

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"


LIMIT = Option("limit", "most items (people, questions a relation, items a task, documents); 0 = all", 0)
DATA = Option("data", "folder of test sets")
KNOWLEDGE = Option("knowledge", "articles with titles, JSONL or database")
JUDGE = Option(
    "judge", "embedded (default), or a completions server http://HOST:PORT/v1#MODEL, with chat+ before it a chat model", "embedded"
)  # fmt: skip
SPLITTER = Option("splitter", "as --judge, or given: the facts that the texts bring with them", "embedded")
DEMONSTRATIONS = Option("demonstrations", "published demonstrations for a served splitter")
PRICES = Option("prices", "IN,OUT of a server, per 1M prompt and answer tokens")
MAX_COST = Option(
    "max_cost", "with --prices: refuse to start above this, and stop when so much is spent", 0.0
)
MAX_TOKENS = Option(
    "max_tokens", "of a server's longest answer, what the model thinks before included; 0 = usual for the task", 0
)  # fmt: skip
SERVER = (PRICES, MAX_COST, MAX_TOKENS)


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of a suite is given.

    Attributes:
      workdir: run directory; None where the command names none.
      config: of the run, with the command's overrides; None without a run.
      options: by name; those of the suite, defaults included.
    """

    workdir: epath.PathLike | None
    config: ml_collections.ConfigDict | None
    options: Mapping[str, Any]

    def __getitem__(self, option: Option) -> Any:
        return self.options.get(option.name, option.default)

    def need(self, option: Option, why: str) -> str:
        """An option that has to be given.

        Raises:
          ConfigError: it is not.
        """
        if not self[option]:
            raise ConfigError(f"{option.flag} is needed: {why}")
        return str(self[option])

    def guard(self) -> PriceGuard:
        """What asking servers may cost."""
        return PriceGuard(self[PRICES], self[MAX_COST])

    def run(self) -> tuple[Run, ml_collections.ConfigDict]:
        """The run that is to be evaluated, and its config.

        Raises:
          ConfigError: none is named. CheckpointError: there is none.
        """
        if not self.workdir or self.config is None:
            raise ConfigError("--workdir=DIR is needed: the run that is to be evaluated")
        return load_run(self.workdir, self.config.generate.step), self.config


@dataclasses.dataclass(frozen=True)
class Suite:
    """One way to evaluate.

    Attributes:
      name: as in --suite=NAME.
      description: one line.
      run: the figures, JSON-safe.
      text: the figures as text for a terminal.
      options: those it reads; another one that is given is refused.
      table: for the report, from the runs that have figures; rows may be none.
      comparable: what must be equal for two runs' figures to be compared (judge, number of tokens ...).
      units: for differences between runs, paired over what both were asked; {} where they have none.
      headline: (what it is, the figure, how it is written), over seeds; None = the suite has no single figure.
    """

    name: str
    description: str
    run: Callable[[Request], Figures]
    text: Callable[[Figures], str]
    options: tuple[Option, ...] = (LIMIT,)
    table: Callable[[Reported], Table] | None = None
    comparable: Callable[[Mapping[str, Any]], Any] = lambda figures: None
    units: Callable[[Mapping[str, Any]], Units] = lambda figures: {}
    headline: tuple[str, Callable[[Mapping[str, Any]], Any], Callable[[float], str]] | None = None


SUITES: Registry[Suite] = Registry("suite")


def all_options() -> dict[Option, list[str]]:
    """Each option that some suite reads, with the names of those suites."""
    found: dict[Option, list[str]] = {}
    for suite in SUITES.values():
        for option in suite.options:
            found.setdefault(option, []).append(suite.name)
    return found


def run_suite(
    name: str,
    options: Mapping[str, Any],
    workdir: epath.PathLike | None,
    config: ml_collections.ConfigDict | None,
) -> tuple[Figures, str]:
    """Run one suite; with a run directory, keep the figures there.

    Args:
      name: of the suite. options: what the command gave, by name.
      workdir, config: see `Request`.

    Returns:
      (figures, their text).

    Raises:
      ConfigError: an unknown suite; an option that it does not read, or one that it misses. Others as the suites.
    """
    suite = SUITES.named(name)
    known = {option.name for option in suite.options}
    for option, readers in all_options().items():
        if option.name in options and option.name not in known:
            raise ConfigError(f"{option.flag}: suite {name} does not read it ({', '.join(readers)} does)")
    figures = suite.run(Request(workdir, config, options))
    if workdir:
        files.write_json(epath.Path(workdir) / suite_file(name), figures)
    return figures, suite.text(figures)


def rows_of(figures: Any) -> list[Mapping[str, Any]]:
    """`figures["rows"]`, as far as they are rows: files of old or damaged runs are read too."""
    rows = figures.get("rows") if isinstance(figures, Mapping) else None
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def mapping(figures: Any, key: str) -> Mapping[str, Any]:
    """`figures[key]` if it is a mapping, else an empty one."""
    found = figures.get(key) if isinstance(figures, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def share_of(*keys: str) -> tuple[Callable[[Mapping[str, Any]], Any], Callable[[float], str]]:
    """A headline that stands under these keys, written as a percentage."""

    def measure(figures: Mapping[str, Any]) -> Any:
        value: Any = figures
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return measure, percent
