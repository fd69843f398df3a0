"""Kernels written for the TPU against their portable twins, compiled for v5e: memory per chip. The second table of docs/plan.md.

    python benchmarks/tpu_paths.py            # compile what docs/results/plan/paths/ lacks, print the tables
    python benchmarks/tpu_paths.py --table    # print the tables of what is there; compiles nothing

Attention: whole train steps, splash against `xla`, and rows on several chips. Loss: value and gradients alone, 8 x 1,024 tokens on one chip, ours
(`linear_statistics`) against the Pallas kernel of tokamax and against full logits. Needs the extra `tpu`; `pip install
tokamax` for its rows. Nothing runs: these are the compiler's figures of memory, not times.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable
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
        f"334m Llama bfloat16, 65,536 tokens, splash, sequence {parts}": (
            _LLAMA,
            ["input.seq_len=65536", f"input.batch_size={_ROWS // parts}", f"mesh.sequence={parts}"],
        )
        for parts in (1, 2, 4, 8)
    },
}
LOSSES = ("ours", "ours, chunk 128", "tokamax", "full logits")
BATCH, TIME, WIDTH, VOCABULARY = 8, 1024, 1024, 32_000
GIB = 2**30


def measure_step(config: str, overrides: list[str]) -> dict[str, Any]:
    """`lacy plan --topology=v5e-16 --no-search --json`."""
    from lacy_jax.config import load_config
    from lacy_jax.planning.plan import make_plan

    return make_plan(load_config(str(_ROOT / config), overrides), "v5e-16", search=False).to_dict()


def measure_loss(which: str) -> dict[str, Any]:
    """Bytes of temporaries of the loss and its gradients in float32 hidden states and kernel [V, D], on one v5e chip."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lacy_jax.planning.ahead import tpu_devices
    from lacy_jax.planning.slices import parse_topology

    mesh = jax.sharding.Mesh(np.array(tpu_devices(parse_topology("v5e:2x2"))[:1]), ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.P())

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    hidden = array((BATCH, TIME, WIDTH), jnp.float32)
    kernel = array((VOCABULARY, WIDTH), jnp.float32)
    targets = array((BATCH, TIME), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(_loss(which)).lower(hidden, kernel, targets).compile()
    return {
        "loss": which,
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "versions": _versions(),
    }


def _loss(which: str) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    from lacy_jax.objectives.linear import linear_statistics

    def tokamax(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> Any:
        # Its public function asks the TPU at hand for its generation; the kernels beneath take the block sizes it would choose.
        name = "tokamax._src.ops.linear_softmax_cross_entropy_loss.pallas_mosaic_tpu_kernel"
        kernels = importlib.import_module(name)
        blocks = {"b_block_size": 1024, "h_block_size": 512, "v_block_size": 512}
        given = hidden.reshape(-1, WIDTH), targets.reshape(-1), kernel.T
        loss, lse = kernels.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(*given, **blocks)
        d_hidden, d_kernel = kernels.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(
            jnp.float32(1), lse, *given, **blocks
        )
        return loss, (d_hidden.reshape(hidden.shape), d_kernel.T)

    def ours(hidden: jax.Array, kernel: jax.Array, targets: jax.Array, chunk: int) -> jax.Array:
        lse, z_target, _ = linear_statistics(hidden, kernel, targets, chunk=chunk)
        return jnp.sum(lse - z_target)

    def full(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
        z = jnp.einsum("btd,vd->btv", hidden, kernel, preferred_element_type=jnp.float32)
        return jnp.sum(jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, targets[..., None], -1)[..., 0])

    if which == "tokamax":
        return tokamax
    if which == "full logits":
        return jax.value_and_grad(full, argnums=(0, 1))
    chunk = 128 if "chunk" in which else 0
    return jax.value_and_grad(lambda h, k, t: ours(h, k, t, chunk), argnums=(0, 1))


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "libtpu", "tokamax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def stored(name: str) -> pathlib.Path:
    """Where one measurement is kept."""
    return RESULTS / ("".join(c if c.isalnum() else "_" for c in name) + ".json")


def table() -> str:
    """Markdown of what is stored."""
    lines = ["| train step on v5e-16 | temporaries | all, of 15.75 GiB |", "|---|---|---|"]
    for name in STEPS:
        if stored(name).exists():
            memory = json.loads(stored(name).read_text())["memory_per_chip"]
            lines.append(
                f"| {name} | {memory['temporaries'] / GIB:.2f} GiB | {memory['used'] / GIB:.2f} GiB |"
            )
    lines += ["", "| loss and its gradients | temporaries |", "|---|---|"]
    for which in LOSSES:
        if stored(f"loss {which}").exists():
            found = json.loads(stored(f"loss {which}").read_text())
            lines.append(f"| {which} | {found['temporaries'] / 2**20:,.0f} MiB |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--table", action="store_true", help="print what is stored; compile nothing")
    options = parser.parse_args(argv)
    wanted: dict[str, Callable[[], dict[str, Any]]] = {f"loss {which}": lambda w=which: measure_loss(w) for which in LOSSES}  # fmt: skip
    for name, given in STEPS.items():
        wanted[name] = lambda g=given: measure_step(*g)
    for name, measure in wanted.items():
        if options.table or stored(name).exists():
            continue
        print(f"compiling {name}", file=sys.stderr, flush=True)
        try:
            found = measure()
        except ModuleNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        RESULTS.mkdir(parents=True, exist_ok=True)
        stored(name).write_text(json.dumps(found, indent=1) + "\n")
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
