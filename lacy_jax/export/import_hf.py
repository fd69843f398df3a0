"""`lacy import`: a Hugging Face folder or a GGUF file becomes a run directory.

Only config.json, safetensors and the tokenizer, or the GGUF file, are read; never code or pickle. Features that our
models do not support are refused by name before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.export import check
from lacy_jax.export.folder import finished_folder
from lacy_jax.export.gguf_file import SUFFIX, GgufFile
from lacy_jax.export.hf_config import from_hugging_face_config
from lacy_jax.export.hub_folder import HubFolder
from lacy_jax.export.layout import HEAD_NAME, embedding_name, from_hugging_face, tensors
from lacy_jax.export.run_directory import write_run
from lacy_jax.models import ModelConfig, Transformer, check_model_config, resolve_model_config
from lacy_jax.models.config import DIMENSIONS
from lacy_jax.run_files import CHAT_TEMPLATE_FILE
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.tokenizer.json_tokenizer import JsonTokenizer
from lacy_jax.training.state import ModelDefinition

LONGEST = 4096  # config.json often says 131,072, but no run that continues from a model trains on so long a context.
_PREFIX = "transformer."
_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # Constants stored by old exporters.


class Tensors(Protocol):
    """Tensors by the names of a Hugging Face checkpoint."""

    def names(self) -> list[str]:
        """All tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32."""


class Stranger(Protocol):
    """A model that others made: `HubFolder`, `GgufFile`.

    Attributes:
      name: of the model. where: the source of `config`, for errors.
      config: as in config.json. record: the record of one of our exports; None for other models.
      tokenizer: its own. reader: its tensors. chat_template: "" = it has none.
    """

    name: str
    where: str
    config: dict[str, Any]
    record: dict[str, Any] | None
    tokenizer: Tokenizer
    chat_template: str

    @property
    def reader(self) -> Tensors:
        """See above."""


def import_hugging_face(
    source: pathlib.Path, workdir: pathlib.Path, max_seq_len: int = 0, check_logits: bool = False
) -> dict[str, Any]:
    """Write a run directory with the model of `source`.

    Args:
      source: folder of a model of one of `hf_config.MODEL_TYPES`, or a GGUF file of one.
      workdir: run directory that does not exist yet.
      max_seq_len: context of our model; 0 = the source's, at most `LONGEST`.
      check_logits: compare with `transformers` before the run directory gets its name.

    Returns:
      What was imported, JSON-safe.

    Raises:
      DataError: a file is missing or damaged, two disagree, a tensor has a wrong shape or is not finite, the vocabulary
        does not match, or a feature is not supported; the error names it.
      ConfigError: `workdir` exists, or `max_seq_len` is too long.
      LacyError: a package is missing, or the logits differ.
    """
    theirs, config, opened, rows = _open(source, max_seq_len, LONGEST, "lacy import")
    tokenizer, resolved, params, record = (
        opened.tokenizer,
        opened.definition.config,
        opened.params,
        theirs.record,
    )
    result = {
        "workdir": str(workdir),
        "architecture": theirs.config["architectures"][0],
        "vocab_size": tokenizer.vocab_size,
        "rows_left_out": rows - tokenizer.vocab_size - (_call_row(record) is not None),
        "context": resolved.max_seq_len,
        "head": "tied" if resolved.tie_head else "its own",
        "before_a_text": [tokenizer.piece(token) for token in tokenizer.prefix],
        "ends_of_a_text": [tokenizer.piece(token) for token in tokenizer.eos_ids],
        "call_vector": "of the exported model"
        if _call_row(record) is not None
        else "mean of the head's rows",
    }
    if theirs.chat_template:
        result["chat_template"] = "its own"
    if isinstance(tokenizer, JsonTokenizer) and tokenizer.missing:
        result["bytes_without_a_piece"] = " ".join(f"{byte:02X}" for byte in sorted(tokenizer.missing))
    if check_logits:
        result |= _compare(source, theirs, resolved, params, tokenizer)
    with finished_folder(workdir) as temporary:
        write_run(temporary, config, tokenizer, params, step=record["steps"][-1] if record else 0)
        if theirs.chat_template:
            files.write_text(temporary / CHAT_TEMPLATE_FILE, theirs.chat_template)
    return result


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that others made, in memory.

    Attributes:
      tokenizer: its own. definition: our model with its dimensions. params: nested dict of float32 numpy arrays.
    """

    tokenizer: Tokenizer
    definition: ModelDefinition
    params: Any

    @property
    def model(self) -> Transformer:
        """The model, its parameters on the default device."""
        return self.definition.merge(jax.tree.map(jnp.asarray, self.params))


def open_folder(source: pathlib.Path, max_seq_len: int = 0) -> Opened:
    """The model of a Hugging Face folder or GGUF file, in memory; nothing is written.

    Args:
      source: as in `import_hugging_face`. On an accelerator, weights stored in bfloat16 are used in bfloat16.
      max_seq_len: context of our model; 0 = the source's.

    Raises:
      DataError, ConfigError, LacyError: as `import_hugging_face`.
    """
    theirs, _, opened, _ = _open(source, max_seq_len, 0, f"hf:{source}")
    stored = theirs.config.get("dtype", theirs.config.get("torch_dtype"))
    if stored != "bfloat16" or jax.default_backend() == "cpu":
        return opened
    definition = ModelDefinition(dataclasses.replace(opened.definition.config, dtype="bfloat16"))
    return dataclasses.replace(opened, definition=definition)


