"""`lacy diff A B`: what changed between two runs, or two checkpoints of one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.run_files import DATASET_METADATA_FILE, ENVIRONMENT_FILE, TOKENIZER_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training.metrics_files import read_metrics
from lacy_jax.training.run import Run, load_run

_DATA = ("corpus_name", "corpus_fingerprint", "labeller", "labeller_version", "tokenizer_hash", "extras")


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison: `DIR` or `DIR@STEP`."""

    workdir: epath.Path
    step: int

    @classmethod
    def parse(cls, text: str) -> Side:
        """Raises: ConfigError if the step is not a number."""
        workdir, at, step = text.rpartition("@")
        if not at or epath.Path(text).exists():
            return cls(epath.Path(text), 0)
        if not step.isdigit():
            raise ConfigError(f"{text}: expected DIR or DIR@STEP")
        return cls(epath.Path(workdir), int(step))


def compare_runs(a: str, b: str) -> dict[str, Any]:
    """All differences, by group; equal values are left out.

    Args:
      a, b: run directories, each optionally followed by @STEP (default: the latest checkpoint).

    Returns:
      {"config": {field: [a, b]}, "data": .., "software": .., "metrics": .., "steps": [a, b], "parameters": {name:
      {"relative_change": ||b - a|| / ||a||, "max_abs": ..} or {"shapes": [a, b]}}}; parameters is {} if they are equal
      bit for bit, and "note" says why if they cannot be compared.

    Raises:
      CheckpointError: one is not a run directory. ConfigError: a bad @STEP.
    """
    sides = (Side.parse(a), Side.parse(b))
    configs = [config_lib.flatten(config_lib.read_run_config(side.workdir)) for side in sides]
    result: dict[str, Any] = {
        "config": _different(*(json.loads(json.dumps(c, default=str)) for c in configs)),
        "data": _different(*(_data(side) for side in sides)),
        "software": _different(*(_software(side) for side in sides)),
        "metrics": _different(*(_metrics(side) for side in sides)),
    }
    try:
        runs = [load_run(side.workdir, side.step) for side in sides]
    except (CheckpointError, DataError) as error:
        return {**result, "steps": None, "parameters": {}, "note": f"parameters not compared: {error}"}
    return {**result, "steps": [run.step for run in runs], "parameters": _parameters(*runs), "note": ""}


def _different(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [a.get(name), b.get(name)] for name in {**a, **b} if a.get(name) != b.get(name)}


def _data(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found["tokenizer"] = Tokenizer.load(side.workdir / TOKENIZER_FILE).hash
        value = files.read_json(side.workdir / DATASET_METADATA_FILE, "dataset metadata")
    except DataError:
        return found  # An imported model has no dataset.
    found |= {name: value.get(name) for name in _DATA}
    return found | {f"{split}.tokens": counts["tokens"] for split, counts in value["splits"].items()}


def _software(side: Side) -> dict[str, Any]:
    try:
        last = files.read_json(side.workdir / ENVIRONMENT_FILE, "environment record")[-1]
    except (DataError, LookupError):
        return {}
    git = last.get("git") or {}
    devices = {f"devices.{name}": value for name, value in last["devices"].items()}
    return {"commit": git.get("commit"), "changed": git.get("changed"), **last["packages"], **devices}


def _metrics(side: Side) -> dict[str, Any]:
    """The last metrics line of each split, up to the compared step."""
    last: dict[str, Any] = {}
    for line in read_metrics(side.workdir):
        if not side.step or line["step"] <= side.step:
            last |= {
                f"{line['split']}.{name}": line[name]
                for name in ("loss", "nll", "nll_called", "nll_learned", "realised_call_rate")
                if line.get(name) is not None
            }
    return last


def _parameters(a: Run, b: Run) -> dict[str, dict[str, Any]]:
    def named(run: Run) -> dict[str, np.ndarray]:
        leaves, _ = jax.tree.flatten_with_path(run.params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}

    first, second = named(a), named(b)
    found: dict[str, dict[str, Any]] = {}
    for name in {**first, **second}:
        x, y = first.get(name), second.get(name)
        if x is None or y is None or x.shape != y.shape:
            shapes = [None if value is None else list(value.shape) for value in (x, y)]
            found[name] = {"shapes": shapes}
        elif not np.array_equal(x, y):
            change = np.linalg.norm((y - x).astype(np.float64))
            size = max(float(np.linalg.norm(x.astype(np.float64))), 1e-30)
            found[name] = {"relative_change": float(change / size), "max_abs": float(np.abs(y - x).max())}
    return found


def table(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    lines = []
    for group in ("config", "data", "software", "metrics"):
        lines += [f"{group}.{name}: {_short(a)} -> {_short(b)}" for name, (a, b) in result[group].items()]
    if result["steps"]:
        lines.append(f"steps: {result['steps'][0]} -> {result['steps'][1]}")
        for name, change in result["parameters"].items():
            if "shapes" in change:
                lines.append(f"parameters/{name}: shape {change['shapes'][0]} -> {change['shapes'][1]}")
            else:
                lines.append(
                    f"parameters/{name}: relative change {change['relative_change']:.3g}, "
                    f"largest {change['max_abs']:.3g}"
                )
        if not result["parameters"]:
            lines.append("parameters: equal bit for bit")
    return "\n".join([*lines, *([result["note"]] if result["note"] else [])])


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
