"""`lacy import`: a Hugging Face folder becomes a run directory.

Read are config.json, safetensors and the tokenizer; nothing else, and no code or pickle from the folder. What our models
do not compute is refused by name before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.export import check, provenance
from lacy_jax.export.extras import require
from lacy_jax.export.folder import finished_folder
from lacy_jax.export.hf_config import from_hugging_face_config
from lacy_jax.export.layout import HEAD_NAME, embedding_name, from_hugging_face, tensors
from lacy_jax.export.run_directory import write_run
from lacy_jax.export.tensors import Reader
from lacy_jax.models import ModelConfig, Transformer, check_model_config, resolve_model_config
from lacy_jax.models.config import DIMENSIONS
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.tokenizer.json_tokenizer import pack
from lacy_jax.training.state import ModelDefinition

LONGEST = 4096  # Contexts of 131,072 are common in config.json, and a KV cache of that length in no memory.
_PREFIX = "transformer."
_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # Constants that old exporters stored.


def import_hugging_face(
    folder: pathlib.Path, workdir: pathlib.Path, max_seq_len: int = 0, check_logits: bool = False
) -> dict[str, Any]:
    """Write a run directory with the model of `folder`.

    Args:
      folder: of GPT2LMHeadModel, LlamaForCausalLM or Qwen3ForCausalLM.
      workdir: run directory that does not exist yet.
      max_seq_len: context of our model; 0 = theirs, at most `LONGEST`.
      check_logits: compare with `transformers` before the run directory gets its name.

    Returns:
      What was imported, JSON-safe.

    Raises:
      DataError: a file is missing or damaged, a tensor has another shape or is no number, the vocabulary does not
        match, or a feature is not supported; each by name.
      ConfigError: `workdir` exists, or `max_seq_len` is too long.
      LacyError: a package is missing, or the logits differ.
    """
    theirs, record, config, opened, rows = _open(folder, max_seq_len, "lacy import")
    tokenizer, resolved, params = opened.tokenizer, opened.definition.config, opened.params
    result = {
        "workdir": str(workdir),
        "architecture": theirs["architectures"][0],
        "vocab_size": tokenizer.vocab_size,
        "rows_left_out": rows - tokenizer.vocab_size - (_call_row(record) is not None),
        "context": resolved.max_seq_len,
        "call_vector": "of the exported model"
        if _call_row(record) is not None
        else "mean of the head's rows",
    }
    if check_logits:
        difference = _difference(folder, resolved, params, tokenizer)
        result["max_abs_difference"] = difference
        if not difference < check.TOLERANCE:
            raise LacyError(
                f"{folder}: logits differ from transformers' by {difference:.2e}; nothing was written"
            )
    with finished_folder(workdir) as temporary:
        write_run(temporary, config, tokenizer, params, step=record["steps"][-1] if record else 0)
    return result


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model read from a Hugging Face folder.

    Attributes:
      tokenizer: its own. definition: our model of its dimensions. params: nested dict of float32 numpy arrays.
    """

    tokenizer: Tokenizer
    definition: ModelDefinition
    params: Any

    @property
    def model(self) -> Transformer:
        """The model, its parameters on the default device."""
        return self.definition.merge(jax.tree.map(jnp.asarray, self.params))


def open_folder(folder: pathlib.Path, max_seq_len: int = 0) -> Opened:
    """The model of a Hugging Face folder, in memory; nothing is written.

    Args:
      folder: as `import_hugging_face`. On an accelerator weights stored in bfloat16 are computed with in bfloat16.
      max_seq_len: context of our model; 0 = theirs, at most `LONGEST`.

    Raises:
      DataError, ConfigError, LacyError: as `import_hugging_face`.
    """
    theirs, _, _, opened, _ = _open(folder, max_seq_len, f"hf:{folder}")
    stored = theirs.get("dtype", theirs.get("torch_dtype"))
    if stored != "bfloat16" or jax.default_backend() == "cpu":
        return opened
    definition = ModelDefinition(dataclasses.replace(opened.definition.config, dtype="bfloat16"))
    return dataclasses.replace(opened, definition=definition)


def _open(
    folder: pathlib.Path, max_seq_len: int, who: str
) -> tuple[dict[str, Any], dict[str, Any] | None, ml_collections.ConfigDict, Opened, int]:
    """(config.json, provenance if it is an export of ours, our config, the model, rows of the stored embedding)."""
    if not (folder / "config.json").exists():
        raise DataError(f"{folder}: config.json not found: not a Hugging Face model folder")
    require("safetensors", who)
    theirs = files.read_json(folder / "config.json", "Hugging Face config")
    record = provenance.read(folder)
    tokenizer = read_tokenizer(folder, theirs)
    cfg = from_hugging_face_config(theirs, tokenizer.vocab_size, str(folder / "config.json"))
    config = run_config(cfg, folder.name, record, max_seq_len)
    resolved = resolve_model_config(config.model, tokenizer.vocab_size, config.input.seq_len)
    params, rows = _read(folder, cfg, resolved, call_row=_call_row(record))
    return theirs, record, config, Opened(tokenizer, ModelDefinition(resolved), params), rows


