"""What chips send to each other in one step, read from the compiled program."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from lacy_jax.planning.hlo import Instruction, Module, array_types, shape_bytes

# "slice-send": the compiler turns the part of a collective that crosses slices into this; the rest keeps its kind.
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "slice-send")
_DIRECT = frozenset(("collective-permute", "slice-send"))
Where = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      shape: text of its result, such as "f32[32000,1024]".
      size: bytes of the whole array: gathered, reduced, or before scattering; of one message for a permute or send.
      members: participants that exchange with each other, by their number in the mesh; for a permute the pair that is
        farthest apart.
      executions: per step.
      links: over how many links the compiler's algorithm sends at once, where it says so; 0 = over all that its members have.
      crosses_slices: participants lie in different slices.
      op_name: where in the source program it comes from.
      where: the loop body it runs in, and what tells it from others there (`identity`).
    """

    kind: str
    shape: str
    size: int
    members: tuple[int, ...]
    executions: int
    links: int
    crosses_slices: bool
    op_name: str
    where: Where = ()

    @property
    def group(self) -> int:
        """How many participants exchange with each other."""
        return len(self.members)

    @property
    def sent(self) -> float:
        """Bytes that one chip sends per step, by the ring algorithm."""
        share = 1 - 1 / self.group
        factor = 1.0 if self.kind in _DIRECT else 2 * share if self.kind == "all-reduce" else share
        return self.size * factor * self.executions


def collectives(text: str, devices: int, per_slice: int = 0) -> list[Collective]:
    """The collectives of a compiled program, most bytes first.

    Args:
      text: `compiled.as_text()`.
      devices: how many the program runs on.
      per_slice: devices per slice; 0 = all are in one slice.
    """
    module = Module(text)
    callers = {
        called: one.attributes
        for body in module.computations.values()
        for one in body.values()
        for called in one.called("calls")
    }
    seen: set[Where] = set()
    found = []
    for context, computation, one, times in module.executed():
        kind = one.opcode.removesuffix("-start")
        # The TPU's own reduce-scatter: a fusion of an all-reduce and a slice of its result.
        fused = kind == "all-reduce" and computation.startswith("all-reduce-scatter")
        if fused:
            kind = "reduce-scatter"
        if kind == "send" and "megascale" in one.attributes:
            kind = "slice-send"
        if kind not in KINDS or times == 0:
            continue
        where = identity(context, one)
        if len(where) > 2:  # In steps.
            if where in seen:
                continue
            seen.add(where)
        members = (0, devices - 1) if kind == "slice-send" else _group(one.attributes, kind, devices)
        if len(members) < 2:
            continue
        shapes = array_types(one.type)
        if one.opcode.endswith("-start") and one.type.startswith("(") and kind != "all-reduce":
            shapes = shapes[1:2]  # (operand, result, and for a permute two counters)
        if kind == "slice-send":
            shapes = shapes[:1]
        size = sum(map(shape_bytes, shapes)) * (len(members) if kind == "reduce-scatter" and not fused else 1)
        op_name = re.search(r'op_name="([^"]*)"', one.attributes)
        crosses = bool(per_slice) and len({member // per_slice for member in members}) > 1
        found.append(
            Collective(
                kind,
                " ".join(shapes[:3]),
                size,
                tuple(members),
                times,
                _links(callers.get(computation, one.attributes) if fused else one.attributes),
                crosses,
                op_name[1] if op_name else "",
                where,
            )
        )
    return sorted(found, key=lambda c: -c.sent)


def identity(context: str, one: Instruction) -> Where:
    """What tells a collective from others that run in the same loop body, `context`.

    A collective that the compiler spreads over several fused loops (start, steps, end) keeps one channel and counts once in each
    place it runs from. Those of `shard_map` all have channel 1 and are distinguished by chain and source.
    """
    channel = re.search(r"channel_id=(\d+)", one.attributes)
    if not channel or (channel[1] == "1" and "async_collective_fusion_config" not in one.attributes):
        return (context, one.name)
    kind = one.opcode.removesuffix("-start")
    marks = re.findall(r'chain_id="\d+"|stack_frame_id=\d+', one.attributes) if channel[1] == "1" else []
    return (context, kind, channel[1], *marks)


def by_kind(messages: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """For each kind among them: how many run in a step, bytes of their arrays, bytes that one chip sends, and of these to other slices."""
    return {
        kind: {
            "executions": sum(c.executions for c in of_kind),
            "array_bytes": sum(c.size * c.executions for c in of_kind),
            "sent_bytes": sum(c.sent for c in of_kind),
            "dcn_bytes": sum(c.sent for c in of_kind if c.crosses_slices),
        }
        for kind in KINDS
        if (of_kind := [c for c in messages if c.kind == kind])
    }


def _links(attributes: str) -> int:
    """Links that a collective's algorithm uses, of what libtpu writes beside it; 0 if it does not say.

    A ring that is not said to go one way goes both ways around. The TensorCore's algorithms are named ("StrategyRing{colors:1 ...}",
    one ring through all chips; "UniDirectionNDRingStrategy{colors:4 ...}", four rings one way, each along one dimension after the
    other; "3DAllGather..."), a SparseCore's are spelled out.
    """
    rings = re.findall(r'"ring_type":"(\w+)"[^\]]*\]', attributes)  # The last of each colour's.
    if rings:
        return sum(1 if "UNIDIR" in ring else 2 for ring in rings)
    if named := re.search(r"(\w*)Strategy\w*\{colors:(\d+)", attributes):
        return int(named[2]) * (1 if "UniDirection" in named[1] else 2)
    gathering = re.search(r'"emitter":"(\d)DAllGather', attributes)
    return 2 * int(gathering[1]) if gathering else 0


def _group(attributes: str, kind: str, devices: int) -> Sequence[int]:
    """Members of the first group of a collective."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?\})\}", attributes)
        chains = re.findall(r"\{(\d+),(\d+)\}", pairs[0] if pairs else "")
        moved = [(int(a), int(b)) for a, b in chains if a != b]
        # If one pair crosses slices, the whole permute counts as crossing.
        return max(moved, key=lambda pair: abs(pair[0] - pair[1]), default=())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = _ints(iota[1]), _ints(iota[2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(_ints(iota[3])) if iota[3] else ids).reshape(shape)[0].tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\([^)]*\))?\s*\{([^}]*)\}", attributes)
    if named:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        used = re.findall(r"'([^']+)'", named[2])
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        rest = [axis for axis in sizes if axis not in used]
        order = [list(sizes).index(axis) for axis in (*rest, *used)]
        return ids.transpose(order).reshape(-1, math.prod(sizes[a] for a in used))[0].tolist()
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return _ints(explicit[1]) if explicit else tuple(range(devices))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(json.loads(f"[{text}]"))
