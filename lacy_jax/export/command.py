"""The verbs `export`, `import` and `diff` of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from lacy_jax.errors import ConfigError
from lacy_jax.export.folder import local_path

FORMS = ("hf", "gguf", "run", "stablehlo")


def add_step(parser: argparse.ArgumentParser) -> None:
    """--step, of every verb that reads a checkpoint."""
    parser.add_argument("--step", type=int, default=0, help="checkpoint; 0 = latest")


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Register the verbs; `verb(name, run, about)` makes a sub-parser with the options all verbs share."""
    export = verb("export", _export, "write a trained model for use elsewhere")
    export.add_argument(
        "--format", default="hf", choices=FORMS, help="hf, gguf (llama.cpp), run (parameters only), stablehlo"
    )
    export.add_argument("--out", metavar="PATH", help="default: WORKDIR/export/FORMAT-STEP, a file for gguf")
    add_step(export)
    export.add_argument(
        "--average",
        default="1",
        metavar="K",
        help="mean of the last K checkpoints; ema: the average that training kept",
    )
    export.add_argument(
        "--dtype", default="float32", help="stored: float32, bfloat16, float16 (hf, gguf, run)"
    )
    export.add_argument(
        "--shard-size", type=float, default=5.0, metavar="GB", help="most per safetensors file (hf)"
    )
    export.add_argument(
        "--without-call", action="store_true", help="leave CALL out: a plain language model (hf, gguf)"
    )
    export.add_argument(
        "--tolerance", type=float, default=1e-4, help="of the logits, times the largest of them (hf, gguf)"
    )
    import_ = verb("import", _import, "make a run directory of a Hugging Face folder or GGUF file")
    import_.add_argument(
        "--from", dest="source", metavar="PATH", required=True, help="folder with config.json, or FILE.gguf"
    )
    import_.add_argument("--max-seq-len", type=int, default=0, help="context; 0 = the model's, at most 4096")
    import_.add_argument("--check", action="store_true", help="compare logits with transformers")
    diff = verb("diff", _diff, "what changed between two runs: config, data, parameters")
    diff.add_argument("runs", nargs=2, metavar="DIR", help="run directories")


def _export(options: argparse.Namespace) -> None:
    from lacy_jax.export.source import default_out, load_source

    if options.format == "stablehlo" and options.dtype != "float32":
        raise ConfigError(f"--dtype={options.dtype}: --format=stablehlo is written in float32 only")
    if options.without_call and options.format not in ("hf", "gguf"):
        raise ConfigError(f"--without-call: only for --format=hf and gguf, not {options.format}")
    workdir = _needed(options)
    place = local_path(options.out or workdir)
    source = load_source(workdir, options.step, options.average, options.dtype)
    source = dataclasses.replace(source, call=not options.without_call)
    out = place if options.out else default_out(workdir, source, options.format)
    if options.format == "hf":
        from lacy_jax.export.hugging_face import export_hugging_face

        record = export_hugging_face(source, out, int(options.shard_size * 1e9), options.tolerance)
    elif options.format == "gguf":
        from lacy_jax.export.gguf_out import export_gguf

        record = export_gguf(source, out, options.tolerance)
    elif options.format == "run":
        from lacy_jax.export.run_directory import export_run

        record = export_run(source, out)
    else:
        from lacy_jax.export.stablehlo import export_stablehlo

        record = export_stablehlo(source, out)
    checks = "".join(f"\n{name}: {value}" for name, value in record["checks"].items())
    _show(options, {"path": str(out), "checks": record["checks"], "steps": record["steps"]}, f"{out}{checks}")


def _import(options: argparse.Namespace) -> None:
    from lacy_jax.export.import_hf import import_hugging_face

    result = import_hugging_face(
        pathlib.Path(options.source), local_path(_needed(options)), options.max_seq_len, options.check
    )
    _show(options, result, "\n".join(f"{name}: {value}" for name, value in result.items()))


def _diff(options: argparse.Namespace) -> None:
    from lacy_jax.export.diff import compare_runs, table

    result = compare_runs(*options.runs)
    _show(options, result, table(result))


def inspect_export(folder: str | None) -> tuple[dict[str, Any], str] | None:
    """(record, text) of an exported folder, for `lacy inspect`; None if `folder` is not one.

    Raises:
      DataError: a file of it is missing or damaged.
    """
    from lacy_jax.export import provenance

    record = provenance.read(folder) if folder else None
    return None if record is None else (record, provenance.summary(record))


def _needed(options: argparse.Namespace) -> str:
    if not options.workdir:
        raise ConfigError("--workdir=DIR is needed")
    return options.workdir


def _show(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result) if options.json else text)