def _call_row(record: dict[str, Any] | None) -> int | None:
    """Row of the CALL vector in a folder of ours; None for others and those exported without it."""
    return record["call"]["id"] if record and record["call"] else None


def read_tokenizer(folder: pathlib.Path, theirs: dict[str, Any]) -> Tokenizer:
    """tokenizer.model (SentencePiece, or one of ours) or else tokenizer.json (byte-level BPE).

    Args:
      theirs: config.json, which names the special ids that tokenizer.json does not.

    Raises:
      DataError: neither is there, or it is of another kind.
    """
    if (folder / "tokenizer.model").exists():
        return Tokenizer.load(folder / "tokenizer.model")
    path = folder / "tokenizer.json"
    if not path.exists():
        raise DataError(f"{folder}: neither tokenizer.model nor tokenizer.json found")
    eos = _first(theirs.get("eos_token_id"))
    bos = _first(theirs.get("bos_token_id"))
    bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
    if bos is None or eos is None:
        raise DataError(f"{folder / 'config.json'}: neither bos_token_id nor eos_token_id is given")
    pad = _first(theirs.get("pad_token_id"))
    return Tokenizer.from_bytes(
        pack(path.read_text("utf-8"), bos, eos, eos if pad is None else pad, str(path)), str(path)
    )


def _first(value: Any) -> int | None:
    """An id; the first of several (Llama 3 ends a text in three ways); None for none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and value >= 0 else None


def run_config(
    cfg: ModelConfig, name: str, record: dict[str, Any] | None, max_seq_len: int
) -> ml_collections.ConfigDict:
    """The config of the run directory: that of the exported run, or a plain one, with the dimensions written out.

    Raises:
      ConfigError: `max_seq_len` is beyond what the model knows, or a dimension is out of range.
    """
    check_model_config(cfg)
    longest = cfg.max_seq_len
    if max_seq_len > longest:
        raise ConfigError(f"--max-seq-len={max_seq_len}: the model was made for {longest}")
    context = max_seq_len or (longest if cfg.family == "gpt2" or record else min(longest, LONGEST))
    config = config_lib.from_json(json.dumps(record["config"])) if record else config_lib.get_default_config()
    with config.unlocked():
        if not record:
            config.name, config.objective.policy = name, "ntp"
        config.input.seq_len = min(config.input.seq_len, context)
        config.model.family, config.model.max_seq_len = cfg.family, context
        for field in set(DIMENSIONS) - {"max_seq_len"}:
            config.model[field] = getattr(cfg, field)
    return config


def _read(folder: pathlib.Path, cfg: ModelConfig, ours: ModelConfig, call_row: int | None) -> tuple[Any, int]:
    """(parameters, rows of the stored embedding); `cfg` is theirs, `ours` may have a shorter context."""
    reader = Reader(folder)
    names = set(reader.names())
    stripped = _PREFIX + "wte.weight" not in names and "wte.weight" in names  # As the public GPT-2 files are.

    def stored(name: str) -> str:
        return name.removeprefix(_PREFIX) if stripped else name

    wanted = {stored(tensor.name) for tensor in tensors(cfg)} | {stored(embedding_name(cfg)), HEAD_NAME}
    unknown = sorted(n for n in names - wanted if not n.endswith(_BUFFERS))
    if unknown:
        raise DataError(
            f"{folder}: tensor {unknown[0]} ({len(unknown)} such) has no place in {cfg.family} as config.json says"
        )
    rows = reader.shape(stored(embedding_name(cfg)))[0]
    needed = cfg.vocab_size + (call_row is not None)
    if rows < needed or (call_row is not None and call_row != cfg.vocab_size):
        raise DataError(
            f"{folder}: the vocabulary does not match: the tokenizer has {cfg.vocab_size} ids, the embedding {rows} rows"
        )
    params = from_hugging_face(
        cfg, ModelDefinition(cfg).abstract_params, lambda name: reader.read(stored(name)), rows, call_row
    )
    if cfg.family == "gpt2":
        params["position"] = params["position"][: ours.max_seq_len]
    return params, rows


def _difference(folder: pathlib.Path, cfg: ModelConfig, params: Any, tokenizer: Tokenizer) -> float:
    """Largest absolute difference of the base logits from `transformers`' own."""
    theirs = check.their_logits(folder, tokens := check.sample_tokens(tokenizer, min(cfg.max_seq_len, 128)))
    ours = check.logits(ModelDefinition(cfg).merge(params), tokens)
    return float(np.abs(ours[..., : cfg.vocab_size] - theirs[..., : cfg.vocab_size]).max())
