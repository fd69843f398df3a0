"""Our step and MaxText's by the same clock: the compiler's estimate (docs/plan.md), on the same shapes, chips and batch.

    python benchmarks/tpu_clock.py                     # compile what docs/results/plan/clock/ lacks, print the tables
    python benchmarks/tpu_clock.py 1b3_llama_v5p-128   # only this shape
    python benchmarks/tpu_clock.py 334m_llama_v5e-16/ours_preset     # only this row of it
    python benchmarks/tpu_clock.py --table             # print the tables of what is there; compiles nothing

The paper's models, GPT-2 style and Llama style, in bfloat16, 128 rows of 1,024 tokens a step. Both sides are compiled ahead, one process
a row, a minute or three each; nothing runs. Ours is `lacy plan`, MaxText's its own `maxtext.trainers.pre_train.train_compile`,
which needs an environment that has it (`make .venv-maxtext/.installed`; another one by --maxtext=PYTHON). That of ours should have the
same jax and libtpu: each row keeps its versions, and rows of different ones make no table. Of MaxText's the block nearest to
GPT-2's is `gpt3`.
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

from lacy_jax.training.chips import SCATTER_OPTIONS

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "results" / "plan" / "clock"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Shape:
    """What both sides are compiled for.

    Attributes:
      about: for the table. config: ours, whose model, batch and length MaxText gets. topology: the slice. rows: names in `ROWS`.
    """

    about: str
    config: str
    topology: str
    rows: tuple[str, ...]


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


_MEMORY_FLAGS = (*_FLAGS, "xla_tpu_scoped_vmem_limit_kib=32768")
_MEMORY = _flags(*_MEMORY_FLAGS)
_SCATTERED = _flags(*_MEMORY_FLAGS, *(f"{name}={value}" for name, value in SCATTER_OPTIONS.items()))
_V5E_ONLY = "async_collective_fusion"
"""Flags with this in their name are refused by the compiler for other chips."""
_LOOP = ("model.scan_layers=True", "model.remat=dots")
_DATA_PARALLEL = ("ici_data_parallelism=-1", "ici_fsdp_parallelism=1")
ROWS = {
    "ours_plain": Row("ours, layers in a loop, no compiler options", False, (*_LOOP, "train.compiler_options=()")),
    "ours_loop": Row("ours, layers in a loop", False, _LOOP),
    "ours_preset": Row("ours, the preset", False),
    "maxtext_defaults": Row("MaxText, its defaults (fsdp, full remat)", True),
    "maxtext_data_parallel": Row("MaxText, tuned, data parallel", True, (*_TUNED, *_DATA_PARALLEL)),
    "maxtext_tuned": Row("MaxText, tuned, fsdp, with flags", True, (*_TUNED, _flags(*_FLAGS))),
    "maxtext_tuned_memory": Row("the same, with the vector memory of ours", True, (*_TUNED, _MEMORY)),
    "maxtext_tuned_unrolled": Row("and its layers one by one", True, (*_TUNED, _MEMORY, "scan_layers=false")),
    "maxtext_tuned_scattered": Row("and our options that scatter gradients", True, (*_TUNED, _SCATTERED, "scan_layers=false")),
}  # fmt: skip
_BOTH = ("ours_preset", "maxtext_defaults", "maxtext_tuned", "maxtext_tuned_memory", "maxtext_tuned_unrolled")
_FLAT = (*_BOTH, "maxtext_tuned_scattered")  # In three dimensions our step has not these options either.
_MODELS = {
    "334m_llama": ("332 M Llama", "experiments/paper_334m.py:llama"),
    "334m_gpt2": ("336 M GPT-2", "experiments/paper_334m.py:bf16"),
    "1b3_llama": ("1.3 B Llama", "experiments/paper_1b3.py:llama"),
    "1b3_gpt2": ("1.3 B GPT-2", "experiments/paper_1b3.py:bf16"),
}
_SLICES = {"v5e-16": _FLAT, "v5p-128": _BOTH, "v6e-64": _FLAT}
SHAPES = {
    f"{name}_{slice_}": Shape(f"{about} on {slice_}", config, slice_, rows)
    for slice_, rows in _SLICES.items()
    for name, (about, config) in _MODELS.items()
}
# Looked at most closely: what each step of tuning brings.
SHAPES["334m_llama_v5e-16"] = dataclasses.replace(SHAPES["334m_llama_v5e-16"], rows=tuple(ROWS))


def more_of(shape: Shape, row: str) -> tuple[str, ...]:
    """What a row changes on this slice."""
    more = ROWS[row].more
    if not shape.topology.startswith("v5e"):
        more = tuple(
            " ".join(w for w in one.split(" ") if _V5E_ONLY not in w) if "flags" in one else one
            for one in more
        )
    return more


def stored(shape: str, row: str) -> pathlib.Path:
    """Where its result is kept."""
    return RESULTS / shape / f"{row}.json"


def compile_ours(shape: Shape, more: tuple[str, ...]) -> dict[str, Any]:
    """`lacy plan --no-search --json`."""
    from lacy_jax.config import load_config
    from lacy_jax.planning.plan import make_plan

    return make_plan(load_config(str(_ROOT / shape.config), more), shape.topology, search=False).to_dict()


def compile_maxtext(shape: Shape, more: tuple[str, ...]) -> dict[str, Any]:
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
    from lacy_jax.planning.links import exchange_seconds, seconds_of_each
    from lacy_jax.planning.slices import parse_topology
    from lacy_jax.setup import versions

    config = load_config(str(_ROOT / shape.config))
    model = resolve_model_config(config.model, config.tokenizer.vocab_size, config.input.seq_len)
    place = parse_topology(shape.topology)
    compiled = []
    compile_step = jax.stages.Lowered.compile

    def compile_and_keep(lowered: Any, compiler_options: Any = None, **others: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            options = {**(compiler_options or {}), "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            program = compile_step(lowered, options, **others)
            compiled.append((program, ahead.program_text(program, pathlib.Path(folder))))
        return program

    jax.stages.Lowered.compile = compile_and_keep
    keys = maxtext_keys(
        shape.topology, model, config.input.batch_size // place.devices, config.input.seq_len, more
    )
    base = pathlib.Path(train_compile.__file__).parents[2] / "configs" / "base.yml"
    with tempfile.TemporaryDirectory() as folder:
        train_compile.main(["train_compile", str(base), f"base_output_directory={folder}", *keys])
    ((program, text),) = compiled
    devices = list(jax.tree.leaves(program.input_shardings)[0].mesh.devices.flat)
    messages = collectives(text, place.devices)
    each = seconds_of_each(place, messages, devices)
    clock = read_clock(text, place.chip, exchange_seconds(messages, each), each)
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


_GPT2 = ["decoder_block=gpt3", "mlp_activations=['gelu']", "fused_qkv=true", "logits_dot_in_fp32=false"]


def maxtext_keys(topology: str, model: Any, rows: int, length: int, more: tuple[str, ...]) -> list[str]:
    """Our model, with `rows` of `length` tokens a device, in MaxText's words."""
    return [
        f"compile_topology={topology}", "compile_topology_num_slices=1", "skip_jax_distributed_system=true",
        "run_name=tpu_clock", "enable_checkpointing=false", "enable_tensorboard=false",
        f"base_emb_dim={model.d_model}", f"base_num_query_heads={model.n_heads}", f"base_num_kv_heads={model.n_kv_heads}",
        f"head_dim={model.head_dim}", f"base_mlp_dim={model.d_ff}", f"base_num_decoder_layers={model.n_layers}",
        f"vocab_size={model.vocab_size}", f"max_target_length={length}", f"per_device_batch_size={rows}",
        f"logits_via_embedding={str(model.tie_head).lower()}", "normalize_embedding_logits=false",
        *([*_GPT2, f"trainable_position_size={length}"] if model.family == "gpt2" else []), *more,
    ]  # fmt: skip


