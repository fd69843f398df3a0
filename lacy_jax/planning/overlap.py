"""How much of the exchange between chips runs beside other work, by the order in which the compiler starts and awaits it.

A collective that is started early and awaited later, by a SparseCore or in steps between those of fused products, takes no
time of its own while the work between lasts. Here a program's instructions run one after the other, each as long as the
clock says, and so do its collectives, on the links: what is awaited before it has ended is waited for. That another
collective, or work, slows one down is not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping

from lacy_jax.planning.collectives import Where, identity
from lacy_jax.planning.hlo import Instruction, Module

_CALLS = ("calls", "to_apply", "called_computations")
_STARTS = ("-start", "-update")


def hidden_seconds(module: Module, work: Mapping[str, float], exchange: Mapping[Where, float]) -> float:
    """Seconds of a step's collectives that other work covers.

    Args:
      module: the program, in the order in which it runs.
      work: seconds of each instruction that takes time, by name, once.
      exchange: seconds of each collective, once (`links.seconds_of_each`).
    """
    runs: dict[str, int] = {}
    for context, computation, _, times in module.executed():
        if context == computation:
            runs[context] = max(times, runs.get(context, 0))
    return sum(times * _hidden_in(module, body, work, exchange) for body, times in runs.items() if times)


def _hidden_in(
    module: Module, body: str, work: Mapping[str, float], exchange: Mapping[Where, float]
) -> float:
    """The same in one round of a loop's body, or in the program without its loops."""
    instructions = list(module.computations[body].values())
    begins: dict[Where, int] = {}
    ends: dict[Where, int] = {}
    chains: dict[str, set[Where]] = {}
    for place, one in enumerate(instructions):
        own = {where for where in _inside(module, body, one) if where in exchange}
        chains[one.name] = own.union(*(chains[o] for o in one.operands[:1] if _awaits(one) and o in chains))
        for where in chains[one.name]:
            if one.opcode.endswith(_STARTS):
                begins[where] = place
            else:
                begins.setdefault(where, place)
            ends[where] = place
    now = links_free = 0.0
    over: dict[Where, float] = {}
    for place, one in enumerate(instructions):
        for where in chains[one.name]:
            if begins[where] == place:
                links_free = over[where] = max(now, links_free) + exchange[where]
        now += _seconds(module, body, one, work, exchange)
        for where in chains[one.name]:
            if ends[where] == place:
                now = max(now, over[where])
    alone = sum(_seconds(module, body, one, work, exchange) for one in instructions)
    return alone + sum(exchange[where] for where in over) - max(now, links_free)


def _awaits(one: Instruction) -> bool:
    return one.opcode.endswith(("-update", "-done"))


def _inside(module: Module, body: str, one: Instruction) -> set[Where]:
    """The collectives that an instruction is, or has inside it."""
    found = {identity(body, one)}
    for key in _CALLS:
        for name in one.called(key):
            for inner in module.computations.get(name, {}).values():
                found |= _inside(module, body, inner)
    return found


def _seconds(
    module: Module,
    body: str,
    one: Instruction,
    work: Mapping[str, float],
    exchange: Mapping[Where, float],
) -> float:
    """What an instruction of `body` takes; a loop with its collectives, which then hide nothing else."""
    if one.opcode == "while":
        inner = one.called("body")[0]
        instructions = module.computations[inner].values()
        once = sum(_seconds(module, inner, i, work, exchange) for i in instructions)
        once += sum(seconds for where, seconds in exchange.items() if where[0] == inner)
        return (module.trip_count(body, one) or 0) * once
    if one.opcode in ("call", "conditional"):
        return sum(
            _seconds(module, branch, i, work, exchange)
            for branch in one.first_branch()
            for i in module.computations.get(branch, {}).values()
        )
    return work.get(one.name, 0.0)
