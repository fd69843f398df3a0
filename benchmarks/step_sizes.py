"""Tokens per second of the train step over model size, rows of a batch, tokens of a row; PyTorch's beside it on a CPU.

    python benchmarks/step_sizes.py --out=docs/results/step_sizes.json [--quick] [--family=llama] [--dtype=bfloat16]
                                    [--threads=2] [--repeats=5]
    python docs/pictures.py        draws docs/images/step_sizes.svg from it

One dimension varies at a time around the 30m preset with 4 rows of 512 tokens. The two sides
of a point take turns; see benchmarks/step.py for the step and for what PyTorch runs. Points that OUT already has under the
same settings are kept, so a run that was cut off goes on. The last line is one JSON object:

  benchmark    "step_sizes"
  settings     family, dtype, repeats, threads, processor, versions
  points       preset, parameters, rows, length, tokens_per_s, pytorch_tokens_per_s (null without PyTorch), over_pytorch
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
import step
from turns import processor, ratio, rounded, take_turns, threads, use_threads, versions

from lacy_jax import files
from lacy_jax.__main__ import restart_with_huge_pages
from lacy_jax.config import get_default_config
from lacy_jax.errors import LacyError
from lacy_jax.models import count_params, resolve_model_config
from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition

MIDDLE = ("30m", 4, 512)
PRESETS = ("tiny", "10m", "30m", "124m")
ROWS = (1, 2, 4, 8, 16)
LENGTHS = (128, 256, 512, 1024, 2048)
QUICK = [("tiny", 1, 32), ("tiny", 2, 32), ("tiny", 1, 64), ("10m", 1, 32)]


def points_of(quick: bool) -> list[tuple[str, int, int]]:
    """(preset, rows, tokens of a row), each once; what varies first is the size."""
    if quick:
        return QUICK
    preset, rows, length = MIDDLE
    varied = [
        *((name, rows, length) for name in PRESETS),
        *((preset, number, length) for number in ROWS),
        *((preset, rows, tokens) for tokens in LENGTHS),
    ]
    return list(dict.fromkeys(varied))


def measure(point: tuple[str, int, int], options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    """One point, the two sides taking turns."""
    config = get_default_config()
    config.model.preset, config.input.batch_size, config.input.seq_len = point
    config.model.family, config.model.dtype = options.family, options.dtype
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = ModelDefinition(resolve_model_config(config.model, step.VOCABULARY, config.input.seq_len))
    on_host = step.make_batch(*point[1:])
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(on_host, mesh)
        sides = {"lacy": step.make_stepper(config, model, "lacy", batch, mesh)}
        if pytorch := step.pytorch_sides(model.config, on_host):
            sides["pytorch"] = pytorch["pytorch"]
        turns = take_turns(sides, repeats)
    tokens = point[1] * point[2]
    theirs = "pytorch" in sides
    return {
        "preset": point[0],
        "parameters": count_params(model.config),
        "rows": point[1],
        "length": point[2],
        "tokens_per_s": tokens / turns.median("lacy"),
        "pytorch_tokens_per_s": tokens / turns.median("pytorch") if theirs else None,
        "over_pytorch": ratio(turns.wall["pytorch"], turns.wall["lacy"]) if theirs else None,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All points, written to `options.out` after each."""
    if options.threads:
        use_threads(options.threads)
    repeats = options.repeats or (2 if options.quick else 5)
    settings = {
        "family": options.family, "dtype": options.dtype, "repeats": repeats, "threads": threads(),
        "processor": processor(), "versions": versions(),
    }  # fmt: skip
    out = pathlib.Path(options.out)
    before = json.loads(out.read_text()) if out.exists() else {}
    kept = before["points"] if before.get("settings") == settings else []
    done = {(p["preset"], p["rows"], p["length"]): p for p in kept}
    for point in points_of(options.quick):
        if point not in done:
            done[point] = rounded(measure(point, options, repeats))
            print(json.dumps(done[point]), file=sys.stderr, flush=True)
        figures = {"benchmark": "step_sizes", "settings": settings, "points": list(done.values())}
        files.write_json(out, figures)
    return figures


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="JSON file of the figures")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two repeats")
    parser.add_argument("--family", default="gpt2", help="of the model; default gpt2")
    parser.add_argument("--dtype", default="float32", help="compute dtype; default float32")
    parser.add_argument("--repeats", type=int, default=0, help="rounds; default 5")
    parser.add_argument("--threads", type=int, default=0, help="keep to so many processors; default all")
    options = parser.parse_args()
    restart_with_huge_pages()
    try:
        print(json.dumps(run(options)))
    except LacyError as error:
        print(f"benchmarks/step_sizes.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
