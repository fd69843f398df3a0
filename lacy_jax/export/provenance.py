"""The record of an exported model: `lacy.json` for programs, a model card for people."""

from __future__ import annotations

import pathlib
import time
from typing import Any

from etils import epath

import lacy_jax
from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.export.source import Source
from lacy_jax.export.tensors import sha256
from lacy_jax.models import count_params
from lacy_jax.run_files import DATASET_METADATA_FILE, ENVIRONMENT_FILE
from lacy_jax.tokenizer import CALL_PIECE
from lacy_jax.training.environment import describe_environment
from lacy_jax.training.metrics_files import read_metrics

FILE = "lacy.json"
FORMAT = 1
CARD = "README.md"
_METRICS = ("loss", "nll", "nll_called", "nll_learned", "realised_call_rate", "factual_rate")


def describe(source: Source, form: str, checks: dict[str, Any]) -> dict[str, Any]:
    """The record of an export: config, data, labeller, commit, metrics, what was checked. JSON-safe."""
    run = source.run
    return {
        "format": FORMAT,
        "form": form,
        "lacy_jax": lacy_jax.__version__,
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "steps": list(source.steps),
        "ema_decay": source.ema,
        "dtype": source.dtype,
        "parameters": count_params(run.model_config),
        "call": {"token": CALL_PIECE, "id": run.tokenizer.call_id} if source.call else None,
        "left_out": list(source.left_out),
        "tokenizer_hash": run.tokenizer.hash,
        "dataset": _dataset(run.workdir),
        "trained_at": _last_session(run.workdir),
        "exported_at": _commit(describe_environment(run.step)),
        "metrics": _metrics(run.workdir),
        "checks": checks,
        "config": run.config.to_dict(),
    }


def _dataset(workdir: epath.Path) -> dict[str, Any] | None:
    """The dataset's metadata that say what the text is and how it was labelled; None for an imported model."""
    try:
        value = files.read_json(workdir / DATASET_METADATA_FILE, "dataset metadata")
    except DataError:
        return None
    names = (
        "corpus_name",
        "corpus_fingerprint",
        "labeller",
        "labeller_version",
        "tokenizer_hash",
        "vocab_size",
    )
    tokens = sum(split["tokens"] for split in value["splits"].values())
    factual = sum(split["factual_tokens"] for split in value["splits"].values())
    return {
        **{name: value[name] for name in names},
        "tokens": tokens,
        "factual_rate": round(factual / max(tokens, 1), 4),
    }


def _last_session(workdir: epath.Path) -> dict[str, Any] | None:
    try:
        return _commit(files.read_json(workdir / ENVIRONMENT_FILE, "environment record")[-1])
    except (DataError, LookupError):
        return None


def _commit(session: dict[str, Any]) -> dict[str, Any]:
    return {"git": session["git"], "lacy_jax": session["lacy_jax"], "devices": session["devices"]}


