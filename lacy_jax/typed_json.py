"""JSON as a dataclass: every field has its declared type, or an error of one line names the field that has not.

A JSON file that is damaged or was written by another program may have nulls in place of numbers. Code that does not
check its fields fails later, somewhere else.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

_T = TypeVar("_T")


def from_json(cls: type[_T], value: Any, where: str = "") -> _T:
    """An object of dataclass `cls` from a JSON object with its fields; lists become tuples where it declares them.

    Args:
      where: the name of the value, for errors.

    Raises:
      ValueError: it is not an object, a field is missing, unknown or of a wrong type; in one line.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or cls.__name__} is {_kind(value)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    required = {
        name for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }  # fmt: skip
    for name in sorted(required - value.keys()):
        raise ValueError(f"no {where}{'.' if where else ''}{name}")
    for name in sorted(value.keys() - fields.keys()):
        raise ValueError(f"unknown {where}{'.' if where else ''}{name[:80]!r}")
    hints = typing.get_type_hints(cls)
    prefix = f"{where}." if where else ""
    return cls(**{name: _read(hints[name], one, prefix + name) for name, one in value.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    """The value as the type `hint`; raises ValueError if it has another type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (one for one in inner if one is not type(None))
        return _read(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin is dict and isinstance(value, dict):
        return {name: _read(inner[1], one, f"{where}.{name[:80]}") for name, one in value.items()}
    if origin is list and isinstance(value, list):
        return [_read(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is tuple and isinstance(value, list):
        hints = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(hints) == len(value):
            parts = zip(hints, value, strict=True)
            return tuple(_read(one, part, f"{where}[{index}]") for index, (one, part) in enumerate(parts))
    if (hint is float and type(value) in (int, float)) or type(value) is hint:
        return value
    raise ValueError(f"{where} is {_kind(value)}, expected {getattr(hint, '__name__', hint)}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
