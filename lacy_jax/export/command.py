"""The verbs `export`, `import` and `diff` of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from lacy_jax.command_line import add_step, show, workdir_of
from lacy_jax.errors import ConfigError
from lacy_jax.export.folder import local_path
from lacy_jax.export.tensors import DTYPES


@dataclasses.dataclass(frozen=True)
class Form:
    """What `lacy export` can write.

    Attributes:
      about: in a few words, for the help.
      writer: "module:function" in this package: its arguments are a `Source`, the output path, and any of the options.
      options: the options of the command that it uses.
      suffix: of its file; "" = it writes a folder.
      whole: whether it has a place for every part of a model.
    """

    about: str
    writer: str
    options: tuple[str, ...]
    suffix: str = ""
    whole: bool = False


FORMS = {
    "hf": Form(
        "a folder for transformers",
        "hugging_face:export_hugging_face",
        ("dtype", "shard_size", "without_call", "tolerance"),
    ),
    "gguf": Form(
        "a file for llama.cpp", "gguf_out:export_gguf", ("dtype", "without_call", "tolerance"), ".gguf"
    ),
    "run": Form("parameters only, as a run directory", "run_directory:export_run", ("dtype",), whole=True),
    "stablehlo": Form("a compiled function in float32", "stablehlo:export_stablehlo", ()),
}


def _readers(option: str) -> str:
    """Names of the formats that use an option."""
    return ", ".join(name for name, form in FORMS.items() if option in form.options)


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Register the verbs; `verb(name, run, about)` makes a sub-parser with the options all verbs share."""
    export = verb("export", _export, "write a trained model for use elsewhere")
    forms = "; ".join(f"{name}: {form.about}" for name, form in FORMS.items())
    export.add_argument("--format", default="hf", choices=FORMS, help=f"{forms} (default hf)")
    export.add_argument("--out", metavar="PATH", help="default: WORKDIR/export/FORMAT-STEP")
    add_step(export)
    export.add_argument(
        "--average",
        default="1",
        metavar="K",
        help="mean of the last K checkpoints; ema: the average that training kept",
    )
    for option, about, rest in (
        ("dtype", f"of what is stored: {', '.join(DTYPES)}", {"metavar": "NAME"}),
        ("shard_size", "most per safetensors file", {"metavar": "GB", "type": float}),
        ("without_call", "leave CALL out: a plain language model", {"action": "store_true"}),
        ("tolerance", "of the logits, times the largest of them", {"type": float}),
    ):
        flag = f"--{option.replace('_', '-')}"
        export.add_argument(flag, default=argparse.SUPPRESS, help=f"{about} ({_readers(option)})", **rest)
    import_ = verb("import", _import, "make a run directory of a Hugging Face folder or GGUF file")
    import_.add_argument(
        "--from", dest="source", metavar="PATH", required=True, help="folder with config.json, or FILE.gguf"
    )
    import_.add_argument("--max-seq-len", type=int, default=0, help="context; 0 = the model's, at most 4096")
    import_.add_argument("--check", action="store_true", help="compare logits with transformers")
    diff = verb("diff", _diff, "what changed between two runs: config, data, parameters")
    diff.add_argument("runs", nargs=2, metavar="DIR", help="run directories")


def _export(options: argparse.Namespace) -> None:
    from lacy_jax.export.source import load_source, without_query_head

    form = FORMS[options.format]
    every = {option for one in FORMS.values() for option in one.options}
    given = {option: value for option, value in vars(options).items() if option in every}
    for option in given:
        if option not in form.options:
            flag = option.replace("_", "-")
            raise ConfigError(f"--{flag}: only for --format={_readers(option)}, not {options.format}")
    workdir = workdir_of(options)
    place = local_path(options.out or str(workdir))
    call = not given.pop("without_call", False)
    source = load_source(workdir, options.step, options.average, given.pop("dtype", next(iter(DTYPES))))
    source = dataclasses.replace(source if form.whole else without_query_head(source), call=call)
    if not options.out:
        place = place / "export" / f"{options.format}-{source.steps[-1]}{form.suffix}"
    module, function = form.writer.split(":")
    record = getattr(importlib.import_module(f"lacy_jax.export.{module}"), function)(source, place, **given)
    checks = "".join(f"\n{name}: {value}" for name, value in record["checks"].items())
    left_out = f"\nleft out: {', '.join(source.left_out)}" if source.left_out else ""
    result = {"path": str(place), "checks": record["checks"], "steps": record["steps"]}
    show(options, result | {"left_out": list(source.left_out)}, f"{place}{checks}{left_out}")


def _import(options: argparse.Namespace) -> None:
    from lacy_jax.export.import_hf import import_hugging_face

    result = import_hugging_face(
        pathlib.Path(options.source), local_path(str(workdir_of(options))), options.max_seq_len, options.check
    )
    show(options, result, "\n".join(f"{name}: {value}" for name, value in result.items()))


def _diff(options: argparse.Namespace) -> None:
    from lacy_jax.export.diff import compare_runs, table

    result = compare_runs(*options.runs)
    show(options, result, table(result))


def inspect_export(folder: str | None) -> tuple[dict[str, Any], str] | None:
    """(record, text) of an exported folder, for `lacy inspect`; None if `folder` is not one.

    Raises:
      DataError: one of its files is missing or damaged.
    """
    from lacy_jax.export import provenance

    record = provenance.read(folder) if folder else None
    return None if record is None else (record, provenance.summary(record))
