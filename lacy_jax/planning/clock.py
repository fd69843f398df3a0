"""The compiler's own clock: its estimate of how long a compiled TPU program takes, and where the time goes.

libtpu writes its estimate, `estimated_cycles`, beside nearly every fusion of the optimised program. The sum over
everything that runs (a loop's body as often as the loop runs), divided by the chip's clock, is a cost model: within a
few per cent for products of matrices, too high for work that only moves data through memory: so a lower bound stands beside
it, in which such work takes no longer than its bytes at full HBM bandwidth. It has never been compared with a real chip. Pallas kernels carry no estimate: those of splash attention have their own model here; the others
count as zero and are listed by name. Collectives come from the roofline: bytes over links, without any overlap.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping

from lacy_jax.errors import LacyError
from lacy_jax.planning.collectives import KINDS, Where
from lacy_jax.planning.hlo import Instruction, Module, array_types
from lacy_jax.planning.overlap import hidden_seconds
from lacy_jax.planning.traffic import HIDDEN, moved_bytes
from lacy_jax.training.chips import TpuChip

WORK = ("matmul", "attention kernel", "elementwise", "reduction", "slice", "copy", "other kernel")
"""Kinds of work, as `Part.work` names them."""
PHASES = ("embedding", "attention", "mlp", "loss", "mask", "optimizer", "other")
"""Phases of a train step: the names of `jax.named_scope` in the model, the loss and the step; the rest is "other"."""

_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "add-dependency",
     "opt-barrier", "optimization-barrier", "domain", "copy-done", "async-done", "async-update", "send", "send-done", "recv",
     "recv-done", "while", "conditional", "call")
)  # fmt: skip
_SMALL = 4096  # Bytes.
_MEASURED = ("matmul", "attention kernel", "other kernel")  # Their estimates are their lower bounds.
_MOVING = frozenset(("copy", "transpose", "reshape", "bitcast", "convert"))
_SLICING = frozenset(
    ("dynamic-slice", "dynamic-update-slice", "slice", "concatenate", "pad", "gather", "scatter")
)
_PLUMBING = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "fusion",
        "broadcast",
        "iota",
        "convert",
    )
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One instruction of the program.

    Attributes:
      name: of the instruction. work: one of `WORK`. phase: one of `PHASES`.
      seconds: for all executions together. executions: how many in a step.
      least_seconds: the same if what only moves data did so at full HBM bandwidth.
    """

    name: str
    work: str
    phase: str
    seconds: float
    executions: int
    least_seconds: float


@dataclasses.dataclass(frozen=True)
class Clock:
    """The estimate for one step on one device.

    Attributes:
      parts: what takes time, longest first; collectives are not among them.
      collectives_s: seconds of the collectives.
      overlapped_s: of these, seconds that the compiler runs beside other work (`planning.overlap`); part of no sum.
      hidden_s: seconds of copies that run beside other work, at full HBM bandwidth; part of no sum.
      hbm_bytes: read from and written to HBM by everything that runs, copies beside other work included.
      hbm_s: seconds of these at full bandwidth.
      unknown: names of Pallas kernels that have neither an estimate nor a model.
    """

    parts: list[Part]
    collectives_s: float
    hidden_s: float
    hbm_bytes: float
    hbm_s: float
    unknown: tuple[str, ...] = ()
    overlapped_s: float = 0.0

    @property
    def step_s(self) -> float:
        """One step, collectives included; never less than its bytes take, which copies beside other work are part of."""
        return max(sum(part.seconds for part in self.parts) + self.collectives_s, self.hbm_s)

    @property
    def least_s(self) -> float:
        """The lower bound of a step: products, kernels and collectives as estimated, all else at full HBM bandwidth. It is never
        above `step_s`, as it is not of any part."""
        return max(sum(part.least_seconds for part in self.parts) + self.collectives_s, self.hbm_s)

    def on(self, chip: TpuChip, other: TpuChip) -> Clock:
        """The estimate for `chip` by that of a program for the `other`: products at its peak, the rest at its HBM's bandwidth.
        Attention kernels, which the vector unit limits, take the same cycles. What exchange overlaps then is not known: none."""
        memory = other.hbm_bytes_per_s / chip.hbm_bytes_per_s
        pace = {
            "matmul": other.peak_flops / chip.peak_flops,
            "attention kernel": other.clock_hz / chip.clock_hz,
        }
        parts = [
            dataclasses.replace(
                part, seconds=part.seconds * factor, least_seconds=part.least_seconds * factor
            )
            for part in self.parts
            for factor in [pace.get(part.work, memory)]
        ]
        parts.sort(key=lambda part: -part.seconds)
        return dataclasses.replace(
            self, parts=parts, hidden_s=self.hidden_s * memory, hbm_s=self.hbm_s * memory, overlapped_s=0.0
        )

    def by(self, field: str) -> dict[str, float]:
        """Seconds by "work" or "phase", in the order of the constants; entries with none are left out."""
        names = {"work": WORK, "phase": PHASES}[field]
        sums = {name: sum(p.seconds for p in self.parts if getattr(p, field) == name) for name in names}
        return {name: seconds for name, seconds in sums.items() if seconds}

    def to_dict(self) -> dict[str, object]:
        """JSON-safe, seconds; the ten longest instructions."""
        return {
            "step": self.step_s,
            "lower_bound": self.least_s,
            "hbm_bytes": self.hbm_bytes,
            "by_work": self.by("work"),
            "by_phase": self.by("phase"),
            "collectives": self.collectives_s,
            "collectives_beside_work": self.overlapped_s,
            "hidden_copies": self.hidden_s,
            "longest": [dataclasses.asdict(part) for part in self.parts[:10]],
            "without_estimate": list(self.unknown),
        }


