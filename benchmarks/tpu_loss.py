"""The loss on a TPU, ours against the Pallas kernel of tokamax: memory and estimated time, compiled for one v5e chip.

    python benchmarks/tpu_loss.py            # compile what docs/results/tpu_loss.json lacks, print the table
    python benchmarks/tpu_loss.py --table    # print the table of what is stored; compiles nothing

Values and gradients of one chip's share of a 334M Llama's step on v5e-16: 8 x 1,024 hidden states of width 1,024 and a head of
32,000 rows. lse_V and z[target] of each token have cotangents of their own, as in delegation. Needs the extra `tpu` and
`pip install tokamax`. Nothing runs: both times are the compiler's.

  ours, full logits   `estimated_cycles` of the program (`lacy_jax.planning.clock`)
  tokamax             the same for what surrounds its kernels, which carry no estimate; for these the instruction bundles that
                      libtpu writes, each of a grid step's branches as often as it runs and at least as long as the
                      matrix units need for its product
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

RESULT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "results" / "tpu_loss.json"
DTYPES = ("bfloat16", "float32")
LOSSES = ("ours", "ours, chunk 1,024", "ours, chunk 128", "tokamax", "full logits")
BATCH, TIME, WIDTH, VOCABULARY = 8, 1024, 1024, 32_000
_TOKENS = BATCH * TIME
_KERNELS = "tokamax._src.ops.linear_softmax_cross_entropy_loss.pallas_mosaic_tpu_kernel"
_FLOPS_PER_CYCLE = 4 * 128 * 128 * 2  # Of a v5e: four matrix units.


def measure(which: str, dtype: str) -> dict[str, Any]:
    """Bytes of temporaries, and seconds by the compiler's estimate; kernels without one are named."""
    import jax
    import jax.numpy as jnp

    from lacy_jax.planning.ahead import program_text
    from lacy_jax.planning.clock import read_clock

    mesh, chip = _one_chip()
    where = jax.sharding.NamedSharding(mesh, jax.P())

    def array(shape: tuple[int, ...], kind: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=where)

    rows = (BATCH, TIME)
    given = [array((*rows, WIDTH), dtype), array((VOCABULARY, WIDTH), jnp.float32), array(rows, jnp.int32)]
    given += [array(rows, jnp.float32)] * 2
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = jax.jit(_loss(which)).lower(*given).compile(compiler_options=options)
        clock = read_clock(program_text(program, pathlib.Path(folder)), chip)
    return {
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "seconds": clock.step_s,
        "seconds_by_work": clock.by("work"),
        "kernels_without_estimate": list(clock.unknown),
    }


def _one_chip() -> tuple[Any, Any]:
    import jax
    import numpy as np

    from lacy_jax.planning.ahead import tpu_devices
    from lacy_jax.planning.slices import parse_topology

    place = parse_topology("v5e:2x2")
    return jax.sharding.Mesh(np.array(tpu_devices(place)[:1]), ("x",)), place.chip


