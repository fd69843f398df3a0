"""A GGUF file (llama.cpp's format), read as if it were a Hugging Face folder: config, tensors, tokenizer.

Quantised tensors are converted to float32 by the package `gguf`, one at a time. The supported architectures are
`llama`, `qwen3` and `gpt2`. Any model setting that our models cannot express is refused by name.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.export.extras import require
from lacy_jax.export.gguf_tokenizer import KEY as TOKENIZER
from lacy_jax.export.gguf_tokenizer import read_tokenizer
from lacy_jax.export.hf_config import LLAMA3_ROPE, MODEL_TYPES
from lacy_jax.models.layers import rotary_frequencies

SUFFIX = ".gguf"
RECORD = "lacy.record"
"""The field that holds the record of one of our exports."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with the divisor of each rotary frequency: Llama 3's rope scaling."""
CHAT_TEMPLATE = "tokenizer.chat_template"
_IGNORED = ("vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length")
_SHARED = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
}  # fmt: skip
_LLAMA = {**_SHARED, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_GPT2 = {
    "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
    "feed_forward_length": "n_inner", "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}  # fmt: skip
_WIDTH, _GROUPS, _BASE = "attention.key_length", "attention.head_count_kv", "rope.freq_base"
_SCALING, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_ROTARY = (_WIDTH, _GROUPS, _BASE, _SCALING, _FACTOR, "attention.value_length", "rope.dimension_count")
NUMBERS = {"llama": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}
"""The fields of an architecture, without its name as prefix, and config.json's names for them."""
_ARCHITECTURES = {kind: name for name, kind in MODEL_TYPES.items() if kind in NUMBERS}


class GgufFile:
    """A GGUF file; see `import_hf.Stranger`.

    Raises:
      DataError: not a GGUF file, cut off, of another architecture, or with an unsupported feature, which is named.
      LacyError: the package `gguf` is missing.
    """

    def __init__(self, path: pathlib.Path, who: str):
        gguf = require("gguf", who)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            file = _reader(gguf)(path)
            fields = {name: field.contents() for name, field in file.fields.items()}
        except Exception as error:
            raise DataError(f"{path}: not a GGUF file, or damaged: {error}") from error
        self.name, self.where = path.stem, str(path)
        self.record = _record(fields, self.where)
        kind = fields.get("general.architecture")
        if kind not in _ARCHITECTURES:
            raise DataError(
                f"{path}: architecture {kind!r} is not supported; expected one of {', '.join(_ARCHITECTURES)}"
            )
        if int(fields.get("split.count") or 1) > 1:
            raise DataError(
                f"{path}: one of {fields['split.count']} parts: join them first (gguf-split --merge)"
            )
        stored = {tensor.name: tensor for tensor in file.tensors}
        self.config = _config(kind, fields, stored, self.where)
        if kind != "gpt2":
            self.config |= _rotary(kind, fields, self.config, stored, self.record, self.where)
        self.reader = GgufTensors(gguf, kind, self.config, stored, self.where)
        if self.record and self.record["call"]:  # CALL is ours, not a piece of the tokenizer.
            for name in ("tokens", "token_type", "scores"):
                if TOKENIZER + name in fields:
                    fields[TOKENIZER + name] = fields[TOKENIZER + name][:-1]
        self.tokenizer = read_tokenizer(fields, self.where)
        self.chat_template = str(fields.get(CHAT_TEMPLATE) or "")


def _reader(gguf: Any) -> Any:
    """The package's reader, which reads on beyond the end of a file: a damaged length would keep it busy forever."""

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **more: Any) -> Any:
            found = super()._get(offset, dtype, count, *rest, **more)
            if len(found) != int(count):
                raise ValueError("it ends too early")
            return found

    return Reader


def _record(fields: dict[str, Any], where: str) -> dict[str, Any] | None:
    if RECORD not in fields:
        return None
    try:
        return json.loads(fields[RECORD])
    except ValueError as error:
        raise DataError(f"{where}: {RECORD} is damaged: {error}") from error


def _own(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The meaningful fields of an architecture, without its name as prefix; float32 values as people wrote them."""
    own = {
        name.removeprefix(f"{kind}."): value for name, value in fields.items() if name.startswith(f"{kind}.")
    }
    short = {name: float(str(np.float32(value))) for name, value in own.items() if isinstance(value, float)}
    return {name: value for name, value in {**own, **short}.items() if value not in (0, "", [])}


def _config(kind: str, fields: dict[str, Any], stored: dict[str, Any], where: str) -> dict[str, Any]:
    """What config.json would say, except for the rotary part."""
    own = _own(kind, fields)
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": len(fields.get(f"{TOKENIZER}tokens") or ()),
        "tie_word_embeddings": True,  # Unless a different head is stored.
        "dtype": "bfloat16" if _type(stored, "token_embd.weight") == "BF16" else "float32",
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "mlp_bias": "blk.0.ffn_up.bias" in stored,
    }
    for name, theirs in NUMBERS[kind].items():
        if name not in own:
            raise DataError(f"{where}: field {kind}.{name} is missing")
        if isinstance(own[name], list):
            raise DataError(f"{where}: {kind}.{name} differs from layer to layer, which is not supported")
        config[theirs] = own[name]
    known = {*NUMBERS[kind], *_IGNORED, *(_ROTARY if kind != "gpt2" else ())}
    for name, value in own.items():
        if name not in known:
            raise DataError(f"{where}: {kind}.{name} = {value!r} is not supported")
    return config


def _type(stored: dict[str, Any], name: str) -> str:
    return stored[name].tensor_type.name if name in stored else ""


def _rotary(
    kind: str,
    fields: dict[str, Any],
    config: dict[str, Any],
    stored: dict[str, Any],
    record: dict[str, Any] | None,
    where: str,
) -> dict[str, Any]:
    """Heads and rotary frequencies."""
    own, heads = _own(kind, fields), config["num_attention_heads"]
    width = own.get(_WIDTH) or own.get("rope.dimension_count") or config["hidden_size"] // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if own.get(name, width) != width:
            raise DataError(
                f"{where}: {kind}.{name} = {own[name]} is not the head's width {width}, which is not supported"
            )
    groups = own.get(_GROUPS, heads)
    if isinstance(groups, list):
        raise DataError(f"{where}: {kind}.{_GROUPS} differs from layer to layer, which is not supported")
    scaling = own.get(_SCALING, "none")
    rope: dict[str, Any] = {"rope_theta": own.get(_BASE, 10_000.0)}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": own.get(_FACTOR, 1.0)}
    elif scaling != "none":
        raise DataError(f"{where}: rope scaling {scaling!r} is not supported; expected none or linear")
    if ROPE_FACTORS in stored:
        factors = np.asarray(stored[ROPE_FACTORS].data, np.float32)
        rope |= _llama3(factors, width, rope["rope_theta"], record, where)
    return {"num_key_value_heads": groups, "head_dim": width, "rope_parameters": rope}


def _llama3(
    factors: np.ndarray, width: int, theta: float, record: dict[str, Any] | None, where: str
) -> dict[str, Any]:
    """The numbers of Llama 3's rope scaling. The file holds only their result, so the public models' are tried."""
    tried = [("llama3", factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0)]
    if record:
        tried.insert(0, tuple(record["config"]["model"]["rope_scaling"] or ()))
    for scaling in tried:
        rotary = scaling[:1] == ("llama3",) and factors.shape == (width // 2,)
        if rotary and np.allclose(rope_factors(width, theta, scaling), factors, rtol=1e-4):
            return {"rope_type": "llama3", **dict(zip(LLAMA3_ROPE, scaling[1:], strict=True))}
    raise DataError(
        f"{where}: tensor {ROPE_FACTORS} is no rope scaling of Llama 3.1 to 3.3, which is not supported"
    )


def rope_factors(width: int, theta: float, scaling: tuple[Any, ...]) -> np.ndarray:
    """The divisor of each rotary frequency, float32 [K / 2]."""
    return rotary_frequencies(width, theta, ()) / rotary_frequencies(width, theta, scaling)


class GgufTensors:
    """Tensors of a GGUF file by their names in a Hugging Face checkpoint; others keep their own."""

    def __init__(self, gguf: Any, kind: str, config: dict[str, Any], stored: dict[str, Any], where: str):
        self._gguf, self._kind, self._where = gguf, kind, where
        self._heads = config.get("num_attention_heads", 0), config.get("num_key_value_heads", 0)
        layers = config.get("num_hidden_layers", config.get("n_layer", 0))
        theirs = {ours: name for name, ours in names(gguf, kind, layers).items()}
        self._stored = {
            theirs.get(name, name): tensor for name, tensor in stored.items() if name != ROPE_FACTORS
        }

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        shape = tuple(int(n) for n in reversed(self._tensor(name).shape))
        return shape[::-1] if turned(self._kind, name) else shape

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32.

        Raises:
          DataError: it is missing, or has a type that the package cannot convert.
        """
        tensor = self._tensor(name)
        try:
            value = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        except Exception as error:
            raise DataError(
                f"{self._where}: tensor {name} of type {tensor.tensor_type.name} cannot be read: {error}"
            ) from error
        value = np.asarray(value, np.float32).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if heads := interleaved(self._kind, name, *self._heads):
            value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        return value.T if turned(self._kind, name) else value

    def _tensor(self, name: str) -> Any:
        if name not in self._stored:
            raise DataError(f"{self._where}: tensor {name} is missing")
        return self._stored[name]


_GPT2_NAMES = (
    ["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"],
    "transformer.h",
    ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"],
)
_LLAMA_NAMES = (
    ["model.embed_tokens", "model.norm", "lm_head"],
    "model.layers",
    [
        "input_layernorm",
        *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
        "post_attention_layernorm",
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ],
)


def names(gguf: Any, kind: str, layers: int) -> dict[str, str]:
    """{name in a Hugging Face checkpoint: name in GGUF} of all tensors that may be there."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], layers)
    top, layer, parts = _GPT2_NAMES if kind == "gpt2" else _LLAMA_NAMES
    stems = [*top, *(f"{layer}.{i}.{part}" for i in range(layers) for part in parts)]
    found: dict[str, str] = {}
    for stem in stems:
        if (name := table.get_name(stem)) is not None:
            found |= {f"{stem}.{end}": f"{name}.{end}" for end in ("weight", "bias")}
    return found


def turned(kind: str, name: str) -> bool:
    """Whether a matrix is stored [out, in] while the checkpoint has it [in, out]: GPT-2's `Conv1D`."""
    return kind == "gpt2" and ".c_" in name and name.endswith(".weight")


def interleaved(kind: str, name: str, heads: int, groups: int) -> int:
    """Heads of a matrix or bias that has its rotary pairs side by side in GGUF (`llama`: queries, keys); else 0."""
    if kind != "llama" or "_proj" not in name:
        return 0
    return heads if ".q_proj" in name else groups if ".k_proj" in name else 0
