"""The run configuration: every field, its default and its meaning, in one place.

An experiment is a Python file with `get_config(arg: str) -> ConfigDict` that starts from `get_default_config()`
and changes what it needs; a field that does not exist is refused by name. `validate` checks values against each
other before any work starts. Fields are grouped by the room that reads them.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterable
from typing import Any

import ml_collections
from ml_collections import config_dict

from lacy_jax.errors import ConfigError
from lacy_jax.health_config import get_health_config, validate_health

CORPUS_KINDS = ("world", "jsonl", "text", "mediawiki", "tfds")
PACKINGS = ("split", "whole")
CALL_OBJECTIVES = ("renormalised", "full")
SCHEDULES = ("cosine", "wsd", "constant")
REMAT_POLICIES = ("none", "full", "dots")
_PARTNERS = re.compile(r"none|world|(checkpoint|documents|database):.+|https?://.+")
GATES = tuple("auto call_logit call_prob call_margin entropy margin random calibrated oracle".split())


def get_default_config() -> ml_collections.ConfigDict:
    """The defaults, locked. An experiment overrides fields; it does not add any."""
    c = ml_collections.ConfigDict()
    c.name = "run"
    c.seed = 0  # The only seed: data order, initialisation, random masks, sampling derive from it.

    # -- corpus: where text comes from (lacy prepare) --------------------------------------------------------
    c.corpus = corpus = ml_collections.ConfigDict()
    corpus.kind = "world"  # world | jsonl | text | mediawiki | tfds
    corpus.path = ""  # File or glob, also .gz .bz2 .xz .zst; for tfds "name" or "name/config:version".
    corpus.text_field = "text"  # The field that holds the text (jsonl, tfds).
    corpus.split = "train"  # tfds only.
    corpus.on_bad_record = "error"  # error | skip (skipped records are counted in the dataset metadata).
    corpus.max_documents = 0  # 0 = all.
    corpus.max_chars = 0  # Keep the first sentences that fit; 0 = whole texts. Not for the world.
    corpus.people = 2000  # world only: number of people, hence of facts.
    corpus.texts_per_person = 4  # world only: differently worded biographies written of each person.
    corpus.world_seed = 0  # world only: names the world; apart from `seed` so that runs share one world.

    # -- tokenizer -------------------------------------------------------------------------------------------
    c.tokenizer = tokenizer = ml_collections.ConfigDict()
    tokenizer.path = ""  # An existing SentencePiece .model; empty = train one on the corpus.
    tokenizer.vocab_size = 32_000  # Base vocabulary; CALL is one extra id after it.
    tokenizer.byte_fallback = True
    tokenizer.split_digits = True
    tokenizer.normalization = "identity"  # SentencePiece rule name: identity | nmt_nfkc | nfkc ...
    tokenizer.character_coverage = 0.9995
    tokenizer.bos_piece = "<s>"
    tokenizer.eos_piece = "</s>"
    tokenizer.pad_piece = "<pad>"
    tokenizer.max_training_documents = 20_000  # Documents read for tokenizer training.

    # -- labels ----------------------------------------------------------------------------------------------
    c.labels = labels = ml_collections.ConfigDict()
    labels.labeller = "auto"  # auto | spacy | bundled[:FOLDER] | rules | world | module:Class; docs/labels.md
    labels.spacy_model = "en_core_web_sm"
    labels.online = False  # Label while training reads the text, instead of the labels stored with it.

    # -- dataset: labelled tokens on disk (lacy prepare writes it, lacy train reads it) ------------------------
    c.dataset = dataset = ml_collections.ConfigDict()
    dataset.path = ""  # Folder; empty = WORKDIR/dataset.
    dataset.mixture = ()  # ((path, weight), ...): train on several datasets; replaces `path` for training.
    dataset.shards = 4
    dataset.workers = 1  # Processes that label and tokenise.
    dataset.valid_fraction = 0.01  # Split by hash of the document id.

    # -- input: from records to batches -----------------------------------------------------------------------
    c.input = inp = ml_collections.ConfigDict()
    inp.seq_len = 1024
    inp.batch_size = 8  # Sequences in the GLOBAL batch of one optimiser step (all its micro-batches).
    inp.packing = "split"  # split: documents end to end, cut at seq_len; whole: a document is cut only if longer than seq_len.
    inp.confine_to_document = True  # Attention and targets stay inside a document.
    inp.shuffle = True
    inp.epochs = 0  # 0 = as many as `train.steps` needs (reshuffled each epoch); else stop when used up.
    inp.on_bad_record = (
        "error"  # A corrupt record of the dataset: error | skip (its place is padded, and it is counted).
    )
    inp.threads = 4  # Grain read threads.
    inp.prefetch = 16  # Grain prefetch buffer, in batches.

    # -- model: a preset, any of whose fields can be overridden here ------------------------------------------
    c.model = model = ml_collections.ConfigDict()
    model.preset = "tiny"  # FAMILY-less names: tiny 10m 30m 124m 334m 1b3.
    model.family = "gpt2"  # gpt2 | llama
    model.d_model = config_dict.placeholder(int)
    model.n_layers = config_dict.placeholder(int)
    model.n_heads = config_dict.placeholder(int)
    model.n_kv_heads = config_dict.placeholder(int)
    model.d_ff = config_dict.placeholder(int)
    model.max_seq_len = config_dict.placeholder(int)  # Longest context; default at least input.seq_len.
    model.head_dim = config_dict.placeholder(int)  # Default d_model / n_heads.
    model.tie_head = config_dict.placeholder(bool)
    model.qk_norm = config_dict.placeholder(bool)
    model.rope_theta = config_dict.placeholder(float)
    model.rope_scaling = config_dict.placeholder(tuple)  # ("linear", 2.0), ("llama3", 8.0, 1.0, 4.0, 8192)
    model.norm_eps = config_dict.placeholder(float)
    model.attention_bias = config_dict.placeholder(bool)  # llama: biases on the projections (gpt2 has them).
    model.mlp_bias = config_dict.placeholder(bool)
    model.dropout = 0.0
    model.dtype = "float32"  # Compute: float32 | bfloat16. Parameters and optimiser state stay float32.
    model.remat = "none"  # none | full | dots
    model.scan_layers = True
    model.attention = "auto"  # auto | reference | xla | cudnn | splash

    # -- objective: what is delegated and how it is paid (method: arXiv:2602.12005 §4) -------------------------
    c.objective = objective = ml_collections.ConfigDict()
    objective.policy = "lacy"
    objective.call_rate = 0.15  # Share of valid targets delegated in each (micro-)batch.
    objective.call_objective = "renormalised"  # renormalised (paper) | full (calibrates CALL)
    objective.ignore_rate = 0.15  # lacy_ignore, rho_skip: share of valid targets that get no gradient.
    objective.z_loss = 0.0  # Coefficient of lse_V**2.
    objective.loss = "fused"  # fused | reference (materialises logits; for tests)
    objective.chunk = 0  # Tokens per chunk of the fused loss; 0 = chosen from the vocabulary size.
    # rho, spacy_ref: "dataset" (stored reference nll) or a run directory of a frozen model.
    objective.reference = ""

    # -- optimiser ---------------------------------------------------------------------------------------------
    c.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 5e-4
    optimizer.schedule = "cosine"  # cosine | wsd (warmup-stable-decay) | constant
    optimizer.warmup_steps = 100
    optimizer.decay_fraction = 0.2  # wsd: share of the steps that decays.
    optimizer.final_lr_fraction = 0.1
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.1  # On matrices only.
    optimizer.clip_norm = 1.0
    optimizer.ema_decay = 0.0  # Exponential moving average of the parameters, such as 0.999; 0 = none. lacy export --average=ema

    # -- training ------------------------------------------------------------------------------------------------
    c.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.accumulation = 1  # Micro-batches per step; the delegation mask is computed per micro-batch.
    train.on_nan = "stop"  # stop | skip (the update is dropped, counted, and training goes on)
    train.max_skipped = 10  # With on_nan=skip: stop after this many in a row.
    train.on_spike = "report"  # A loss spike (health.loss_spike): report | rewind (last checkpoint, its batches are skipped)
    train.max_rewinds = 3  # With on_spike=rewind: stop after this many in a run.
    train.log_every = 10
    train.eval_every = 500  # 0 = only at the end.
    train.eval_batches = 8
    train.init_from = ""  # Run directory whose parameters a fresh run starts from, e.g. one of `lacy import`.

    c.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # -1 = all devices the other axes leave.
    mesh.fsdp = 1
    mesh.tensor = 1

    c.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 500  # Steps; the last step is always saved.
    checkpoint.keep = 2  # Most recent ones.
    checkpoint.keep_every = 0  # Also keep each multiple of this many steps; 0 = none.
    checkpoint.keep_best = 1  # Best by validation nll; 0 = none.
    checkpoint.asynchronous = True
    checkpoint.timeout_s = (
        600  # With several processes: how long one waits for the others to finish a checkpoint.
    )

    c.metrics = metrics = ml_collections.ConfigDict()
    metrics.tensorboard = True
    metrics.wandb = False
    metrics.peak_flops = 0.0  # Per device, for utilisation; 0 = tabulated, measured where unknown.

    c.health = get_health_config()
    # -- generation with a partner --------------------------------------------------------------------------------
    c.generate = generate = ml_collections.ConfigDict()
    generate.prompts = ""  # JSONL with `prompt` (and optional `id`); empty = made from the corpus kind.
    generate.num_prompts = 50
    generate.partner = "none"  # none | world | checkpoint:RUN | http://HOST/v1#MODEL | documents:PATH[,PARTNER] | database:FILE
    generate.gate = "auto"  # auto | call_logit | call_prob | call_margin | entropy | margin | random | calibrated | oracle
    generate.budget = 0.22  # Call budget: share of generated tokens the partner may write.
    generate.max_new_tokens = 256
    generate.temperature = 0.0  # 0 = greedy.
    generate.top_k = 0  # 0 = off.
    generate.batch_size = 16
    generate.partner_reach = "span"  # token (the paper) | word | span: how much one call may return.
    generate.on_partner_failure = "continue"  # continue (the SLM goes on alone, recorded) | stop
    generate.step = 0  # Checkpoint step to load; 0 = latest.
    return c.lock()


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
    except (
        Exception
    ) as error:  # The experiment file is user input: whatever it raises is one line, with its place.
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
        ]
        where = f"{path}:{lines[-1]}" if lines else path
        raise ConfigError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path} must define get_config(arg) that returns a ConfigDict")
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--config.{field}: expected --config.{field}=VALUE")
        set_field(config, field, text)
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
    try:
        if wanted is bool:
            value: Any = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        else:
            value = text if wanted is str else ast.literal_eval(text)
        node[leaf] = value
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise ConfigError(
            f"config.{dotted} = {text!r}: expected {wanted.__name__}, such as {old!r}"
        ) from None


def _refuse(condition: bool, field: str, value: Any, wants: str) -> None:
    if condition:
        raise ConfigError(f"config.{field} = {value!r}: {wants}")


def _choice(config: ml_collections.ConfigDict, field: str, choices: tuple[str, ...]) -> None:
    value = get_field(config, field)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"config.{field} = {value!r}: expected one of {', '.join(choices)}{hint}")


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
            if isinstance(value, dict):
                fill(node[key], value, f"{prefix}{key}.")
            else:
                node[key] = tuple(map(_tuple, value)) if isinstance(value, list) else value

    fill(config, json.loads(text), "")
    return config


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_FREE_TO_CHANGE = frozenset(
    ("input.threads", "input.prefetch", "train.log_every", "train.eval_every", "train.eval_batches", "train.on_nan", "train.max_skipped",
     "objective.reference", "objective.loss", "objective.chunk", "model.attention", "model.remat", "model.scan_layers")
)  # fmt: skip


def training_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields a checkpoint depends on, dotted name -> JSON-safe value: a run resumes only if they are the same.

    Left out, because they may change between resumes: paths, logging, checkpoint cadence, generation, mesh, and
    choices between implementations that compute the same.
    """
    groups = ("seed", "model", "objective", "optimizer", "input", "train")
    kept = {
        name: value
        for name, value in flatten(config).items()
        if name.split(".")[0] in groups and name not in _FREE_TO_CHANGE
    }
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def training_fingerprint(config: ml_collections.ConfigDict) -> str:
    """Hash of `training_fields`."""
    return hashlib.sha256(json.dumps(training_fields(config), sort_keys=True).encode()).hexdigest()[:16]