def _metrics(workdir: epath.Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for line in read_metrics(workdir):
        chosen = {name: line[name] for name in _METRICS if line.get(name) is not None}
        last[line["split"]] = {"step": line["step"], **chosen}
    return last


def write(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Write `lacy.json`, the last file: it holds the sha256 of every other file in the folder (not in subfolders)."""
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    files.write_json(folder / FILE, {**record, "files": hashes})


def read(folder: epath.PathLike) -> dict[str, Any] | None:
    """The record of an exported folder; None if it is not one of ours.

    Raises:
      DataError: the record is unreadable, or a file is missing or has changed.
    """
    folder = pathlib.Path(folder)
    if not (folder / FILE).exists():
        return None
    record = files.read_json(folder / FILE, "export record")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{folder / FILE}: not an export record of format {FORMAT}")
    try:
        summary(record)
        written = {str(name): str(expected) for name, expected in record["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise DataError(
            f"{folder / FILE}: damaged: {' '.join(str(error).split())} ({type(error).__name__})"
        ) from None
    for name, expected in written.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder}: {name} is missing; {FILE} names it")
        if sha256(folder / name) != expected:
            raise DataError(
                f"{folder / name} is damaged: it is not what was exported ({FILE} has its sha256)"
            )
    return record


def _checkpoint(record: dict[str, Any]) -> str:
    """Which parameters were exported: "step 6", "mean of steps 2, 3", "moving average (decay 0.999) at step 6"."""
    steps = ", ".join(map(str, record["steps"]))
    if decay := record.get("ema_decay"):
        return f"moving average (decay {decay:g}) at step {steps}"
    return f"mean of steps {steps}" if len(record["steps"]) > 1 else f"step {steps}"


def summary(record: dict[str, Any]) -> str:
    """A few lines for people."""
    data, trained = record["dataset"], record["trained_at"]
    git = (trained or {}).get("git") or {}
    lines = [
        f"{record['form']} export of {_checkpoint(record)}, {record['dtype']}, "
        f"{record['parameters'] / 1e6:.2f} M parameters, by lacy_jax {record['lacy_jax']} on {record['exported']}",
        f"policy {record['config']['objective']['policy']}, call rate {record['config']['objective']['call_rate']}; "
        f"{_call(record)}; commit {git.get('commit', 'unknown')}",
    ]
    if data:
        lines.append(
            f"data {data['corpus_name']} ({data['corpus_fingerprint']}), {data['tokens']} tokens, "
            f"{data['factual_rate']:.1%} factual by {data['labeller']} {data['labeller_version']}"
        )
    lines += [f"left out: {name}" for name in record.get("left_out", ())]
    lines += [f"{name}: {value}" for name, value in record["checks"].items()]
    return "\n".join([*lines, f"{len(record['files'])} files, all as exported"])


def _call(record: dict[str, Any]) -> str:
    call = record["call"]
    return f"{call['token']} is id {call['id']}" if call else "exported without CALL"


def card(record: dict[str, Any], architecture: str) -> str:
    """README.md of a Hugging Face folder."""
    config, data = record["config"], record["dataset"]
    objective = config["objective"]
    git = (record["trained_at"] or {}).get("git") or {}
    facts = {
        "architecture": architecture,
        "parameters": f"{record['parameters']:,}",
        "stored as": record["dtype"],
        "checkpoint": _checkpoint(record) + (f" of {config['train']['steps']}" if data else ", as imported"),
        "delegation policy": f"{objective['policy']}, call rate {objective['call_rate']}, {objective['call_objective']}",
        "context": f"{config['input']['seq_len']} tokens in training, batch {config['input']['batch_size']}",
        "text": f"{data['corpus_name']}, fingerprint {data['corpus_fingerprint']}, {data['tokens']:,} tokens"
        if data
        else "unknown: an imported model",
        "factual labels": f"{data['labeller']} {data['labeller_version']}, {data['factual_rate']:.1%} of tokens"
        if data
        else "none",
        "commit": f"{git.get('commit', 'unknown')}{' with local changes' if git.get('changed') else ''}",
    }
    if record["left_out"]:
        facts["left out"] = ", ".join(record["left_out"])
    for split, values in record["metrics"].items():
        shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "step")
        facts[f"{split} metrics at step {values['step']}"] = shown
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    checks = "\n".join(f"- {name}: {value}" for name, value in record["checks"].items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [lacy, delegation]
---
# {config["name"]}

A small language model pretrained with delegation (LaCy, arXiv:2602.12005). {_about_call(record)}

| | |
|---|---|
{rows}

Special tokens in a *text* are plain characters (`split_special_tokens` is on in
tokenizer_config.json). `lacy.json` holds the full config and the sha256 of every file.

Checked when exported:
{checks}
"""


def _about_call(record: dict[str, Any]) -> str:
    call = record["call"]
    if not call:
        return "It was exported without CALL: its softmax is that of the base vocabulary, for evaluation and plain text."
    return (
        f"Beside its {call['id']:,} pieces it has one more output, `{call['token']}` (id {call['id']}): a high logit there "
        "means that the next token is better written by a partner. It is never an input. Generate with it suppressed "
        "(`generation_config.json` does) or, with a partner, call where the logit ranks in the top share of positions that "
        "your call budget allows. Log-likelihoods over all columns include the mass of CALL; "
        "`lacy export --without-call` gives the model to score text with."
    )
