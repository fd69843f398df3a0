"""One GPU: the train step's share of the card's peak, the fused loss against others, decoding against memory bandwidth.

    python benchmarks/gpu.py --out=FILE.jsonl [--seconds=560] [--only=PREFIX ...] [--retry]
    python benchmarks/gpu.py --out=FILE.jsonl --tiny       # the same at toy sizes, anywhere

Each piece (PIECES in benchmarks/gpu_pieces.py) adds its raw figures to FILE as soon as it has them, so a run that is cut off loses nothing:
a second call with the same FILE goes on with what is missing. Pieces run in other processes, so one that crashes, hangs
or runs out of memory is recorded as failed, with the reason, and the next begins. The model is that of
experiments/paper_334m.py, Llama style and GPT-2 style, bfloat16 compute, rows of 1,024 tokens packed like real text. Liger
(`pip install liger-kernel`) and tokamax are measured where they are installed.

A table of all pieces, then one line of JSON with these keys; what has not been measured is null:
  benchmark                "gpu"
  matmul_flops, copy_bytes_per_s     the card's ceilings: 8,192 cubed in bfloat16, a copy (bytes read and written)
  mfu, mfu_setting, tokens_per_s     of the best Llama step: `flops_per_token` over the data sheet's dense bfloat16 peak
  mfu_of_matmul            the same over `matmul_flops`
  mfu_default              of the config as it is; gpt2_mfu, gpt2_mfu_setting, gpt2_mfu_default   GPT-2 style
  lacy_over_ntp            median of the pairwise ratios of step times
  attention_s              seconds forward and backward by implementation, one layer, 16 rows
  fused_chunk              of the fastest fused loss; the ratios below are of that
  fused_over_naive_time, fused_over_naive_memory, fused_over_plain_time, fused_over_liger_time, fused_over_liger_memory,
  fused_over_tokamax_time            Liger and tokamax: the fastest of their settings, and the memory of that
  decode_tokens_per_s, decode_over_floor   by number of rows; the floor is the time to read all weights once per token
  missing, failed          pieces to be measured yet; reasons of failures
  device, jax, tiny
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
from gpu_model import FULL, TINY
from gpu_pieces import PIECES, Piece

from lacy_jax.errors import ConfigError, DataError, LacyError, one_line
from lacy_jax.json_lines import parse_object

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by a word of the device's name; NVIDIA's data sheets, SXM."""
START_SECONDS = 120.0
"""For a process to import everything and find its device."""
Results = dict[str, dict[str, Any]]


# -- the file ----------------------------------------------------------------------------------------------------------


def read_results(path: pathlib.Path) -> Results:
    """Piece -> its latest record. A last line without an end was cut off: it is taken off the file.

    Raises:
      DataError: another line is not a record.
    """
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = parse_object(line)
            found[record["piece"]] = record
        except (ValueError, KeyError) as error:
            raise DataError(f"--out {path}:{number}: not a record of benchmarks/gpu.py ({error})") from None
    return found


