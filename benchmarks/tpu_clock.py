"""Our step and MaxText's by the same clock: the compiler's estimate (docs/plan.md), on the same shapes, chips and batch.

    python benchmarks/tpu_clock.py                     # compile the rows that docs/results/plan/clock/ lacks, print the table
    python benchmarks/tpu_clock.py ours_preset         # only these rows
    python benchmarks/tpu_clock.py --table             # print the table of what is there; compiles nothing

A 332 M Llama in bfloat16, 128 rows of 1,024 tokens a step, 16 chips of a v5e. Both are compiled ahead, one process a row, a minute
or two each; nothing runs. Ours is `lacy plan`, MaxText's its own `maxtext.trainers.pre_train.train_compile`, which needs an
environment that has it (`make .venv-maxtext/.installed`; another one by --maxtext=PYTHON). That of ours should have the same
jax and libtpu: each row keeps its versions, and rows of different ones make no table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "results" / "plan" / "clock"
TOPOLOGY, CONFIG = "v5e-16", "experiments/paper_334m.py:llama"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled step.

    Attributes:
      about: for the table. maxtext: whose step it is. more: overrides of our config, or MaxText's own keys.
    """

    about: str
    maxtext: bool
    more: tuple[str, ...] = ()


# What was found by hand for MaxText: blocks and layout of attention, what is kept, and its own flags that overlap exchange.
_FLAGS = (
    "xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000", "xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "xla_tpu_data_parallel_opt_different_sized_ops=true", "xla_tpu_enable_async_collective_fusion=true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true", "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "xla_tpu_overlap_compute_collective_tc=true", "xla_enable_async_all_gather=true",
)  # fmt: skip
_TUNED = (
    "remat_policy=minimal_with_context", "param_scan_axis=0", "sa_use_fused_bwd_kernel=true",
    *(f"sa_{name}_dkv=1024" for name in ("block_q", "block_kv")), "sa_block_kv_dkv_compute=1024",
    *(f"sa_{name}_layout=SEQ_MINOR" for name in "qkv"),
)  # fmt: skip


def _flags(*flags: str) -> str:
    return f"compile_xla_flags='{' '.join(f'--{flag}' for flag in flags)}'"


_DATA_PARALLEL = ("ici_data_parallelism=16", "ici_fsdp_parallelism=1")
ROWS = {
    "ours_plain": Row("ours, the preset without compiler options", False, ("train.compiler_options=()",)),
    "ours_preset": Row("ours, the preset", False),
    "maxtext_defaults": Row("MaxText, its defaults (fsdp 16, full remat)", True),
    "maxtext_data_parallel": Row("MaxText, tuned, data parallel", True, (*_TUNED, *_DATA_PARALLEL)),
    "maxtext_tuned": Row("MaxText, tuned, fsdp 16, with flags", True, (*_TUNED, _flags(*_FLAGS))),
    "maxtext_tuned_memory": Row(
        "the same, with the vector memory of ours", True, (*_TUNED, _flags(*_FLAGS, "xla_tpu_scoped_vmem_limit_kib=32768")),
    ),
}  # fmt: skip


def stored(row: str) -> pathlib.Path:
    """Where its result is kept."""
    return RESULTS / f"{row}.json"


def compile_ours(more: tuple[str, ...]) -> dict[str, Any]:
    """`lacy plan --no-search --json`."""
    from lacy_jax.config import load_config
    from lacy_jax.planning.plan import make_plan

    return make_plan(load_config(str(_ROOT / CONFIG), more), TOPOLOGY, search=False).to_dict()


