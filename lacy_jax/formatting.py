"""Numbers formatted for people."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any


def exact(value: float) -> Fraction:
    """The decimal number that a float is written as: 0.29 is exactly 29/100, so 100 times it is 29, not 28.999..."""
    return Fraction(str(value))


def number(value: float | None) -> str:
    """A number with three significant digits: 1234567 -> "1.23M", 0.01234 -> "0.0123", None -> "–"."""
    if value is None or not math.isfinite(value):
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; None -> "–"."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def short_percent(value: float | None) -> str:
    """A share as a percentage with at most three significant digits; None -> "–"."""
    return "–" if value is None else f"{100 * value:.3g}\N{NO-BREAK SPACE}%"


def with_interval(value: Any, interval: Any) -> str:
    """A share as a percentage, followed by its interval [low, high] if there is one."""
    text = percent(value)
    return text if not interval else f"{text} [{percent(interval[0])}, {percent(interval[1])}]"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, with the cells of each column padded to the same width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for a page: the first cell of each row is the row's heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
