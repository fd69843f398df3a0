"""The text of a compiled program (HLO), parsed: its computations, how often each runs, types and their sizes.

XLA lists the body of a loop once; here it counts as often as it runs. The number comes from the loop's own condition, start and
increment, because the TPU compiler does not annotate it. If a CPU or GPU compiler does (`known_trip_count`), the annotation is
used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from lacy_jax.errors import LacyError

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32,
         "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "f8e4m3fn": 8, "f8e5m2": 8}  # fmt: skip
_TRANSPARENT = frozenset(("copy", "bitcast", "convert", "reshape", "optimization-barrier"))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: name, type text, opcode, operands, attributes, and whether it is the computation's result."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, key: str) -> list[str]:
        """Names of the computations that attribute `key` calls."""
        found = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.attributes)
        return [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")] if found else []

    def first_branch(self) -> list[str]:
        """The computation that a call or conditional runs, as a list of one or none. Of a conditional the first counts, as the longer
        one is not known."""
        names = (
            self.called("to_apply") or self.called("branch_computations") or self.called("true_computation")
        )
        return names[:1]


class Module:
    """The text of a compiled program (`compiled.as_text()`), parsed.

    Attributes:
      computations: name -> its instructions by name.
      entry: name of the computation that is called first.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        body: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if header and " = " not in line.split("(")[0]:
                body = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif (found := _instruction(line)) is not None:
                body[found.name] = found

    def executed(self) -> Iterator[tuple[str, str, Instruction, int]]:
        """(context, computation, instruction, executions) of everything that runs; a loop body's context is the body itself.

        Raises:
          LacyError: a loop does not say how often it runs; its body must not be counted just once.
        """
        self.check_loops()
        pending: list[tuple[str, str, int]] = [(self.entry, self.entry, 1)]
        while pending:
            name, context, times = pending.pop()
            for one in self.computations.get(name, {}).values():
                yield context, name, one, times
                if one.opcode == "while":
                    trips = self.trip_count(name, one) or 0
                    for called in (one.called("body"), one.called("condition")):
                        pending += [(c, c, times * trips) for c in called]
                else:
                    names = ("calls", "to_apply", "called_computations", "branch_computations",
                             "true_computation", "false_computation")  # fmt: skip
                    pending += [(c, context, times) for key in names for c in one.called(key)]

    def check_loops(self) -> None:
        """Raises LacyError for a loop that does not say how often it runs."""
        if unknown := self.unknown_loops():
            raise LacyError(
                f"{len(unknown)} loops of the compiled program (first: {unknown[0]}) do not say how often they run, so what "
                f"is in them cannot be counted; `lacy doctor` says whether jax and libtpu are the tested pair"
            )

    def unknown_loops(self) -> list[str]:
        """Names of the loops that do not say how often they run."""
        return [
            one.name
            for name, body in self.computations.items()
            for one in body.values()
            if one.opcode == "while" and self.trip_count(name, one) is None
        ]

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of `loop`, found in `computation`, runs; None if the program does not say."""
        known = re.search(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        test = self._value(condition, self.root(condition), lambda _: _Carried())
        if not isinstance(test, tuple) or test[0] != "less":
            return None
        _, (_, index, offset), bound = test
        start = self._element(computation, loop.operands[0], index, lambda _: None)
        after = self._element(body, self.root(body), index, lambda _: _Carried())
        if not isinstance(after, tuple) or after[:2] != ("index", index) or after[2] <= 0:
            return None
        if not isinstance(start, int):
            return None
        return max(0, math.ceil((bound - offset - start) / after[2]))

    def type_of(self, computation: str, name: str) -> str:
        """Type of a value, with its layout; "x#2" is element 2 of x. "" if there is no such value."""
        base, *places = name.split("#")
        one = self.computations.get(computation, {}).get(base)
        text = one.type if one else ""
        for place in places:
            text = element_types(text)[int(place)] if text else ""
        return text

    # The values that loops need: an int, ("index", k, c) = element k of what a loop carries plus c,
    # ("less", index, bound), a `_Tuple`, `_Carried` (everything that the loop carries), or None = not known.

    def _value(self, computation: str, name: str, parameter: Callable[[int], Any]) -> Any:
        whole, _, element = name.rpartition("#")
        if whole:  # "x#2" is element 2 of x.
            return _part(self._value(computation, whole, parameter), int(element))
        one = self.computations.get(computation, {}).get(name)
        if one is None:
            return None

        def operand(i: int) -> Any:
            return self._value(computation, one.operands[i], parameter)

        if one.opcode == "constant":
            return int(one.operands[0]) if re.fullmatch(r"-?\d+", "".join(one.operands)) else None
        if one.opcode == "parameter":
            return parameter(int(one.operands[0]))
        if one.opcode in _TRANSPARENT:
            return operand(0)
        if one.opcode == "tuple":
            return _Tuple(lambda i: operand(i))
        if one.opcode == "get-tuple-element":
            return _part(operand(0), int(re.search(r"index=(\d+)", one.attributes)[1]))  # type: ignore[index]
        if one.opcode == "fusion" or one.opcode == "call":
            (callee,) = one.called("calls") or one.called("to_apply")
            return self._value(callee, self.root(callee), operand)
        if one.opcode == "add":
            a, b = operand(0), operand(1)
            if isinstance(a, int):
                a, b = b, a
            if isinstance(b, int) and isinstance(a, int):
                return a + b
            return ("index", a[1], a[2] + b) if isinstance(b, int) and _is_index(a) else None
        if one.opcode == "compare":
            a, b = operand(0), operand(1)
            direction = re.search(r"direction=(\w+)", one.attributes)[1]  # type: ignore[index]
            if direction in ("GT", "GE"):
                a, b, direction = b, a, {"GT": "LT", "GE": "LE"}[direction]
            if _is_index(a) and isinstance(b, int) and direction in ("LT", "LE"):
                return ("less", a, b + (direction == "LE"))
        return None

    def _element(self, computation: str, name: str, index: int, parameter: Callable[[int], Any]) -> Any:
        return _part(self._value(computation, name, parameter), index)

    def root(self, computation: str) -> str:
        """Name of the instruction that is a computation's result."""
        return next(one.name for one in self.computations[computation].values() if one.root)


