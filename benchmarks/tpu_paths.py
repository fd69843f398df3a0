"""Attention written for the TPU against its portable twin, compiled for v5e: memory, estimated time. A table of docs/plan.md.

    python benchmarks/tpu_paths.py            # compile what docs/results/plan/paths/ lacks, print the table
    python benchmarks/tpu_paths.py --table    # print the table of what is there; compiles nothing

Whole train steps: splash against `xla`, and rows on several chips. Needs the extra `tpu`. Nothing runs: memory is the
compiler's figure, time its clock's estimate with the lower bound. The loss has benchmarks/tpu_loss.py.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "results" / "plan" / "paths"
_BASE, _LLAMA = "experiments/paper_334m.py", "experiments/paper_334m.py:llama"
_LONG = ["input.seq_len=4096", "input.batch_size=32"]
_ROWS = 16  # One for each chip where rows are whole.
STEPS: dict[str, tuple[str, list[str]]] = {
    "334m float32, 1,024 tokens, splash": (_BASE, []),
    "334m float32, 1,024 tokens, xla": (_BASE, ["model.attention=xla"]),
    "334m float32, 1,024 tokens, splash, loss in chunks of 128": (_BASE, ["objective.chunk=128"]),
    "334m Llama bfloat16, 1,024 tokens, splash": (_LLAMA, []),
    "334m Llama bfloat16, 1,024 tokens, xla": (_LLAMA, ["model.attention=xla"]),
    "334m Llama bfloat16, 4,096 tokens, splash": (_LLAMA, _LONG),
    "334m Llama bfloat16, 4,096 tokens, xla": (_LLAMA, [*_LONG, "model.attention=xla"]),
    **{
        f"334m Llama bfloat16, 65,536 tokens, splash, full remat, sequence {parts}": (
            _LLAMA,
            [
                "input.seq_len=65536",
                f"input.batch_size={_ROWS // parts}",
                f"mesh.sequence={parts}",
                "model.remat=full",
            ],
        )
        for parts in (1, 2, 4, 8)
    },
}
GIB = 2**30


def measure_step(config: str, overrides: list[str]) -> dict[str, Any]:
    """`lacy plan --topology=v5e-16 --no-search --json`."""
    from lacy_jax.config import load_config
    from lacy_jax.planning.plan import make_plan

    return make_plan(load_config(str(_ROOT / config), overrides), "v5e-16", search=False).to_dict()


def stored(name: str) -> pathlib.Path:
    """Where one measurement is kept."""
    return RESULTS / ("".join(c if c.isalnum() else "_" for c in name) + ".json")


def table() -> str:
    """Markdown of what is stored."""
    lines = [
        "| train step on v5e-16 | temporaries | all, of 15.75 GiB | estimated step (lower bound) |",
        "|---|---|---|---|",
    ]
    for name in STEPS:
        if stored(name).exists():
            found = json.loads(stored(name).read_text())
            memory, clock = found["memory_per_chip"], found["clock_s"]
            lines.append(
                f"| {name} | {memory['temporaries'] / GIB:.2f} GiB | {memory['used'] / GIB:.2f} GiB |"
                f" {1e3 * clock['step']:.0f} ms ({1e3 * clock['lower_bound']:.0f}) |"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--table", action="store_true", help="print what is stored; compile nothing")
    options = parser.parse_args(argv)
    for name, given in STEPS.items():
        if options.table or stored(name).exists():
            continue
        print(f"compiling {name}", file=sys.stderr, flush=True)
        found = measure_step(*given)
        RESULTS.mkdir(parents=True, exist_ok=True)
        stored(name).write_text(json.dumps(found, indent=1) + "\n")
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
