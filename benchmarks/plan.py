"""The table of docs/plan.md: `lacy plan` for the paper's set-ups on four slices.

    python benchmarks/plan.py            # compile the rows that docs/results/plan/ lacks (minutes each, 2 CPU cores), print the table
    python benchmarks/plan.py --table    # print the table of what is there; compiles nothing

Needs the extra `tpu`. Each row is one `lacy plan --json`, kept as docs/results/plan/NAME_SLICE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "results" / "plan"
GIB = 2**30

# 128 sequences are fewer than the 256 chips: two chips share each.
_SHARED = ("--config.mesh.tensor=2",)
ROWS: dict[tuple[str, str], tuple[str, ...]] = {
    ("334m", "v5e-16"): (),
    ("334m", "v5e-256"): _SHARED,
    ("334m", "v5p-128"): (),
    ("334m", "v6e-64"): (),
    ("1b3", "v5e-16"): (),
    ("1b3", "v5e-256"): _SHARED,
    ("1b3", "v5p-128"): (),
    ("1b3", "v6e-64"): (),
}
_HEAD = ("model", "slice", "mesh", "memory per chip: arguments + temporaries + program", "largest batch", "a step's collectives: arrays",
         "a chip sends", "step at the roofline (limit)", "utilisation at most", "tokens a day", "chip-hours")  # fmt: skip


def command(name: str, place: str) -> list[str]:
    """What makes one row."""
    return [
        "plan",
        f"--config=experiments/paper_{name}.py",
        f"--topology={place}",
        *ROWS[name, place],
        "--json",
    ]


def stored(name: str, place: str) -> pathlib.Path:
    """Where its result is kept."""
    return RESULTS / f"{name}_{place}.json"


def compile_row(name: str, place: str) -> None:
    """Run `lacy plan` and keep what it says.

    Raises:
      CalledProcessError: it failed; its message is on stderr.
    """
    words = command(name, place)
    print("lacy", *words, file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "lacy_jax.cli", *words], cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    stored(name, place).write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")


def cells(name: str, place: str, plan: dict[str, Any]) -> list[str]:
    """One row of the table."""
    memory = plan["memory_per_chip"]
    parts = " + ".join(f"{memory[key] / GIB:.2f}" for key in ("arguments", "temporaries", "program"))
    kinds = ", ".join(f"{kind} {row['executions']:,} x: {_bytes(row['array_bytes'])}" for kind, row in plan["collectives"].items())  # fmt: skip
    return [
        name,
        place,
        " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1),
        f"{memory['used'] / GIB:.2f} of {memory['available'] / GIB:.2f} GiB: {parts}",
        f"{plan['largest_batch']:,}",
        kinds,
        _bytes(sum(row["sent_bytes"] for row in plan["collectives"].values())),
        f"{plan['roofline_s']['step'] * 1e3:.1f} ms ({plan['limit']})",
        f"{100 * plan['utilisation_bound']:.0f} %",
        f"{plan['tokens_per_day'] / 1e9:,.0f} G",
        f"{plan['chip_hours']:,.0f}",
    ]


def table() -> str:
    """Markdown of the rows that are stored."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for name, place in ROWS:
        if stored(name, place).exists():
            lines.append(tuple(cells(name, place, json.loads(stored(name, place).read_text()))))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is stored; compile nothing"
    )
    options = parser.parse_args(argv)
    if not options.table:
        for name, place in ROWS:
            if not stored(name, place).exists():
                compile_row(name, place)
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