class _Carried:
    """Stands for the tuple a loop carries from round to round."""


@dataclasses.dataclass(frozen=True)
class _Tuple:
    get: Callable[[int], Any]


def _part(whole: Any, index: int) -> Any:
    """Element `index` of a tuple, or None if not known."""
    if isinstance(whole, _Carried):
        return ("index", index, 0)
    return whole.get(index) if isinstance(whole, _Tuple) else None


def _is_index(value: Any) -> bool:
    return isinstance(value, tuple) and value[0] == "index"


def shape_bytes(shape: str) -> int:
    """Bytes of a shape such as "f32[8,128]"; 0 for types without a size (tokens)."""
    kind, _, sizes = shape.rstrip("]").partition("[")
    return math.prod(int(n) for n in sizes.split(",") if n) * _BITS.get(kind, 0) // 8


def element_types(text: str) -> list[str]:
    """Types of the elements of a tuple type; of any other type, itself."""
    text = text.strip()
    if not text.startswith("("):
        return [text]
    return [part.strip() for part in _split(re.sub(r"/\*.*?\*/", "", text[1 : _closing(text, 0)]))]


def array_types(text: str) -> list[str]:
    """The arrays in a type, such as "f32[8,128]", without layouts."""
    return re.findall(r"\b[a-z]\w*\[[\d,]*\]", text)


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    called = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not called:
        return None
    opening = end + called.end() - 1
    closing = _closing(rest, opening)
    inside = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing])
    operands = tuple(part.strip().split(" ")[-1].lstrip("%") for part in _split(inside))
    return Instruction(
        start[2], rest[:end], called[1], operands, rest[closing + 1 :], root=start[1] is not None
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def _split(text: str) -> list[str]:
    """Cut at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]] if text.strip() else []