def add_result(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append a record; it is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


# -- the processes -----------------------------------------------------------------------------------------------------


def work(connection: Connection, names: Sequence[str], tiny: bool) -> None:
    """In a process of its own: send what the device is, then the figures of each piece."""
    os.dup2(2, 1)  # What libraries print is no part of the output.
    device = jax.devices()[0]
    connection.send({"device": device.device_kind, "platform": device.platform, "jax": jax.__version__})
    pieces = {piece.name: piece for piece in PIECES}
    for name in names:
        started = time.perf_counter()
        try:
            figures = pieces[name].measure(TINY if tiny else FULL)
        except Exception as error:  # Whatever a kernel or a compiler raises is a result.
            figures = {"failed": one_line(f"{type(error).__name__}: {error}")}
        gc.collect()
        jax.clear_caches()
        connection.send(figures | {"seconds": round(time.perf_counter() - started, 1)})


def measure(
    pieces: Sequence[Piece], tiny: bool, each: float, until: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what, figures) as they come: first ("device", ...), from every new process, then pieces.

    Args:
      each: seconds a piece may take. until: `time.monotonic` at which no more is waited for.

    Raises:
      LacyError: a process does not start.
    """
    names = [piece.name for piece in pieces]
    context = multiprocessing.get_context("spawn")
    while names and time.monotonic() < until:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(theirs, names, tiny), daemon=True)
        worker.start()
        theirs.close()
        try:
            if not ours.poll(START_SECONDS):
                raise LacyError(f"JAX found no device in {START_SECONDS:.0f} seconds")
            try:
                yield "device", ours.recv()
            except EOFError:
                raise LacyError("the process that measures ended before it found a device") from None
            while names:
                started, left = time.monotonic(), until - time.monotonic()
                if left <= 0:
                    return
                try:
                    if ours.poll(min(each, left)):
                        yield names[0], ours.recv()
                        names.pop(0)
                        continue
                    if left < each:  # Not the piece's fault.
                        return
                    failed = f"took longer than {each:g} seconds"
                except EOFError:
                    worker.join()
                    failed = f"the process ended with exit status {worker.exitcode}"
                yield names.pop(0), {"failed": failed, "seconds": round(time.monotonic() - started, 1)}
                break
        finally:
            worker.kill()
            worker.join()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing; the summary."""
    until = time.monotonic() + options.seconds
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = read_results(options.out)
    if any(record["tiny"] != options.tiny for record in found.values()):
        raise ConfigError(
            f"--out {options.out} holds results {'without' if options.tiny else 'of'} --tiny: name another"
        )
    wanted = [p for p in PIECES if not options.only or p.name.startswith(tuple(options.only))]
    if not wanted:
        raise ConfigError(
            f"--only={' '.join(options.only)}: no piece has such a name: {', '.join(p.name for p in PIECES)}"
        )
    left = [p for p in wanted if p.name not in found or (options.retry and "failed" in found[p.name])]
    for alone, group in itertools.groupby(left, key=lambda piece: piece.jax):
        # Where PyTorch measures, JAX holds a device but no memory.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = str(alone).lower()
        with contextlib.closing(measure(list(group), options.tiny, options.piece_seconds, until)) as results:
            for name, figures in results:
                if name == "device":
                    check_device(figures, options, found)
                    where = {"device": figures["device"], "jax": figures["jax"], "tiny": options.tiny}
                    continue
                found[name] = {"piece": name, **figures, **where}
                add_result(options.out, found[name])
                print(
                    f"{name}: {figures.get('failed', 'done')} ({figures['seconds']} s)",
                    file=sys.stderr,
                    flush=True,
                )
    return summary(found, [p.name for p in wanted if p.name not in found])


def check_device(device: dict[str, Any], options: argparse.Namespace, found: Results) -> None:
    """Refuse a machine that is not wanted.

    Raises:
      ConfigError: no GPU, or not the one of the results so far.
    """
    if not options.tiny and device["platform"] not in ("gpu", "cuda", "rocm"):
        raise ConfigError(
            f"no GPU: JAX finds only {device['platform']!r}; run this on a machine with one, or add --tiny"
        )
    others = {record["device"] for record in found.values()} - {device["device"]}
    if others:
        raise ConfigError(
            f"--out {options.out} holds results of {', '.join(others)}, this is {device['device']}: name another"
        )


# -- the summary -------------------------------------------------------------------------------------------------------


def summary(found: Results, missing: list[str]) -> dict[str, Any]:
    """The keys of the module's docstring."""
    good = {name: record for name, record in found.items() if "failed" not in record}
    any_one: dict[str, Any] = next(iter(found.values()), {})
    device = any_one.get("device", "")
    peak = next((flops for word, flops in PEAKS.items() if word in device), None)
    matmul = rate(good.get("ceiling.matmul"), "flops")
    copy = rate(good.get("ceiling.copy"), "bytes")
    figures: dict[str, Any] = {"benchmark": "gpu", "matmul_flops": matmul, "copy_bytes_per_s": copy}
    for style, prefix in (("llama", ""), ("gpt2", "gpt2_")):
        steps = {n.removeprefix("step."): r for n, r in good.items() if n.startswith(f"step.{style}.")}
        achieved = {n: r["flops"] / r["step_s"] for n, r in steps.items()}
        best = max(achieved, key=achieved.__getitem__, default=None)
        figures |= {
            f"{prefix}mfu": over(achieved.get(best or ""), peak),
            f"{prefix}mfu_of_matmul": over(achieved.get(best or ""), matmul),
            f"{prefix}mfu_setting": best,
            f"{prefix}mfu_default": over(achieved.get(f"{style}.default"), peak),
            f"{prefix}tokens_per_s": over(*(steps[best][key] for key in ("tokens", "step_s")))
            if best
            else None,
        }
    figures["lacy_over_ntp"] = good.get("policies.llama", {}).get("lacy_over_ntp")
    figures["attention_s"] = {
        name.removeprefix("attention."): record["forward_backward_s"]
        for name, record in good.items()
        if name.startswith("attention.")
    }
    losses = {side: fastest(good, f"loss.{side}") for side in ("fused", "naive", "plain", "liger", "tokamax")}
    fused = losses.pop("fused")
    figures["fused_chunk"] = fused and fused["piece"].removeprefix("loss.fused.")
    for side, record in losses.items():
        for what, key in (("time", "call_s"), ("memory", "temporary_bytes")):
            figures[f"fused_over_{side}_{what}"] = over(fused and fused[key], record and record[key])
    decodes = [record for name, record in good.items() if name.startswith("decode.")]
    rates = {record["rows"]: record["written"] / record["call_s"] for record in decodes}
    figures |= {
        "decode_tokens_per_s": rates,
        "decode_over_floor": {
            # In one reading of the weights each row writes a token.
            record["rows"]: over(copy, rates[record["rows"]] * record["weight_bytes"] / record["rows"])
            for record in decodes
        },
        "missing": missing,
        "failed": {name: record["failed"] for name, record in found.items() if "failed" in record},
        **{key: any_one.get(key) for key in ("device", "jax", "tiny")},
    }
    return rounded(figures)


def rate(record: dict[str, Any] | None, key: str) -> float | None:
    """Work of a piece per second."""
    return record and record[key] / record["call_s"]


def over(a: float | None, b: float | None) -> float | None:
    """a / b, where both are known."""
    return a / b if a is not None and b else None


def fastest(good: Results, prefix: str) -> dict[str, Any] | None:
    """The record with the least time among the pieces of that name and its settings."""
    records = [r for name, r in good.items() if f"{name}.".startswith(f"{prefix}.")]
    return min(records, key=lambda record: record["call_s"], default=None)


def rounded(value: Any) -> Any:
    """Four digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(found: Results) -> str:
    """What the file holds, one piece a line."""
    names = [piece.name for piece in PIECES if piece.name in found]
    hidden = {"piece", "device", "jax", "tiny"}
    return "\n".join(
        f"{name:>28}  " + json.dumps({k: rounded(v) for k, v in found[name].items() if k not in hidden})
        for name in names
    )


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="JSON Lines; what is there is not measured again"
    )
    parser.add_argument(
        "--seconds", type=float, default=560, help="begin no piece, and wait for none, after so many"
    )
    parser.add_argument("--piece-seconds", type=float, default=120, help="the most for one piece")
    parser.add_argument("--only", nargs="+", action="extend", default=[], help="pieces whose names begin so")
    parser.add_argument("--retry", action="store_true", help="measure failed pieces again")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine")
    options = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "lacy_gpu_programs")
    )
    try:
        figures = run(options)
    except LacyError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 2
    print(table(read_results(options.out)))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