def _open(
    source: pathlib.Path, max_seq_len: int, longest: int, who: str
) -> tuple[Stranger, ml_collections.ConfigDict, Opened, int]:
    """(what was found, our config, the model, rows of the stored embedding)."""
    theirs: Stranger = GgufFile(source, who) if source.suffix == SUFFIX else HubFolder(source, who)
    tokenizer = theirs.tokenizer
    cfg = from_hugging_face_config(theirs.config, tokenizer.vocab_size, theirs.where)
    cfg = _with_its_head(cfg, theirs.reader)
    config = run_config(cfg, theirs.name, theirs.record, max_seq_len, longest)
    resolved = resolve_model_config(config.model, tokenizer.vocab_size, config.input.seq_len)
    params, rows = _read(theirs, cfg, resolved, call_row=_call_row(theirs.record))
    return theirs, config, Opened(tokenizer, ModelDefinition(resolved), params), rows


def _call_row(record: dict[str, Any] | None) -> int | None:
    """Row of the CALL vector in one of our exports; None for other models and for exports without CALL."""
    return record["call"]["id"] if record and record["call"] else None


def _stored(cfg: ModelConfig, reader: Tensors, name: str) -> str:
    """The name in the file; the public GPT-2 files leave out the first part of names."""
    stripped = cfg.family == "gpt2" and not any(other.startswith(_PREFIX) for other in reader.names())
    return name.removeprefix(_PREFIX) if stripped else name


def _with_its_head(cfg: ModelConfig, reader: Tensors) -> ModelConfig:
    """Untied if the file has a head that differs from the embedding, whatever config.json says (as `transformers`)."""
    embedding = _stored(cfg, reader, embedding_name(cfg))
    if not cfg.tie_head or not {HEAD_NAME, embedding} <= set(reader.names()):
        return cfg
    tied = np.array_equal(reader.read(embedding), reader.read(HEAD_NAME))
    return dataclasses.replace(cfg, tie_head=tied)


def run_config(
    cfg: ModelConfig, name: str, record: dict[str, Any] | None, max_seq_len: int, longest: int
) -> ml_collections.ConfigDict:
    """The config of the run directory: that of the exported run, or a plain one, with the dimensions written out.

    Args:
      max_seq_len: context; 0 = the source's, but at most `longest` (0 = no limit) for rotary models not exported by us.

    Raises:
      ConfigError: `max_seq_len` is beyond what the model knows, or a dimension is out of range.
    """
    check_model_config(cfg)
    if max_seq_len > cfg.max_seq_len:
        raise ConfigError(f"--max-seq-len={max_seq_len}: the model was made for {cfg.max_seq_len}")
    whole = cfg.family == "gpt2" or record or not longest
    context = max_seq_len or (cfg.max_seq_len if whole else min(cfg.max_seq_len, longest))
    config = config_lib.from_json(json.dumps(record["config"])) if record else config_lib.get_default_config()
    with config.unlocked():
        if not record:
            config.name, config.objective.policy = name, "ntp"
        config.input.seq_len = min(config.input.seq_len, context)
        config.model.family, config.model.max_seq_len = cfg.family, context
        for field in set(DIMENSIONS) - {"max_seq_len"}:
            config.model[field] = getattr(cfg, field)
    return config


def _read(theirs: Stranger, cfg: ModelConfig, ours: ModelConfig, call_row: int | None) -> tuple[Any, int]:
    """(parameters, rows of the stored embedding); `cfg` is theirs, `ours` may have a shorter context."""
    reader, where = theirs.reader, theirs.where
    embedding = _stored(cfg, reader, embedding_name(cfg))
    wanted = {_stored(cfg, reader, tensor.name) for tensor in tensors(cfg)} | {embedding, HEAD_NAME}
    unknown = sorted(n for n in set(reader.names()) - wanted if not n.endswith(_BUFFERS))
    if unknown:
        raise DataError(
            f"{where}: tensor {unknown[0]} ({len(unknown)} such) has no place in {cfg.family} as the config says"
        )
    rows = reader.shape(embedding)[0]
    if theirs.config.get("vocab_size", rows) != rows:
        raise DataError(
            f"{where}: vocab_size is {theirs.config['vocab_size']}, but the embedding has {rows} rows"
        )
    needed = cfg.vocab_size + (call_row is not None)
    if rows < needed or (call_row is not None and call_row != cfg.vocab_size):
        raise DataError(
            f"{where}: the vocabulary does not match: the tokenizer has {cfg.vocab_size} ids, the embedding {rows} rows"
        )
    abstract = ModelDefinition(cfg).abstract_params
    params = from_hugging_face(
        cfg, abstract, lambda name: reader.read(_stored(cfg, reader, name)), rows, where, call_row
    )
    if cfg.family == "gpt2":
        params["position"] = params["position"][: ours.max_seq_len]
    return params, rows


def _compare(
    source: pathlib.Path, theirs: Stranger, cfg: ModelConfig, params: Any, tokenizer: Tokenizer
) -> dict[str, Any]:
    """How far the base logits are from those of `transformers`, which gets the settings that it does not read itself.

    Raises:
      LacyError: too far.
    """
    tokens = check.sample_tokens(tokenizer, min(cfg.max_seq_len, 128))
    told = check.unread(source, cfg)
    want = check.their_logits(source, tokens, theirs.config if told else None)[..., : cfg.vocab_size]
    ours = check.logits(ModelDefinition(cfg).merge(params), tokens)[..., : cfg.vocab_size]
    what = f"{source}: the logits are not transformers'"
    difference, scale = check.compare(ours, want, check.TOLERANCE, what)
    found = {"max_abs_difference": difference, "largest_logit": scale}
    return found | ({"told_to_transformers": told} if told else {})