def _loss(which: str) -> Callable[..., Any]:
    """(hidden, kernel, targets, d_lse, d_target) -> (lse_V, nll, gradients of hidden and kernel)."""
    import jax
    import jax.numpy as jnp

    from lacy_jax.objectives.linear import linear_statistics

    def ours(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        chunk = int(which.rpartition(" ")[2].replace(",", "")) if "chunk" in which else 0
        lse, z_target, _ = linear_statistics(hidden, kernel, targets, chunk=chunk)
        return lse, z_target

    def full(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = jnp.einsum("btd,vd->btv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(z, -1), jnp.take_along_axis(z, targets[..., None], -1)[..., 0]

    def differentiated(hidden: Any, kernel: Any, targets: Any, d_lse: Any, d_target: Any) -> Any:
        statistics = full if which == "full logits" else ours
        (lse, z_target), pull = jax.vjp(lambda h, k: statistics(h, k, targets), hidden, kernel)
        return lse, lse - z_target, *pull((d_lse, d_target))

    return tokamax_loss if which == "tokamax" else differentiated


def tokamax_loss(hidden: Any, kernel: Any, targets: Any, d_lse: Any, d_target: Any) -> Any:
    """The kernels beneath its public function, which gives nll but not lse_V.

    Their backward pass is d (softmax - onehot(target)). A called target has d_target = 0, and a target out of range takes
    its one-hot away; a learned one has d_target = -d_lse. Other pairs, those of `call_objective = "full"`, of `z_loss` and of the
    policy `idk`, have no such form.
    """
    import jax.numpy as jnp

    kernels = importlib.import_module(_KERNELS)
    forward, backward = _blocks(kernels, hidden.dtype)
    head = kernel.astype(hidden.dtype).T
    rows, wanted = hidden.reshape(-1, WIDTH), targets.reshape(-1)
    nll, lse = kernels.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(
        rows, wanted, head, reduction="none", **forward
    )
    wanted = jnp.where(d_target.reshape(-1) == 0, -1, wanted)
    d_hidden, d_head = kernels.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(
        d_lse.reshape(-1), lse, rows, wanted, head, reduction="none", **backward
    )
    shape = targets.shape
    return (
        lse.reshape(shape),
        nll.reshape(shape),
        d_hidden.reshape(hidden.shape).astype(hidden.dtype),
        d_head.T,
    )


def _blocks(kernels: Any, dtype: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The blocks that tokamax chooses for these shapes: forward, backward."""
    names = ("b_block_size", "h_block_size", "v_block_size")
    chosen = [
        choose(_TOKENS, WIDTH, VOCABULARY, dtype=dtype)
        for choose in (kernels.get_heuristic_fwd_config, kernels.get_heuristic_bwd_config)
    ]
    forward, backward = ({name: getattr(one, name) for name in names} for one in chosen)
    return forward, backward


def measure_kernels(dtype: str, folder: pathlib.Path) -> dict[str, Any]:
    """`measure` of tokamax with "kernels", seconds of both. libtpu must have been loaded with `bundles_to(folder)`."""
    import jax

    mesh, chip = _one_chip()
    row = measure("tokamax", dtype)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        forward, backward = _blocks(importlib.import_module(_KERNELS), jax.numpy.dtype(dtype))

    def grid(blocks: dict[str, int]) -> tuple[list[int], int]:
        sizes = blocks["b_block_size"], blocks["h_block_size"], blocks["v_block_size"]
        steps = [math.ceil(n / size) for n, size in zip((_TOKENS, WIDTH, VOCABULARY), sizes, strict=True)]
        return steps, 2 * math.prod(sizes) // _FLOPS_PER_CYCLE  # Cycles of one block's product.

    (b, h, v), product = grid(forward)
    always, (first, further, statistics) = bundles(folder, "lce_fwd")
    cycles = b * v * (h * always + max(first, product) + (h - 1) * max(further, product) + statistics)
    (b, h, v), product = grid(backward)
    if h != 1:
        raise SystemExit(
            f"tokamax takes {h} blocks of H here; its backward kernel's branches are counted for one"
        )
    always, (_, _, kernel, hidden) = bundles(folder, "lce_bwd")  # The first two branches begin the sums.
    back = b * (v + 1) * max(always, product) + b * v * (max(kernel, product) + max(hidden, product))
    row["kernels"] = {"forward": cycles / chip.clock_hz, "backward": back / chip.clock_hz}
    row["blocks"] = {"forward": forward, "backward": backward}
    return row


def bundles_to(folder: pathlib.Path) -> str:
    """LIBTPU_INIT_ARGS with which libtpu writes the final bundles of what it compiles."""
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"


def bundles(folder: pathlib.Path, kernel: str) -> tuple[int, Sequence[int]]:
    """Instruction bundles of a kernel: outside all large branches, and of each of these in the order of the program."""
    (path,) = [p for p in folder.iterdir() if kernel in p.name and re.search(r"\d+-final_bundles", p.name)]
    jumps, ends, last = [], {}, 0
    for line in path.read_text().splitlines():
        if found := re.match(r"\s*(0x[0-9a-f]+|\d+)\s+(?:[A-Z]{2})?\s*:\s*(?:>\s*)*\{", line):
            last = int(found[1], 0)
        for regions in re.findall(r"Start/End empty region ((?:\d+)(?:, \d+)*)", line):
            ends.update(dict.fromkeys(regions.split(", "), last))
        if found := re.search(r"sbr\.rel \([^)]*\) target = \$region(\d+)", line):
            jumps.append((last, found[1]))
    branches = [size for start, region in jumps if (size := ends.get(region, 0) - start) > 1000]
    return last + 1 - sum(branches), branches


def measure_missing() -> None:
    """Each row that is not stored; tokamax's kernels in processes of their own, as libtpu reads its flags when it is loaded."""
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    found["versions"] = {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "tokamax")}
    for dtype, which in itertools.product(DTYPES, LOSSES):
        if f"{which}, {dtype}" in found["rows"]:
            continue
        print(f"compiling {which}, {dtype}", file=sys.stderr, flush=True)
        if which == "tokamax":
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "LIBTPU_INIT_ARGS": bundles_to(pathlib.Path(folder))}
                command = [sys.executable, __file__, f"--kernels={dtype}", f"--folder={folder}"]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
        else:
            row = measure(which, dtype)
        found["rows"][f"{which}, {dtype}"] = row
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def table() -> str:
    """Markdown of what is stored."""
    found = json.loads(RESULT.read_text())
    lines = [
        "| loss and its gradients | "
        + " | ".join(f"{dtype}: temporaries | estimated" for dtype in DTYPES)
        + " |"
    ]
    lines.append("|---" * (1 + 2 * len(DTYPES)) + "|")
    for which in LOSSES:
        cells = []
        for dtype in DTYPES:
            row = found["rows"][f"{which}, {dtype}"]
            kernels = row.get("kernels", {"forward": 0.0, "backward": 0.0})
            seconds = row["seconds"] + kernels["forward"] + kernels["backward"]
            cells += [f"{row['temporaries'] / 2**20:,.0f} MiB", f"{seconds * 1e3:.1f} ms"]
        lines.append(f"| {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--table", action="store_true", help="print what is stored; compile nothing")
    parser.add_argument("--kernels", choices=DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernels:
        print(json.dumps(measure_kernels(options.kernels, options.folder)))
        return 0
    if not options.table:
        measure_missing()
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