def validate(config: ml_collections.ConfigDict) -> None:
    """Check values and their combinations before any work starts.

    Raises:
      ConfigError: the first field that is out of range, with what it should be.
    """
    from lacy_jax.objectives import POLICIES  # the registry is the list of valid names

    c = config
    _choice(c, "corpus.kind", CORPUS_KINDS)
    _choice(c, "corpus.on_bad_record", ("error", "skip"))
    _choice(c, "input.packing", PACKINGS)
    _choice(c, "input.on_bad_record", ("error", "skip"))
    _choice(c, "model.family", ("gpt2", "llama"))
    _choice(c, "model.dtype", ("float32", "bfloat16"))
    _choice(c, "model.remat", REMAT_POLICIES)
    _choice(c, "objective.policy", tuple(POLICIES))
    _choice(c, "objective.call_objective", CALL_OBJECTIVES)
    _choice(c, "objective.loss", ("fused", "reference"))
    _choice(c, "optimizer.schedule", SCHEDULES)
    _choice(c, "train.on_nan", ("stop", "skip"))
    _choice(c, "train.on_spike", ("report", "rewind"))
    _choice(c, "generate.gate", GATES)
    _choice(c, "generate.partner_reach", ("token", "word", "span"))
    _choice(c, "generate.on_partner_failure", ("continue", "stop"))
    for field in ("objective.call_rate", "objective.ignore_rate", "dataset.valid_fraction"):
        value = get_field(c, field)
        _refuse(not 0 <= value < 1, field, value, "must be in [0, 1)")
    _refuse(not 0 <= c.generate.budget <= 1, "generate.budget", c.generate.budget, "must be in [0, 1]")
    for field in (
        "input.seq_len", "input.batch_size", "input.threads", "train.steps", "train.accumulation", "train.log_every",
        "dataset.shards", "dataset.workers", "generate.batch_size", "generate.max_new_tokens", "corpus.people",
        "corpus.texts_per_person", "checkpoint.every", "checkpoint.keep", "checkpoint.timeout_s", "tokenizer.vocab_size",
    ):  # fmt: skip
        value = get_field(c, field)
        _refuse(value < 1, field, value, "must be at least 1")
    _refuse(
        c.input.batch_size % c.train.accumulation != 0, "train.accumulation", c.train.accumulation,
        f"must divide input.batch_size = {c.input.batch_size}",
    )  # fmt: skip
    rate = c.optimizer.learning_rate
    _refuse(rate <= 0, "optimizer.learning_rate", rate, "must be positive")
    _refuse(
        c.objective.policy in ("rho", "rho_skip", "spacy_ref") and not c.objective.reference, "objective.reference",
        c.objective.reference, f"policy {c.objective.policy!r} needs 'dataset' or the run directory of a reference model",
    )  # fmt: skip
    validate_health(c.health)
    _refuse(
        c.train.on_spike == "rewind" and not c.health.loss_spike, "train.on_spike", c.train.on_spike,
        "spikes are not looked for: config.health.loss_spike is 0",
    )  # fmt: skip
    _refuse(
        not _PARTNERS.fullmatch(c.generate.partner), "generate.partner", c.generate.partner,
        "expected none, world, checkpoint:RUN_DIR, http://HOST:PORT/v1, documents:PATH or database:FILE",
    )  # fmt: skip