def read_clock(
    text: str, chip: TpuChip, collectives_s: float = 0.0, each: Mapping[Where, float] | None = None
) -> Clock:
    """The estimate of a compiled program.

    Args:
      text: the program as the compiler wrote it (`ahead.program_text`).
      collectives_s: see `Clock`.
      each: seconds of each collective, once (`links.seconds_of_each`).

    Raises:
      LacyError: a loop does not say how often it runs; or the bytes read from the program cannot be those that it moves.
    """
    # Attributes of Pallas calls span several lines.
    joined = re.sub(
        r"kernel_metadata=\{\n(.*?)\n\}",
        lambda found: f"kernel_metadata={{{found[1]}}}",
        text,
        flags=re.DOTALL,
    )
    module = Module(joined)
    parts, unknown, hidden, traffic = [], [], 0.0, 0.0
    counted, allowed = 0.0, 0.0  # Seconds of the bytes, and of the estimates, of what has an estimate.
    for computation, one, times in _executed(module):
        moved = moved_bytes(module, computation, one)
        at_least = moved / chip.hbm_bytes_per_s
        traffic += moved * times
        if one.opcode in HIDDEN:
            hidden += at_least * times
            continue
        work = _work(module, one)
        if work is None:
            continue
        cycles = sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', one.attributes)))
        seconds = cycles / chip.clock_hz
        if cycles:
            counted, allowed = counted + at_least * times, allowed + seconds * times
        if work == "attention kernel":
            seconds = splash_cycles(one) / chip.clock_hz
        elif work == "other kernel" and not cycles:
            unknown.append(one.name)
        elif not cycles:  # Plain copies: to memory and back. Counters and the like cost nothing.
            if moved < _SMALL:
                continue
            seconds = at_least
        least = seconds if work in _MEASURED else min(seconds, at_least)
        parts.append(Part(one.name, work, _phase(one), seconds * times, times, least * times))
    if counted > allowed:
        raise LacyError(
            f"the bytes read from the compiled program would take {counted * 1e3:.1f} ms at full HBM bandwidth, the compiler estimates "
            f"{allowed * 1e3:.1f} ms for what moves them: its text is not of a form that is known here; `lacy doctor` says whether jax "
            "and libtpu are the tested pair"
        )
    parts.sort(key=lambda part: -part.seconds)
    overlapped = hidden_seconds(
        module, {part.name: part.seconds / part.executions for part in parts}, each or {}
    )
    return Clock(
        parts, collectives_s, hidden, traffic, traffic / chip.hbm_bytes_per_s, tuple(unknown), overlapped
    )


