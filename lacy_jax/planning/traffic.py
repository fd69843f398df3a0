"""How many bytes an instruction of a compiled TPU program moves to and from HBM, read from the program's text.

Arrays count as they lie in memory, padded to the tiles of their layout: `bf16[8,1024,64]{2,1,0:T(8,128)(2,1)}` has rows of
128. What lies in another memory (`S(1)`, the chip's vector memory) moves nothing. Of an operand that a fusion only cuts a
slice from, the slice counts; of a result that it updates in place, the update.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lacy_jax.planning.hlo import Instruction, Module, element_types, shape_bytes

_CUTTING = frozenset(("dynamic-slice", "slice", "gather"))
_FORM = frozenset(("bitcast", "copy"))
"""Opcodes that, in the body of a fusion, change only how a value lies."""
HIDDEN = frozenset(("copy-start", "slice-start", "async-start"))
"""Opcodes of copies that run beside other work."""


def moved_bytes(module: Module, computation: str, one: Instruction) -> float:
    """Bytes read from HBM plus bytes written to it by one execution of `one`, which is in `computation`."""
    if (
        one.opcode in HIDDEN
    ):  # (result, operand, counters) or ((operands), result, counters): as large as the smaller.
        ends = [part for part in _arrays(one.type) if stored_bytes(part, anywhere=True) > 64]
        least = min((stored_bytes(part, anywhere=True) for part in ends), default=0.0)
        return least * sum(_in_hbm(part) for part in ends[:2])
    operands = [module.type_of(computation, name) for name in one.operands]
    if one.opcode in _CUTTING:
        return _stored(one.type) + _stored(one.type) * _in_hbm(operands[0])
    if one.opcode == "dynamic-update-slice":
        return _stored(operands[1]) + stored_bytes(operands[1], anywhere=True) * _in_hbm(one.type)
    if one.opcode != "fusion":
        return sum(map(_stored, (one.type, *operands)))
    (body,) = one.called("calls")
    names = {
        int(p.operands[0]): p.name for p in module.computations[body].values() if p.opcode == "parameter"
    }
    read = sum(_read(module, body, names.get(place, ""), text) for place, text in enumerate(operands))
    return read + _written(module, body, one.type)


def stored_bytes(array: str, anywhere: bool = False) -> float:
    """Bytes that one array occupies in HBM, 0 if it is in another memory (unless `anywhere`).

    Args:
      array: shape with its layout, "f32[8,64]{1,0:T(8,128)S(1)}".
      anywhere: count other memories as well.
    """
    if not anywhere and not _in_hbm(array):
        return 0.0
    shape, _, layout = array.partition("{")
    size = shape_bytes(shape)
    sizes = [int(n) for n in shape.partition("[")[2].rstrip("]").split(",") if n]
    tiles = re.findall(r"T\(([\d,]+)\)", layout)
    tile = [int(n) for n in tiles[0].split(",")] if tiles else []
    order = [int(n) for n in layout.partition(":")[0].rstrip("}").split(",") if n.isdigit()]
    if not size or not tile or len(order) < len(tile):
        return float(size)
    padding = 1.0
    for length, place in zip(
        reversed(tile), order, strict=False
    ):  # Both from the innermost dimension outwards.
        padding *= -(-sizes[place] // length) * length / sizes[place]
    return size * padding


def _read(module: Module, body: str, name: str, text: str) -> float:
    whole = _stored(text)
    if not whole:
        return 0.0
    parts = 0.0
    for user, place in _users(module, body, name):
        if user.opcode in _CUTTING and place == 0:
            parts += stored_bytes(user.type, anywhere=True)
        elif not (user.opcode == "dynamic-update-slice" and place == 0):
            return whole
    return min(parts, whole)


def _written(module: Module, body: str, text: str) -> float:
    root = module.computations[body][module.root(body)]
    while root.opcode == "bitcast" and root.operands[0] in module.computations[body]:
        root = module.computations[body][root.operands[0]]
    if root.opcode == "tuple":
        names = [name.partition("#")[0] for name in root.operands]
        results = [module.computations[body].get(name) for name in names]
    else:
        results = [root]
    total = 0.0
    for part, result in zip(element_types(text), results, strict=False):
        if result is not None and result.opcode == "fusion" and "(" not in result.type.partition("{")[0]:
            total += _written(module, result.called("calls")[0], part)
        elif result is not None and result.opcode == "dynamic-update-slice":
            update = module.type_of(body, result.operands[1])
            total += min(stored_bytes(update, anywhere=True), _stored(part))
        else:
            total += _stored(part)
    return total


def _users(module: Module, body: str, name: str) -> Iterator[tuple[Instruction, int]]:
    """(instruction, place among its operands) of what uses a value in the body of a fusion, through inner fusions and what only
    changes its form. A value that so becomes the body's result is used by its root.

    A copy in a fusion moves nothing: on TPU7x arrays of bfloat16 lie in tiles of 16 rows, and a body begins with a copy of whole
    operands, to tiles of 8 rows, before it cuts its slice from them.
    """
    for user in module.computations[body].values():
        for place, operand in enumerate(user.operands):
            if operand.partition("#")[0] != name:
                continue
            if user.opcode in _FORM:
                yield from [(user, place)] if user.root else _users(module, body, user.name)
            elif user.opcode == "fusion":
                (inner,) = user.called("calls")
                for one in module.computations[inner].values():
                    if one.opcode != "parameter" or int(one.operands[0]) != place:
                        continue
                    for within, where in _users(module, inner, one.name):
                        through = within.root and within.opcode in _FORM and not user.root
                        yield from _users(module, body, user.name) if through else [(within, where)]
            else:
                yield user, place


def _stored(text: str) -> float:
    return sum(map(stored_bytes, _arrays(text)))


def _arrays(text: str) -> list[str]:
    return re.findall(r"\b[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?", text)


def _in_hbm(array: str) -> bool:
    return "S(" not in array
