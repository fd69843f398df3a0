"""The run configuration: loading, overriding, checking. The fields are in `default_config.py`.

An experiment is a Python file with `get_config(arg: str) -> ConfigDict` that starts from `get_default_config()`
and changes what it needs; a field that does not exist is refused by name. `validate` checks values against each
other before any work starts.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import pathlib
import runpy
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from lacy_jax.default_config import get_default_config as get_default_config
from lacy_jax.errors import CheckpointError, ConfigError, LacyError
from lacy_jax.registry import choice_fields, describe_failure, load_plugins, plugin_path, registry_of
from lacy_jax.run_files import CONFIG_FILE, DATASET_FOLDER


def load_config(spec: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Load `experiments/NAME.py[:arg]`, apply `field=value` overrides, validate.

    Args:
      spec: path of a Python file with `get_config(arg="")`, optionally followed by ":arg".
      overrides: "train.steps=100" and the like; the value is read with the type of the field.

    Raises:
      ConfigError: no such file, no `get_config`, an unknown field (the nearest is named), or a bad value.
    """
    path, _, arg = spec.partition(":")
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"config file not found: {path}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config(arg) if get_config else None
    except ConfigError:
        raise
    except Exception as error:  # The experiment file is user input: whatever it raises becomes one line.
        raise ConfigError(describe_failure(error, path)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path} must define get_config(arg) that returns a ConfigDict")
    return finish(config, overrides)


