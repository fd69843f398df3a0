"""Wikipedia's template `convert`: a quantity in the unit given and in another, "1,300 miles (2,100 km)".

What is computed and how it is worded follows the template's documentation. An option or unit that is not known here
leaves the quantity as the article's author wrote it, which is the fact; the conversion is a convenience.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lacy_jax.corpus.units import Unit, converted, show, unit

_NUMBER = re.compile(r"[-−+]?(?:\d[\d,]*)?(?:\.\d+)?(?:[eE]-?\d+)?")
_FRACTION = re.compile(r"([-−]?)(?:(\d+)\s*\+\s*)?(\d+)(?:/|//|⁄)(\d+)")
_RANGES = {
    "-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and ", "or": " or ", "by": " by ",
    "x": " × ", "×": " × ", "xx": " × ", "*": " × ", "+/-": " ± ", "±": " ± ", "to about": " to about ", "-to": " to ",
    "and to": " and to ", ",": ", ", "by(x)": " by ", "&": " and ", "and(–)": " and ", "to(–)": " to ",
}  # fmt: skip
_SMALLER = {"ft": "in", "st": "lb", "lb": "oz", "mi": "yd", "yd": "ft"}
"""The unit in which what is left of another is given: 5 ft 9 in."""
_PAIRS = {"ftin": ("ft", "in"), "stlb": ("st", "lb"), "lboz": ("lb", "oz"), "miyd": ("mi", "yd")}
_CALCULATION = frozenset(["C-change", "F-change"])


class _Words:
    """How units are written: names or symbols, British or American, before a noun or alone."""

    def __init__(self, named: Mapping[str, str]):
        abbr = named.get("abbr", "out")
        self.in_symbol = abbr in ("on", "in", "values")
        self.out_symbol = abbr in ("on", "out", "values", "unit")
        if _flipped(named):  # What is written first is written out.
            self.in_symbol, self.out_symbol = self.out_symbol, self.in_symbol
        self.numbers_only = abbr == "values"
        self.adjective = named.get("adj") in ("on", "mid", "1") or named.get("sing") in ("on", "yes")
        self.american = named.get("sp") == "us"
        self.middle = named.get("_mid", "")

    def written(self, numbers: str, of: Unit, value: float, symbol: bool) -> str:
        if self.numbers_only:
            return numbers
        if symbol or (of.kind == "temperature" and of.code != "K"):
            return f"{numbers}{'' if of.symbol.startswith('/') else ' '}{_symbol(of)}"
        if self.adjective:
            return f"{numbers}-{self._spelt(of.singular).replace(' ', '-')}{self.middle}"
        one = value == 1 or ("/" in numbers and abs(value) <= 1)
        return f"{numbers} {self._spelt(of.singular if one else of.plural)}"

    def _spelt(self, name: str) -> str:
        return name.replace("metre", "meter").replace("litre", "liter") if self.american else name


def _flipped(named: Mapping[str, str]) -> bool:
    return named.get("order") == "flip" or named.get("disp") == "flip"


def _symbol(of: Unit) -> str:
    return of.symbol.replace("2", "²").replace("3", "³") if re.search(r"m[23]", of.symbol) else of.symbol


def convert(args: Sequence[str], named: Mapping[str, str]) -> str:
    """The text of {{convert|ARGS}}: "" only where there is no number at all.

    Args:
      args: positional arguments. named: the others ("abbr", "adj", "disp" ...).
    """
    parts = [part.strip() for part in args]
    values, joins, at = _values(parts)
    if not values:
        return " ".join(part for part in parts if part)
    code = parts[at] if at < len(parts) else ""
    source = unit(code)
    rest = parts[at + 1 :]
    plain = "".join(f"{join}{text}" for join, (text, _) in zip(["", *joins], values))
    if code in _CALCULATION:
        source = unit(code[0])
    if source is None:
        return f"{plain} {code}".strip()
    words = _Words({**named, "_mid": f" {rest[-1]}" if named.get("adj") == "mid" and rest else ""})
    if words.middle:
        rest = rest[:-1]
    composite = _composite(values, source, rest)
    if composite is not None:
        (small, small_text), source_small, rest = composite
        total = source.si(values[-1][1]) + source_small.si(small)
        stated = (
            words.written(plain, source, values[-1][1], words.in_symbol)
            + " "
            + words.written(small_text, source_small, small, words.in_symbol)
        )
        targets = _targets(rest, source)
        values, joins, source = [(small_text, source_small.of_si(total))], [], source_small
    else:
        stated = words.written(plain, source, values[-1][1], words.in_symbol)
        targets = _targets(rest, source)
    outputs = [
        _output(
            values,
            joins,
            source,
            target,
            _precision(rest),
            words,
            named,
            code in _CALCULATION,
            composite is not None,
        )
        for target in targets
    ]
    return _together(stated, "; ".join(filter(None, outputs)), rest, named)


def _values(parts: Sequence[str]) -> tuple[list[tuple[str, float]], list[str], int]:
    """(numbers as (text, value), what joins them, where the unit stands)."""
    values: list[tuple[str, float]] = []
    joins: list[str] = []
    at = 0
    while at < len(parts):
        found = _number(parts[at])
        if found is None:
            break
        values.append(found)
        at += 1
        if at + 1 < len(parts) and parts[at] in _RANGES and _number(parts[at + 1]) is not None:
            joins.append(_RANGES[parts[at]])
            at += 1
            continue
        break
    if len(values) == 1 and at == 1:  # "5-10" or "5 to 10" in one argument.
        pair = re.fullmatch(r"(\S+?)\s*(-|–|to)\s*(\S+)", parts[0].lstrip("-−"))
        if pair and (first := _number(pair[1])) and (second := _number(pair[3])):
            return [first, second], [_RANGES[pair[2]]], at
    return values, joins, at


def _number(text: str) -> tuple[str, float] | None:
    """(as shown, value) of a number, fraction, or range's first number; None if it is none."""
    text = text.strip().replace(" ", "").replace("&nbsp;", "")
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        sign, whole, top, bottom = fraction.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + float(Fraction(int(top), int(bottom)))
        shown = f"{whole} {top}/{bottom}" if whole else f"{top}/{bottom}"
        return ("−" if sign else "") + shown, -value if sign else value
    if not text or _NUMBER.fullmatch(text) is None or not any(c.isdecimal() for c in text):
        pair = re.fullmatch(r"(\d[\d,.]*)(?:-|–|to)(\d[\d,.]*)", text)
        return _number(pair[1]) if pair else None
    plain = text.replace(",", "").replace("−", "-")
    value = float(plain)
    if not math.isfinite(value):
        return None
    if "e" in plain.lower():
        return text, value
    _, point, decimals = plain.partition(".")
    shown = show(abs(value), 0) if not point else f"{show(math.floor(abs(value)), 0)}.{decimals}"
    return ("−" if plain.startswith("-") else "") + shown, value