def splash_cycles(one: Instruction) -> float:
    """Cycles of a splash-attention kernel on one device.

    A grid step over one block of queries and keys takes a fixed time plus a time that grows with the block's scores;
    blocks that the mask leaves empty take only the fixed time. Both times are fitted to libtpu 0.0.50's final bundles
    of the kernels, compiled for a v5e at blocks of 128, 512 and 1,024 (heads of 64 and 128 take the same time: both
    fill the lanes). The vector unit is the limit, so other chips are assumed to take the same cycles.
    """
    found = re.search(r'xprof_metadata"?:\s*"(\{.*?\})"', one.attributes)
    sizes = json.loads(found[1].replace('\\"', '"')) if found else {}
    kind = next(kind for kind in _SPLASH if f"_{kind}_" in f"{one.name}_")
    suffix = "" if kind == "fwd" else f"_{kind}"
    block, keys = sizes.get(f"block_q{suffix}", 128), sizes.get(f"block_kv{suffix}", 128)
    results = [_sizes(shape) for shape in array_types(one.type)]
    *batch, _, length, _ = results[-1]
    # Heads of the queries; there may be fewer of the keys. Of a single row some results are of one block alone.
    heads = max(sizes[-3] for sizes in results if len(sizes) > 2)
    fused = kind == "dkv" and len(results) > 2  # One kernel for all gradients, the queries' first.
    rows, columns = length // block, max(length // keys, 1)
    alive = sum(min(columns, ((row + 1) * block - 1) // keys + 1) for row in range(rows))
    per_score = _SPLASH["fused" if fused else kind]
    return (
        math.prod(batch) * heads * (_GRID_STEP * rows * columns + alive * (_BLOCK + per_score * block * keys))
    )


_SPLASH = {"fwd": 0.0044, "dq": 0.0056, "dkv": 0.0072, "fused": 0.0090}
"""Cycles per score."""
_GRID_STEP, _BLOCK = 200.0, 180.0
"""Cycles of every grid step, and the extra cycles of one with work to do."""


def _executed(module: Module) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, executions) of what runs. A fusion is one instruction."""
    module.check_loops()
    pending = [(module.entry, 1)]
    while pending:
        name, times = pending.pop()
        for one in module.computations.get(name, {}).values():
            if one.opcode == "while":
                trips = module.trip_count(name, one) or 0
                pending += [(body, times * trips) for body in one.called("body")]
            elif one.opcode in ("call", "conditional"):
                pending += [(branch, times) for branch in one.first_branch()]
            if times and one.opcode not in _FREE:
                yield name, one, times


def _work(module: Module, one: Instruction) -> str | None:
    """Kind of work of an instruction; None = it costs nothing here: a collective, or bookkeeping."""
    inside = _opcodes(module, one)
    if inside & {"convolution", "dot"}:  # Even if the compiler has fused a collective with it.
        return "matmul"
    if any(code.removesuffix("-start").removesuffix("-done") in KINDS for code in inside):
        return None
    if one.opcode == "custom-call":
        if 'custom_call_target="tpu_custom_call"' not in one.attributes:
            return None
        return "attention kernel" if "splash" in one.name else "other kernel"
    if inside & {"reduce", "reduce-window"}:
        return "reduction"
    if inside <= _MOVING | _PLUMBING:
        return "copy"
    if inside & _SLICING and inside <= _SLICING | _MOVING | _PLUMBING | {
        "select",
        "compare",
        "add",
        "and",
        "clamp",
    }:
        return "slice"
    return "elementwise"


def _opcodes(module: Module, one: Instruction) -> set[str]:
    found = {one.opcode} if one.opcode != "fusion" else set()
    for name in one.called("calls"):
        for inner in module.computations.get(name, {}).values():
            found |= _opcodes(module, inner) if inner.opcode == "fusion" else {inner.opcode}
    return found


def _phase(one: Instruction) -> str:
    op_name = re.search(r'op_name="([^"]*)"', one.attributes)
    words = re.findall(r"\w+", op_name[1]) if op_name else []
    return next((word for word in reversed(words) if word in PHASES), "other")


def _sizes(shape: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])]