def finish(config: ml_collections.ConfigDict, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Apply `field=value` overrides, import the plugins, validate and lock; returns the same config.

    Raises:
      ConfigError: as `load_config`.
    """
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--config.{field}: expected --config.{field}=VALUE")
        set_field(config, field, text)
    with config.unlocked():
        config.plugins = tuple(map(plugin_path, config.plugins))
    validate(config)
    return config.lock()


def set_field(config: ml_collections.ConfigDict, dotted: str, text: str) -> None:
    """Set one field from command-line text, read with the type the field has.

    Raises:
      ConfigError: no such field, or `text` is not of the field's type.
    """
    old = get_field(config, dotted)
    *parents, leaf = dotted.split(".")
    node = get_field(config, ".".join(parents)) if parents else config
    wanted = node.get_type(leaf)
    if issubclass(wanted, ml_collections.ConfigDict):
        raise ConfigError(f"config.{dotted} is a group of fields: set one of {', '.join(old)}")
    may_be_none = flatten(get_default_config()).get(dotted, "") is None
    try:
        if may_be_none and text == "None":
            value: Any = None
        elif wanted is bool:
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        else:
            value = text if wanted is str else ast.literal_eval(text)
            if value is None or (isinstance(value, bool) and wanted is not bool):
                raise TypeError
        node[leaf] = value
    except (KeyError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        wants = f"{wanted.__name__} or None" if may_be_none else f"{wanted.__name__}, such as {old!r}"
        raise ConfigError(f"config.{dotted} = {text!r}: expected {wants}") from None


def _refuse(condition: bool, field: str, value: Any, wants: str) -> None:
    if condition:
        raise ConfigError(f"config.{field} = {value!r}: {wants}")


def get_field(config: ml_collections.ConfigDict, dotted: str) -> Any:
    """`get_field(c, "train.steps")`.

    Raises:
      ConfigError: no such field; the message names the nearest one.
    """
    value: Any = config
    for part in dotted.split("."):
        if not isinstance(value, ml_collections.ConfigDict) or part not in value:
            raise ConfigError(f"config.{dotted}: no such field{_nearest(config, dotted)}")
        value = value[part]
    return value


def changed(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A locked copy with some fields set (dotted name -> value); `config` itself is not changed.

    Raises:
      ConfigError: no such field; the message names the nearest one.
    """
    copy = config.copy_and_resolve_references()
    for dotted, value in fields.items():
        get_field(copy, dotted)
        *parents, leaf = dotted.split(".")
        (get_field(copy, ".".join(parents)) if parents else copy)[leaf] = value
    return copy.lock()


def dataset_folder(config: ml_collections.ConfigDict, workdir: epath.PathLike | None) -> epath.Path:
    """Where the dataset of a run is, or will be: `dataset.path`, or else WORKDIR/dataset.

    Raises:
      ConfigError: neither is given.
    """
    if config.dataset.path:
        return epath.Path(config.dataset.path)
    if not workdir:
        raise ConfigError(f"set --config.dataset.path, or give --workdir to use WORKDIR/{DATASET_FOLDER}")
    return epath.Path(workdir) / DATASET_FOLDER


def reading_one_dataset(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, path: epath.PathLike | None = None
) -> ml_collections.ConfigDict:
    """A locked copy of a run's config that reads one dataset and no mixture: `path`, or its own (`dataset_folder`) if None."""
    folder = path or dataset_folder(config, workdir)
    return changed(config, {"dataset.path": str(folder), "dataset.mixture": ()})


def mixture_of(config: ml_collections.ConfigDict) -> tuple[tuple[str, float], ...]:
    """The parts of `dataset.mixture` as (path, weight) pairs; () if there are none.

    Raises:
      ConfigError: the field has another form.
    """
    field = f"config.dataset.mixture = {config.dataset.mixture!r}"
    parts = []
    for part in config.dataset.mixture:
        if isinstance(part, str):
            raise ConfigError(
                f"{field}: a single part needs a comma after its parenthesis, as in (({part!r}, 1.0),)"
            )
        if (
            not isinstance(part, tuple | list)
            or len(part) != 2
            or not isinstance(part[0], str)
            or not part[0]
        ):
            raise ConfigError(f"{field}: {part!r} is not (path, weight)")
        weight = part[1]
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise ConfigError(f"{field}: {part[0]!r} needs a positive weight, not {weight!r}")
        parts.append((part[0], float(weight)))
    return tuple(parts)


def xla_options_of(config: ml_collections.ConfigDict) -> dict[str, str]:
    """`train.compiler_options` as name -> value.

    Raises:
      ConfigError: one is not NAME=VALUE.
    """
    options, given = {}, config.train.compiler_options
    for option in [given] if isinstance(given, str) else given:
        name, equals, value = str(option).removeprefix("--").partition("=")
        if isinstance(given, str) or not (name and equals and value):
            raise ConfigError(f'config.train.compiler_options = {given!r}: expected ("NAME=VALUE", ...)')
        options[name] = value
    return options


def _nearest(config: ml_collections.ConfigDict, dotted: str) -> str:
    names = list(flatten(config))
    near = difflib.get_close_matches(dotted, names, n=1, cutoff=0.6)
    if not near:
        leaf = difflib.get_close_matches(dotted.split(".")[-1], [n.split(".")[-1] for n in names], n=1)
        near = [n for n in names if leaf and n.split(".")[-1] == leaf[0]][:1]
    return f"; did you mean config.{near[0]}?" if near else ""


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted field name -> value, in declaration order."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key in node:
            value = node[key]
            if isinstance(value, ml_collections.ConfigDict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(config, "")
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as stable JSON text, as kept in the run directory."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Inverse of `to_json`; fields added since take their defaults, unknown fields are refused."""
    config = get_default_config()

    def fill(node: ml_collections.ConfigDict, values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key not in node:
                raise ConfigError(f"config.{prefix}{key}: no such field{_nearest(config, prefix + key)}")
            group = isinstance(node[key], ml_collections.ConfigDict)
            if isinstance(value, dict) != group or (value is None and node[key] is not None):
                what = "a group of fields" if group else repr(node[key])
                raise ConfigError(
                    f"config.{prefix}{key}: {json.dumps(value)[:80]} where the default is {what}"
                )
            if group:
                fill(node[key], value, f"{prefix}{key}.")
            else:
                node[key] = tuple(map(_tuple, value)) if isinstance(value, list) else value

    value = json.loads(text)
    if not isinstance(value, dict):
        raise ConfigError(f"a config is a JSON object, not {type(value).__name__}")
    fill(config, value, "")
    return config


def read_run_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """The config stored in a run directory.

    Raises:
      CheckpointError: it is missing or cannot be read.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(f"no run at {workdir}: {path} not found")
    try:
        return from_json(path.read_text())
    except (ValueError, TypeError, AttributeError, OSError, LacyError) as error:
        raise CheckpointError(f"run config unreadable: {path}: {' '.join(str(error).split())}") from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_FREE_TO_CHANGE = frozenset(
    ("input.threads", "input.prefetch", "train.log_every", "train.eval_every", "train.eval_batches", "train.on_nan", "train.max_skipped",
     "train.shard_optimizer", "train.compiler_options",
     "objective.reference", "objective.loss", "objective.chunk", "model.attention", "model.attention_block", "model.remat", "model.scan_layers")
)  # fmt: skip


def training_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields a checkpoint depends on, as dotted name -> JSON-safe value. A run resumes only if they are unchanged.

    Paths, logging, checkpoint cadence, generation, mesh, and choices between implementations that compute the same
    values are left out, because they may change between resumes.
    """
    groups = ("seed", "model", "objective", "optimizer", "input", "train")
    kept = {
        name: value
        for name, value in flatten(config).items()
        if name.split(".")[0] in groups and name not in _FREE_TO_CHANGE
    }
    if config.plugins:  # An entry's behaviour depends on the file that defines it.
        chosen = {name: registry_of(name).digest(kept[name]) for name in choice_fields() if name in kept}
        kept |= {f"{name} (file of the plugin)": digest for name, digest in chosen.items() if digest}
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def validate(config: ml_collections.ConfigDict) -> None:
    """Check values and their combinations before any work starts.

    Raises:
      ConfigError: names the first field that is out of range, and the allowed values.
    """
    c = config
    load_plugins(c.plugins)
    usual = get_default_config()
    for field in choice_fields():
        # The default is always valid, so its room need not be imported to check it.
        if not field.startswith("--") and get_field(c, field) != get_field(usual, field):
            registry_of(field).named(get_field(c, field), field)
    mixture_of(c)
    xla_options_of(c)
    for field in ("objective.call_rate", "objective.ignore_rate", "dataset.valid_fraction"):
        value = get_field(c, field)
        _refuse(not 0 <= value < 1, field, value, "must be in [0, 1)")
    _refuse(not 0 <= c.generate.budget <= 1, "generate.budget", c.generate.budget, "must be in [0, 1]")
    for field in (
        "input.seq_len", "input.batch_size", "input.threads", "train.steps", "train.accumulation", "train.log_every",
        "dataset.shards", "dataset.workers", "generate.batch_size", "generate.max_new_tokens", "corpus.people",
        "corpus.texts_per_person", "checkpoint.every", "checkpoint.keep", "checkpoint.timeout_s", "checkpoint.ram_every",
        "tokenizer.vocab_size",
    ):  # fmt: skip
        value = get_field(c, field)
        _refuse(value < 1, field, value, "must be at least 1")
    _refuse(
        c.input.batch_size % c.train.accumulation != 0, "train.accumulation", c.train.accumulation,
        f"must divide input.batch_size = {c.input.batch_size}",
    )  # fmt: skip
    _refuse(c.dataset.cache_gb < 0, "dataset.cache_gb", c.dataset.cache_gb, "must be at least 0")
    rate = c.optimizer.learning_rate
    _refuse(rate <= 0, "optimizer.learning_rate", rate, "must be positive")
    policy, default_policy = c.objective.policy, usual.objective.policy
    labels = () if policy == default_policy else registry_of("objective.policy").named(policy).labels
    _refuse(
        "reference_nll" in labels and not c.objective.reference, "objective.reference",
        c.objective.reference, f"policy {c.objective.policy!r} needs 'dataset' or the run directory of a reference model",
    )  # fmt: skip
    dim, weight = c.model.query_dim, c.objective.query_weight
    _refuse(dim < 0, "model.query_dim", dim, "must be at least 0")
    _refuse(
        dim > 0 and policy != default_policy and not registry_of("objective.policy").named(policy).uses_call,
        "model.query_dim", dim, f"a query head learns at delegated targets, and policy {policy!r} delegates none",
    )  # fmt: skip
    _refuse(not 0 < weight < math.inf, "objective.query_weight", weight, "must be positive")
    _validate_health(c.health)
    _refuse(
        c.checkpoint.ram != "" and c.train.on_spike == "rewind", "checkpoint.ram", c.checkpoint.ram,
        "config.train.on_spike = 'rewind' goes back to a checkpoint that must be the same after a restart",
    )  # fmt: skip
    _refuse(
        c.metrics.cloud_diagnostics and c.health.profiler_port != 0, "health.profiler_port", c.health.profiler_port,
        "config.metrics.cloud_diagnostics starts a profiler server of its own, and a process can have one",
    )  # fmt: skip
    _refuse(
        c.train.on_spike == "rewind" and not c.health.loss_spike, "train.on_spike", c.train.on_spike,
        "config.health.loss_spike is 0, so spikes are never detected",
    )  # fmt: skip


def _validate_health(health: ml_collections.ConfigDict) -> None:
    for field, refused, wants in (
        ("heartbeat_s", health.heartbeat_s < 0, "must be at least 0"),
        ("window", health.window < 8, "must be at least 8"),
        ("slow_step", health.slow_step != 0 and health.slow_step <= 1, "must be 0 (off) or above 1"),
        ("loss_spike", health.loss_spike < 0, "must be 0 (off) or positive"),
        ("profile_start", health.profile_start < 0, "must be 0 (none) or a step"),
        ("profile_steps", health.profile_steps < 1, "must be at least 1"),
        ("profiler_port", not 0 <= health.profiler_port < 2**16, "must be 0 (none) or a port"),
    ):
        _refuse(refused, f"health.{field}", health[field], wants)