def compile_maxtext(more: tuple[str, ...]) -> dict[str, Any]:
    """The same figures of MaxText's step; runs in an environment that has it."""
    from lacy_jax.planning import ahead

    ahead.look_for_no_tpu()
    os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")  # MaxText then works without Google Cloud's packages.
    import jax
    from maxtext.trainers.pre_train import train_compile

    from lacy_jax.config import load_config
    from lacy_jax.models import flops_per_token, resolve_model_config
    from lacy_jax.planning.clock import read_clock
    from lacy_jax.planning.collectives import by_kind, collectives
    from lacy_jax.planning.links import exchange_seconds
    from lacy_jax.planning.slices import parse_topology
    from lacy_jax.setup import versions

    config = load_config(str(_ROOT / CONFIG))
    model = resolve_model_config(config.model, config.tokenizer.vocab_size, config.input.seq_len)
    place = parse_topology(TOPOLOGY)
    compiled = []
    compile_step = jax.stages.Lowered.compile

    def compile_and_keep(lowered: Any, compiler_options: Any = None, **others: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            options = {**(compiler_options or {}), "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            program = compile_step(lowered, options, **others)
            compiled.append((program, ahead.program_text(program, pathlib.Path(folder))))
        return program

    jax.stages.Lowered.compile = compile_and_keep
    keys = maxtext_keys(model, config.input.batch_size // place.devices, config.input.seq_len, more)
    base = pathlib.Path(train_compile.__file__).parents[2] / "configs" / "base.yml"
    with tempfile.TemporaryDirectory() as folder:
        train_compile.main(["train_compile", str(base), f"base_output_directory={folder}", *keys])
    ((program, text),) = compiled
    devices = list(jax.tree.leaves(program.input_shardings)[0].mesh.devices.flat)
    messages = collectives(text, place.devices)
    clock = read_clock(text, place.chip, exchange_seconds(place, messages, devices))
    memory = ahead.memory_of(program, place)
    flops = flops_per_token(model, config.input.seq_len) * config.input.batch_size * config.input.seq_len
    return {
        "keys": keys,
        "flops_per_step": flops,
        "memory_per_chip": {**dataclasses.asdict(memory), "used": memory.used, "left": memory.left},
        "collectives": by_kind(messages),
        "clock_s": clock.to_dict(),
        "utilisation": flops / (place.devices * place.chip.peak_flops * clock.step_s),
        "compiler": {name: versions.version(name) for name in ("jax", "libtpu", "maxtext")},
    }


def maxtext_keys(model: Any, rows: int, length: int, more: tuple[str, ...]) -> list[str]:
    """Our model, with `rows` of `length` tokens a device, in MaxText's words."""
    return [
        f"compile_topology={TOPOLOGY}", "compile_topology_num_slices=1", "skip_jax_distributed_system=true",
        "run_name=tpu_clock", "enable_checkpointing=false", "enable_tensorboard=false",
        f"base_emb_dim={model.d_model}", f"base_num_query_heads={model.n_heads}", f"base_num_kv_heads={model.n_kv_heads}",
        f"head_dim={model.head_dim}", f"base_mlp_dim={model.d_ff}", f"base_num_decoder_layers={model.n_layers}",
        f"vocab_size={model.vocab_size}", f"max_target_length={length}", f"per_device_batch_size={rows}",
        f"logits_via_embedding={str(model.tie_head).lower()}", "normalize_embedding_logits=false", *more,
    ]  # fmt: skip


def table() -> str:
    """Markdown of the rows that are stored.

    Raises:
      ValueError: they come from different compilers.
    """
    there = {row: json.loads(stored(row).read_text()) for row in ROWS if stored(row).exists()}
    versions = {tuple(found["compiler"][name] for name in ("jax", "libtpu")) for found in there.values()}
    if len(versions) > 1:
        raise ValueError(
            f"rows of different compilers, (jax, libtpu) = {sorted(versions)}: compile all again"
        )
    kinds = ("matmul", "attention kernel", "elementwise", "reduction")
    head = (
        "332 M Llama on v5e-16",
        "estimate, ms",
        "lower bound",
        "MFU",
        "GiB a chip",
        *kinds,
        "collectives",
    )
    lines = [head, ("---",) * len(head)]
    for row, found in there.items():
        clock = found["clock_s"]
        milliseconds = [*(clock["by_work"].get(kind, 0.0) for kind in kinds), clock["collectives"]]
        lines.append((
            ROWS[row].about, f"{clock['step'] * 1e3:.1f}", f"{clock['lower_bound'] * 1e3:.1f}",
            f"{100 * found['utilisation']:.1f} %", f"{found['memory_per_chip']['used'] / GIB:.2f}",
            *(f"{seconds * 1e3:.1f}" for seconds in milliseconds),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"compile only these: {', '.join(ROWS)}")
    parser.add_argument("--table", action="store_true", help="print the table of what is stored; compile nothing")  # fmt: skip
    parser.add_argument("--maxtext", default=".venv-maxtext/bin/python", metavar="PYTHON", help="the Python that has MaxText")  # fmt: skip
    parser.add_argument("--here", action="store_true", help="compile the rows in this process")
    options = parser.parse_args(argv)
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: {', '.join(ROWS)}")
    for row in () if options.table else options.rows or ROWS:
        if options.here:
            found = (compile_maxtext if ROWS[row].maxtext else compile_ours)(ROWS[row].more)
            RESULTS.mkdir(parents=True, exist_ok=True)
            stored(row).write_text(json.dumps({"row": row, "config": CONFIG, "more": ROWS[row].more, **found}, indent=1) + "\n")  # fmt: skip
        elif not stored(row).exists():
            print(f"compiling {row}", file=sys.stderr, flush=True)
            python = options.maxtext if ROWS[row].maxtext else sys.executable
            path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
            try:
                subprocess.run([python, __file__, row, "--here"], env={**os.environ, "PYTHONPATH": path}, check=True)  # fmt: skip
            except FileNotFoundError:
                parser.error(f"--maxtext={python}: no such Python; `make .venv-maxtext/.installed` makes it")
            except subprocess.CalledProcessError as error:
                parser.error(f"{row} has not been compiled (status {error.returncode}); its message is above")
    if not options.here:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