def _composite(
    values: Sequence[tuple[str, float]], source: Unit, rest: Sequence[str]
) -> tuple[tuple[float, str], Unit, list[str]] | None:
    """(what is left over, its unit, the other arguments) of "5|ft|9|in"; None if there is nothing left over."""
    if len(values) != 1 or len(rest) < 2 or rest[1] != _SMALLER.get(source.code):
        return None
    number, smaller = _number(rest[0]), unit(rest[1])
    if number is None or smaller is None:
        return None
    return (number[1], number[0]), smaller, list(rest[2:])


def _targets(rest: Sequence[str], source: Unit) -> list[tuple[Unit, ...]]:
    """What to convert into: units, each alone or in a pair ("ftin")."""
    wanted = rest[0] if rest and _number(rest[0]) is None else ""
    found: list[tuple[Unit, ...]] = []
    for code in [wanted] if unit(wanted) else wanted.split():
        if code in _PAIRS:
            found.append(tuple(u for u in map(unit, _PAIRS[code]) if u is not None))
        elif (of := unit(code)) is not None:
            found.append((of,))
    default = unit(source.default)
    found = [pair for pair in found if pair[0].kind == source.kind]
    if not found and not wanted and default is not None:
        found = [(default,)]
    return found


def _precision(rest: Sequence[str]) -> int | None:
    """Decimals that the author asked for: a whole number after the target unit."""
    for part in rest[:2]:
        if re.fullmatch(r"-?\d", part):
            return int(part)
    return None


