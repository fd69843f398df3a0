"""The definition of a suite of `lacy evaluate --suite=...`, and the registry of suites.

A suite's figures (JSON-safe) are stored in the run directory, where `lacy report` finds them; the suite's entry also
defines its table in the report, the paired differences between runs, and its headline figure over seeds.
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
"""(name of the run, its figures) of those runs of a report that have figures of the suite."""
Units = dict[str, dict[str, dict[str, tuple[float, float]]]]
"""{measure: {unit: {question: (numerator, denominator)}}}."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A command-line option that some suite reads.

    Attributes:
      name: as in --name, with underscores.
      about: one line for the help.
      default: the default value; its type is the option's type.
    """

    name: str
    about: str
    default: str | int | float = ""

    @property
    def flag(self) -> str:
        """The option as written on the command line."""
        return f"--{self.name.replace('_', '-')}"


LIMIT = Option("limit", "most items (people, questions per relation, items per task, documents); 0 = all", 0)
DATA = Option("data", "folder of test sets")
KNOWLEDGE = Option("knowledge", "articles with titles, JSONL or database")
FACTS = Option(
    "facts",
    "table of facts about the people of the corpus: fact database, JSONL or LMLM's JSON; default: its world's",
)
JUDGE = Option(
    "judge", "embedded (default), lenient (for articles that are not whole), or a completions server http://HOST:PORT/v1#MODEL; chat+http://... for a chat model", "embedded"
)  # fmt: skip
SPLITTER = Option(
    "splitter",
    "embedded (default), a server like --judge, or given: the facts in the texts' annotations",
    "embedded",
)
DEMONSTRATIONS = Option("demonstrations", "published demonstrations for a served splitter")
PRICES = Option("prices", "IN,OUT: a server's prices per 1M prompt and answer tokens")
MAX_COST = Option(
    "max_cost", "with --prices: refuse to start above this estimate, and stop when this much is spent", 0.0
)
MAX_TOKENS = Option(
    "max_tokens", "most tokens of a server's answer, including its reasoning; 0 = the default of the task", 0
)  # fmt: skip
SERVER = (PRICES, MAX_COST, MAX_TOKENS)


@dataclasses.dataclass(frozen=True)
class Request:
    """The input of a suite.

    Attributes:
      workdir: run directory; None if the command names none.
      config: the run's config with the command's overrides; None without a run.
      options: name -> value of the options given.
    """

    workdir: epath.PathLike | None
    config: ml_collections.ConfigDict | None
    options: Mapping[str, Any]

    def __getitem__(self, option: Option) -> Any:
        return self.options.get(option.name, option.default)

    def need(self, option: Option, why: str) -> str:
        """The value of a required option.

        Raises:
          ConfigError: the option is not given.
        """
        if not self[option]:
            raise ConfigError(f"{option.flag} is needed: {why}")
        return str(self[option])

    def guard(self) -> PriceGuard:
        """The price guard that the options ask for."""
        return PriceGuard(self[PRICES], self[MAX_COST])

    def run(self) -> tuple[Run, ml_collections.ConfigDict]:
        """The run to evaluate, and its config.

        Raises:
          ConfigError: no run is named.
          CheckpointError: the run has no checkpoint.
        """
        if not self.workdir or self.config is None:
            raise ConfigError("--workdir=DIR is needed: the run to evaluate")
        return load_run(self.workdir, self.config.generate.step), self.config


@dataclasses.dataclass(frozen=True)
class Suite:
    """One way to evaluate.

    Attributes:
      name: as in --suite=NAME.
      description: one line.
      run: computes the figures, JSON-safe.
      text: formats the figures for a terminal.
      options: the options that it reads; any other option given is refused.
      table: makes the report's table from the runs that have figures; it may have no rows.
      comparable: what must be equal in two runs' figures for a comparison (judge, number of tokens ...).
      units: the units for paired differences between runs; {} if there are none.
      headline: (name, figure, format) for means over seeds; None = the suite has no single figure.
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
    """Each option that some suite reads, with the names of these suites."""
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
    """Run one suite, and store its figures in the run directory if there is one.

    Args:
      name: the suite's name.
      options: name -> value of the options given on the command line.
      workdir, config: see `Request`.

    Returns:
      (figures, their text).

    Raises:
      ConfigError: the suite is unknown, does not read one of the options, or misses one. Each suite raises its own errors.
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
    """The valid rows in `figures["rows"]`; figures may come from old or damaged runs."""
    rows = figures.get("rows") if isinstance(figures, Mapping) else None
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def mapping(figures: Any, key: str) -> Mapping[str, Any]:
    """`figures[key]` if it is a mapping, else an empty one."""
    found = figures.get(key) if isinstance(figures, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def nested(value: Any, *keys: str) -> Any:
    """`value[key][key]...`; None if a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def share_of(*keys: str) -> tuple[Callable[[Mapping[str, Any]], Any], Callable[[float], str]]:
    """Figure and format of a headline that is stored under these keys and written as a percentage."""

    return lambda figures: nested(figures, *keys), percent
