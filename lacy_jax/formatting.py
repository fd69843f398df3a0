"""Figures as people read and write them."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any


def exact(value: float) -> Fraction:
    """The number that a float is written as: 0.29 is 29/100, and 100 times that is 29, not the 28.999... of floats."""
    return Fraction(str(value))


def number(value: float | None) -> str:
    """A figure at reading precision: 1234567 -> "1.23M", 0.01234 -> "0.0123", None -> "–"."""
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


def with_interval(value: Any, interval: Any) -> str:
    """A share with its interval [low, high], where it has one."""
    text = percent(value)
    return text if not interval else f"{text} [{percent(interval[0])}, {percent(interval[1])}]"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page: the first cell of each row is its heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