def _output(
    values: Sequence[tuple[str, float]],
    joins: Sequence[str],
    source: Unit,
    target: tuple[Unit, ...],
    precision: int | None,
    words: _Words,
    named: Mapping[str, str],
    difference: bool,
    composite: bool,
) -> str:
    """The quantity in another unit, in words or symbols."""
    if len(target) == 2:
        return " to ".join(_pair(source.si(value), *target, words) for _, value in values)
    found: list[tuple[float, int]] = []
    for text, value in values:
        if difference:
            result, decimals = value * source.scale / target[0].scale, 0
        elif composite:
            result = target[0].of_si(source.si(value))
            decimals = (
                math.floor(math.log10(target[0].scale) + 2.0 + math.log10(2)) if source.code == "in" else 0
            )
        else:
            result, decimals = converted(value, _as_written(text), source, target[0])
        if precision is not None:
            decimals = precision
        figures = named.get("sigfig", "")
        if figures.isdecimal() and result:
            decimals = int(figures) - 1 - math.floor(math.log10(abs(result)) + 1e-14)
        step = named.get("round", "")
        if step in ("5", "10", "25", "50"):
            result, decimals = math.floor(result / int(step) + 0.5) * int(step), 0
        found.append((result, decimals))
    finest = max(decimals for _, decimals in found)  # Both ends of a range are shown alike.
    shown, last = [show(result, finest) for result, _ in found], found[-1][0]
    numbers = "".join(f"{join}{text}" for join, text in zip(["", *joins], shown))
    return words.written(numbers, target[0], last, words.out_symbol)


def _as_written(text: str) -> str:
    """A number whose digits say how exact it is; a fraction is as exact as its denominator has digits, at least one."""
    if "/" in text:
        bottom = int(text.rpartition("/")[2])
        return "0." + "1" * max(math.ceil(math.log10(bottom)), 1)
    return text if "e" not in text.lower() else repr(float(text.replace(",", "").replace("−", "-")))


def _pair(si: float, large: Unit, small: Unit, words: _Words) -> str:
    total = round(small.of_si(si))
    per = round(large.scale / small.scale)
    first, second = divmod(abs(total), per)
    sign = "−" if total < 0 else ""
    return (
        words.written(f"{sign}{show(first, 0)}", large, first, words.out_symbol)
        + " "
        + words.written(str(second), small, second, words.out_symbol)
    )


def _together(stated: str, output: str, rest: Sequence[str], named: Mapping[str, str]) -> str:
    """Both quantities in the order and with the marks that the author asked for."""
    display = named.get("disp", "")
    if not output:
        return stated
    if display in ("number", "output number only", "out", "output only"):
        return output if display in ("out", "output only") else output.split(" ")[0]
    if _flipped(named):
        stated, output = output, stated
    marks = {
        "or": (" or ", ""),
        "comma": (", ", ""),
        "semi": ("; ", ""),
        "sqbr": (" [", "]"),
        "slash": ("/", ""),
        "br": ("\n", ""),
    }
    if display in ("br()",):
        before, after = "\n(", ")"
    elif display == "x" and len(rest) > 1:
        extra = [part for part in rest[1:] if re.fullmatch(r"-?\d", part) is None]
        before, after = (extra[0] if extra else " ("), (extra[1] if len(extra) > 1 else "")
        before = before if before[:1] in ",;" else f" {before.strip()} "
    else:
        before, after = marks.get(display, (" (", ")"))
    return f"{stated}{before}{output}{after}"