def table() -> str:
    """Markdown of what is stored: a summary of the finished shapes, then those with more rows in full.

    Raises:
      ValueError: they come from different compilers.
    """
    there = {
        shape: {
            row: json.loads(stored(shape, row).read_text()) for row in ROWS if stored(shape, row).exists()
        }
        for shape in SHAPES
    }
    versions = {tuple(r["compiler"][name] for name in ("jax", "libtpu")) for f in there.values() for r in f.values()}  # fmt: skip
    if len(versions) > 1:
        raise ValueError(
            f"rows of different compilers, (jax, libtpu) = {sorted(versions)}: compile all again"
        )
    whole = [
        _markdown(shape.about, there[name]) for name, shape in SHAPES.items() if set(shape.rows) == set(ROWS)
    ]
    return "\n\n".join([_summary(there), _hidden(there), *whole])


def _summary(there: dict[str, dict[str, Any]]) -> str:
    """One line a shape: both presets, and how much of MaxText's best step ours takes."""
    head = ("estimate (lower bound), ms", "ours, the preset", "MFU", "MaxText, its defaults", "MaxText, tuned", "ours / tuned")  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for name, found in there.items():
        ours, defaults, *tuned = (row for row in map(found.get, _FLAT) if row)
        if tuned:
            best = min(
                (row for row in found if row.startswith("maxtext_tuned")),
                key=lambda row: _clock(found[row])[0],
            )
            times = [_clock(ours), _clock(defaults), _clock(found[best])]
            shown = [f"{step * 1e3:.1f} ({bound * 1e3:.1f})" for step, bound in times]
            share, share_bound = (a / b for a, b in zip(times[0], times[2]))
            lines.append((
                SHAPES[name].about, shown[0], f"{100 * ours['utilisation']:.1f} %", *shown[1:], f"{share:.2f} ({share_bound:.2f})"
            ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hidden(there: dict[str, dict[str, Any]]) -> str:
    """What of the exchange runs beside other work, where both sides have it, and how both compare without it."""
    head = ("exchange (beside other work), ms", "ours, the preset", f"MaxText, {ROWS[_FLAT[-1]].about}", "ours / MaxText, without it")  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for name, found in there.items():
        if _FLAT[-1] in found:
            both = [found[row]["clock_s"] for row in (_FLAT[0], _FLAT[-1])]
            all_of_it = [(one["collectives"], one["collectives_beside_work"]) for one in both]
            less = [
                [one[key] - one["collectives_beside_work"] for one in both] for key in ("step", "lower_bound")
            ]
            shares = [ours / theirs for ours, theirs in less]
            lines.append((
                SHAPES[name].about, *(f"{1e3 * whole:.1f} ({1e3 * part:.1f})" for whole, part in all_of_it),
                f"{shares[0]:.2f} ({shares[1]:.2f})",
            ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _clock(found: dict[str, Any]) -> tuple[float, float]:
    return found["clock_s"]["step"], found["clock_s"]["lower_bound"]


def _markdown(about: str, there: dict[str, Any]) -> str:
    """One shape in full."""
    kinds = ("matmul", "attention kernel", "elementwise", "reduction")
    head = (about, "estimate, ms", "lower bound", "MFU", "GiB a chip", *kinds, "collectives")
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
    parser.add_argument(
        "cells", nargs="*", metavar="SHAPE[/ROW]", help=f"compile only these: {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the tables of what is stored; compile nothing"
    )
    parser.add_argument("--maxtext", default=".venv-maxtext/bin/python", metavar="PYTHON", help="the Python that has MaxText")  # fmt: skip
    parser.add_argument("--here", action="store_true", help="compile the rows in this process")
    options = parser.parse_args(argv)
    known = [f"{name}/{row}" for name, shape in SHAPES.items() for row in shape.rows]
    wanted = [cell for cell in known if not options.cells or {cell, cell.split("/")[0]} & set(options.cells)]
    unknown = [cell for cell in options.cells if not any(cell in (one, one.split("/")[0]) for one in known)]
    if unknown:
        parser.error(f"no shape or row {unknown[0]!r}: {', '.join(known)}")
    failed = []
    for cell in () if options.table else wanted:
        name, row = cell.split("/")
        shape, place = SHAPES[name], stored(name, row)
        if options.here:
            found = (compile_maxtext if ROWS[row].maxtext else compile_ours)(shape, more_of(shape, row))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"row": row, "config": shape.config, "more": more_of(shape, row), **found}, indent=1) + "\n")  # fmt: skip
        elif not place.exists():
            print(f"compiling {cell}", file=sys.stderr, flush=True)
            python = options.maxtext if ROWS[row].maxtext else sys.executable
            path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
            try:
                subprocess.run([python, __file__, cell, "--here"], env={**os.environ, "PYTHONPATH": path}, check=True)  # fmt: skip
            except FileNotFoundError:
                parser.error(f"--maxtext={python}: no such Python; `make .venv-maxtext/.installed` makes it")
            except subprocess.CalledProcessError as error:
                failed.append(f"{cell} (status {error.returncode})")  # The others may still be compiled.
    if failed:
        parser.error(f"not compiled: {', '.join(failed)}; their messages are above")
    if not options.here:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
