"""The first table of docs/plan.md: `lacy plan` for the paper's set-ups on four slices.

    python benchmarks/plan.py                # compile the rows that docs/results/plan/ lacks (a minute each, with the search
                                             # for the largest batch some minutes), print the table
    python benchmarks/plan.py --no-search    # without that search
    python benchmarks/plan.py 334m_v5e-16    # only these rows
    python benchmarks/plan.py --table        # print the table of what is there; compiles nothing

Needs the extra `tpu`. Each row is one `lacy plan --json`, kept as docs/results/plan/ROW.json.
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
ROWS: dict[str, tuple[str, ...]] = {
    f"{model}_{place}": (f"--config=experiments/paper_{model}.py", f"--topology={place}", *more)
    for model in ("334m", "1b3")
    for place, more in (("v5e-16", ()), ("v5e-256", _SHARED), ("v5p-128", ()), ("v6e-64", ()))
}
_HEAD = ("model", "slice", "mesh", "memory per chip: arguments + temporaries + program", "largest batch", "a step's collectives: arrays",
         "a chip sends", "step at the roofline (limit)", "utilisation at most", "estimated step (lower bound)", "tokens a day", "chip-hours")  # fmt: skip


def stored(row: str) -> pathlib.Path:
    """Where its result is kept."""
    return RESULTS / f"{row}.json"


def is_stored(row: str, search: bool) -> bool:
    """Whether its result is there, with the largest batch if that is wanted."""
    there = stored(row).exists()
    return there and (not search or json.loads(stored(row).read_text())["largest_batch"] > 0)


def compile_row(row: str, search: bool) -> None:
    """Run `lacy plan` and keep what it says.

    Raises:
      CalledProcessError: it failed; its message is on stderr.
    """
    words = ["plan", *ROWS[row], "--json", *([] if search else ["--no-search"])]
    print("lacy", *words, file=sys.stderr, flush=True)
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "lacy_jax.cli", *words],
        cwd=_ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    stored(row).write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")


def cells(row: str, plan: dict[str, Any]) -> list[str]:
    """One row of the table."""
    name, place = row.split("_")
    memory = plan["memory_per_chip"]
    parts = " + ".join(f"{memory[key] / GIB:.2f}" for key in ("arguments", "temporaries", "program"))
    kinds = ", ".join(f"{kind} {row['executions']:,} x: {_bytes(row['array_bytes'])}" for kind, row in plan["collectives"].items())  # fmt: skip
    return [
        name,
        place,
        " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1),
        f"{memory['used'] / GIB:.2f} of {memory['available'] / GIB:.2f} GiB: {parts}",
        f"{plan['largest_batch']:,}" if plan["largest_batch"] else "not searched",
        kinds,
        _bytes(sum(row["sent_bytes"] for row in plan["collectives"].values())),
        f"{plan['roofline_s']['step'] * 1e3:.1f} ms ({plan['limit']})",
        f"{100 * plan['utilisation_bound']:.0f} %",
        f"{plan['clock_s']['step'] * 1e3:,.1f} ms ({plan['clock_s']['lower_bound'] * 1e3:,.1f})",
        f"{plan['tokens_per_day'] / 1e9:,.0f} G",
        f"{plan['chip_hours']:,.0f}",
    ]


def table() -> str:
    """Markdown of the rows that are stored."""
    there = [cells(row, json.loads(stored(row).read_text())) for row in ROWS if stored(row).exists()]
    return "\n".join(f"| {' | '.join(line)} |" for line in (_HEAD, ("---",) * len(_HEAD), *there))


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"compile only these: {', '.join(ROWS)}")
    parser.add_argument(
        "--no-search", action="store_true", help="do not look for the largest batch that fits"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is stored; compile nothing")  # fmt: skip
    options = parser.parse_args(argv)
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: {', '.join(ROWS)}")
    if not options.table:
        for row in options.rows or ROWS:
            if not is_stored(row, not options.no_search):
                compile_row(row, not options.no_search)
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
